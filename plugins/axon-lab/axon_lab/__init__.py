"""The lab: compare parts across papers, keep the evidence, publish it."""
