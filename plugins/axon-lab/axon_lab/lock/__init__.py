"""Locks: which distributions a run was made with, written when it begins, or later if `run.json` agrees."""
