"""Feedback from several trainers of unknown reliability (arXiv 2111.08596)."""
