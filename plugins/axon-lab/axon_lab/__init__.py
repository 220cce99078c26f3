"""The lab: compare parts across papers, keep the evidence, publish it.

It shows the algorithms of a Llama beside the code, in the notation of arXiv 2207.09238 (`axon_lab.pseudocode`).
"""

__all__: list[str] = []
