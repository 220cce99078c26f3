"""The lab: compare parts across papers, keep the evidence, publish it."""

__all__: list[str] = []
