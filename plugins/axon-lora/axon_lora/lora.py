"""LoRA (arXiv 2106.09685), rsLoRA (2312.03732) and DoRA (2402.09353) as one adapter with options."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial

from jaxtyping import Shaped
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from axon_core import CheckpointError, ConfigError, Key
from axon_core.checkpoint import WeightChange
from axon_core.interfaces import Model
from axon_lora.adapter import Adapter, tensor_of
from axon_lora.low_rank import LowRank, LowRankUpdate, adapt, low_rank_scale, merged_weight
from axon_lora.targets import ALL, Map, Target, find_targets, inputs_of, within

__all__ = ["LoRA"]


class LoRA(Adapter):
    """h = W₀ x + s B A x, of which A `(r i)` and B `(o r)` are trained, and s = α / r (arXiv 2106.09685, Section 4.1).

    Each matrix that a `StackedLinear` holds has its own A and B.
    """

    class Config(Adapter.Config):
        """The rank, where the updates are, and the paper's variants."""

        rank: PositiveInt = 16
        """Rank r of the updates; at most the smaller side of each matrix."""
        alpha: PositiveFloat | None = None
        """α of the scale s = α / r; left out, it is r, so that s is 1 (or √r with `rslora`)."""
        targets: tuple[str, ...] = Field(default=(ALL,), min_length=1)
        """Places of linear maps, such as `attention`, `q` or `blocks.0`; `all` is each but the output head."""
        ranks: dict[str, PositiveInt] = Field(default_factory=dict)
        """Other ranks for some of the targets: `{ feed_forward = 4 }`; the last that names a map holds."""
        alphas: dict[str, PositiveFloat] = Field(default_factory=dict)
        """Other α for some of the targets."""
        dropout: float = Field(default=0.0, ge=0, lt=1)
        """The share of the features that an update does not see while training."""
        rslora: bool = False
        """Scale by α / √r, so that gradients do not shrink as r grows (arXiv 2312.03732)."""
        dora: bool = False
        """Train a magnitude of each output beside its direction (arXiv 2402.09353, Section 4)."""
        also: tuple[str, ...] = ()
        """Parts of the model, such as `head` or `norm`, that are trained as they are, and saved whole."""

    config: Config

    def adapt(self, model: Model, key: Key) -> Collection[str]:
        """Attach updates to the maps that the targets name; return the names of all tensors that are trained.

        Raises:
            ConfigError: a target names nothing or a tied head, a rank is larger than a matrix, or `also` names nothing.
        """
        names: list[str] = []
        for name, (module, updates) in self._updates(model).items():
            low_rank = LowRank(
                inputs_of(module), updates, dropout=self.config.dropout, magnitudes=self.config.dora, key=key(name)
            )
            adapt(module, low_rank)
            names += [f"{name}.adapter.{own}" for own, _ in low_rank.named_parameters()]
        whole = self._whole(model)
        for name in whole:
            tensor = tensor_of(model, name)
            tensor.data = tensor.data.float()
        return [*names, *whole]

    def weight_change(self, model: Model, tensors: Mapping[str, Tensor]) -> WeightChange:
        """Return what adds the updates to each weight: W₀ + s B A in float32, rounded once to the dtype of W₀.

        Raises:
            CheckpointError: the tensors are not those of this adapter on this model.
            ConfigError: the options do not suit the model.
        """
        rest = dict(tensors)

        def taken(name: str, *shape: int) -> Tensor:
            if name not in rest:
                raise CheckpointError(f"the adapter lacks {name}")
            if (found := rest.pop(name)).shape != shape:
                raise CheckpointError(f"the adapter's {name} must have the shape {shape}, got {tuple(found.shape)}")
            return found

        merge: dict[str, Callable[[Tensor], Tensor]] = {}
        for name, (module, updates) in self._updates(model).items():
            place, outputs = f"{name}.adapter", sum(update.outputs for update in updates)
            merge[f"{name}.weight"] = partial(
                merged_weight,
                updates=updates,
                a=taken(f"{place}.a", sum(update.rank for update in updates), inputs_of(module)),
                b=[taken(f"{place}.b.{i}", update.outputs, update.rank) for i, update in enumerate(updates)],
                magnitude=taken(f"{place}.magnitude", outputs) if self.config.dora else None,
            )
        whole = {name: taken(name, *tensor_of(model, name).shape) for name in self._whole(model)}
        if rest:
            raise CheckpointError(f"the adapter's {min(rest)} is not one of its tensors on this model")

        def change(name: str, weight: Tensor) -> Tensor:
            if name in whole:
                return whole[name].to(weight.dtype)
            base = self.base_weight(model, name, weight)
            return (merge[name](base) if name in merge else base).to(weight.dtype)

        return change

    def base_weight(self, model: Model, name: str, weight: Shaped[Tensor, "*any"]) -> Shaped[Tensor, "*any"]:
        """Return a saved weight as the training computed with it: here as it is."""
        return weight

    def updates(self, model: Model) -> list[tuple[Target, LowRankUpdate]]:
        """Return the matrices of a model that are adapted, each with its update.

        Raises:
            ConfigError: a target names nothing or a tied head, or a rank is larger than a matrix.
        """
        found = find_targets(model, self.config.targets)
        for field in ("ranks", "alphas"):
            for name in getattr(self.config, field):
                if not any(within(name, target.place) for target in found):
                    raise ConfigError([((field, name), f"must name some of the targets, got {name!r}")])
        return [(target, self._update(target)) for target in found]

    def _update(self, target: Target) -> LowRankUpdate:
        c = self.config
        rank = ([r for name, r in c.ranks.items() if within(name, target.place)] or [c.rank])[-1]
        alpha = ([a for name, a in c.alphas.items() if within(name, target.place)] or [c.alpha or rank])[-1]
        if rank > (most := target.rank_at_most):
            name = target.place.rpartition(".")[2]
            rule = f"must be at most {most}, the smaller side of {target.place}, got {rank}"
            rule += f"; lower it, or give that its own: ranks = {{ {name} = {most} }}"
            raise ConfigError([(("rank",), rule)])
        return LowRankUpdate(target.part, target.rows, rank, low_rank_scale(alpha, rank, stabilized=c.rslora))

    def _updates(self, model: Model) -> dict[str, tuple[Map, list[LowRankUpdate]]]:
        """Return the maps that are adapted by name, each with the updates of its matrices."""
        maps: dict[str, tuple[Map, list[LowRankUpdate]]] = {}
        for target, update in self.updates(model):
            maps.setdefault(target.map, (target.module, []))[1].append(update)
        return maps

    def _whole(self, model: Model) -> list[str]:
        """Return the names of the tensors that `also` names, each once."""
        names = [name for name, _ in model.named_parameters() if ".adapter." not in name]
        found = dict.fromkeys(name for also in self.config.also for name in names if within(also, name))
        for also in self.config.also:
            if not any(within(also, name) for name in names):
                tied = dict(model.named_parameters(remove_duplicate=False))
                hint = ", whose weight is another part's too; name that" if any(within(also, n) for n in tied) else ""
                known = ", ".join(dict.fromkeys(name.partition(".")[0] for name in names))
                raise ConfigError([(("also",), f"must name parts of the model ({known}), got {also!r}{hint}")])
        maps = {f"{target.map}.weight" for target in find_targets(model, self.config.targets)}
        if both := sorted(found.keys() & maps):
            raise ConfigError([(("also",), f"must not name what targets name too, got {both[0]}")])
        return list(found)
