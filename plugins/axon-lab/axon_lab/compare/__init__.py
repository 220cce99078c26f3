"""`axon compare`: one recipe with parts and options varied, over seeds, and what can be concluded from it."""
