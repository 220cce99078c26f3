"""Generating text: sampling, the decoding loop, compiled and captured steps, files of prompts."""

from axon_core._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "api": ["Finish", "Request", "TextStream", "complete", "decode", "decode_requests", "sample_text"],
        "decoder": ["check_prompt", "evaluation_mode"],
        "published": ["PUBLISHED", "published_sampling", "published_settings"],
        "sampling": ["Sampling", "sample_tokens"],
    },
)
