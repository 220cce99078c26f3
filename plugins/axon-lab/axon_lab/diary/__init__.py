"""`axon diary`: notes on papers, as Markdown files that people and programs read."""
