"""Rows as people have them: recognised by their fields, and turned into Axon's records."""
