"""Which parts of a model compute what may depend on how many rows there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle

__all__ = ["rows_depend"]

_PRODUCTS = (
    "mm", "addmm", "_addmm_activation", "bmm", "baddbmm", "addbmm", "mv", "addmv", "addr", "dot", "vdot", "linear",
    "matmul", "_weight_int8pack_mm", "_weight_int4pack_mm", "_linear_pointwise", "_convolution_pointwise",
    "int8_product", "levels_product", "product",
)  # fmt: skip
_KINDS = ("convolution", "attention", "rnn", "lstm", "gru")  # parts of operators' names
_ACTIVATIONS = (
    "silu", "gelu", "sigmoid", "log_sigmoid_forward", "softplus", "mish", "elu", "celu", "selu", "hardswish",
)  # fmt: skip
"""On a CPU these compute the last few numbers of a thread's share in another way than the others."""


def rows_depend(model: nn.Module, run: Callable[[], object]) -> list[str]:
    """Return where `run` calls what may depend on the number of rows: `<module of model>: <operator>`, in order.

    These are the products and convolutions of a library, which chooses the order of its sums by the number of rows,
    and activations such as torch's silu and gelu, which compute a thread's last numbers in another way than the others.
    An empty list means that `run` multiplies with `packed_product` and `attend_blocks` alone, whose rows have the same
    bits in any company; norms, softmax and other functions of a single row keep them. Give it a pass as it will run,
    uncompiled:

        rows_depend(model, lambda: model.features(tokens, cache=cache))
    """
    stack = [""]
    with _Calls(stack) as found:
        handles = [handle for name, module in model.named_modules() for handle in _track(name, module, stack)]
        try:
            run()
        finally:
            for handle in handles:
                handle.remove()
    return list(found.calls)


class _Calls(TorchDispatchMode):
    """Records such calls; keys of a dictionary stay in their order."""

    def __init__(self, stack: Sequence[str]) -> None:
        super().__init__()
        self.stack = stack
        self.calls: dict[str, None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, _, name = func.name().partition("::")
        name = name.split(".")[0]
        ours = namespace == "axon" and name in ("packed_product", "attend_blocks")
        if not ours and (name.rstrip("_") in (*_PRODUCTS, *_ACTIVATIONS) or any(kind in name for kind in _KINDS)):
            self.calls[f"{self.stack[-1] or 'the model'}: {namespace}.{name}"] = None
        return func(*args, **(kwargs or {}))


def _track(name: str, module: nn.Module, stack: list[str]) -> list[RemovableHandle]:
    """Keep the name of the module that runs on top of `stack`."""

    def enter(*_: object) -> None:
        stack.append(name)

    def leave(*_: object) -> None:
        stack.pop()

    return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True)]
