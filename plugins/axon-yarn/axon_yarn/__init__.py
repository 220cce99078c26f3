"""YaRN's rotary position embeddings (arXiv 2309.00071) for Axon: `yarn`, and `llama3` as Llama 3.1 has it."""

from axon_yarn.rotary import Llama3Rotary, YarnRotary, by_rotations, by_wavelength

__all__ = ["Llama3Rotary", "YarnRotary", "by_rotations", "by_wavelength"]
