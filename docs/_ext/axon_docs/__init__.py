"""What makes the generated pages of the documentation: papers, reference, command line, results and figures."""
