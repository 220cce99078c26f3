"""What preference optimisation starts from: a saved model, and the reference it is compared with."""

from __future__ import annotations

from axon_core import ConfigError
from axon_core.interfaces import CausalLM
from axon_core.text import Tokenizer
from axon_core.training import Saved, load_pretrained, named_model_folder, tokenizer_difference

__all__ = ["Start", "load_reference"]


class Start(Saved):
    """The `[model]` table of a recipe: saved models, whose types and sizes are in their folders."""

    reference: str | None = None
    """The folder of another model as the reference; left out, the reference is the model as it is at the start."""


def load_reference(start: Start, policy: CausalLM, tokenizer: Tokenizer) -> CausalLM | None:
    """Return the reference, if it is a separate model.

    Raises:
        ConfigError: its tokens differ from the policy's, so that their probabilities cannot be compared.
        CheckpointError: see `axon_core.training.load_pretrained`.
    """
    if start.reference is None:
        return None
    model, other = load_pretrained(named_model_folder(start.reference), CausalLM)
    sizes = model.config.vocab_size, policy.config.vocab_size
    if sizes[0] != sizes[1]:
        raise _other(f"its vocabulary has {sizes[0]} tokens and the policy's {sizes[1]}")
    if difference := tokenizer_difference(other, tokenizer):
        raise _other(difference)
    return model


def _other(difference: str) -> ConfigError:
    return ConfigError(
        [(("reference",), f"must have the policy's tokens, but {difference}; use a model trained with that tokenizer")]
    )
