"""The wire formats: what requests may say, as pydantic models, and what answers look like."""
