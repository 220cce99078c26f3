"""The state of a training: everything that exact resumption needs, and nothing else."""

from __future__ import annotations

import logging
import math
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from axon_core.checkpoint.digests import digest
from axon_core.checkpoint.loading import load_module, placed
from axon_core.checkpoint.overlays import own_state
from axon_core.checkpoint.row_order import keep_order, order_of
from axon_core.checkpoint.trees import read_whole
from axon_core.config import at
from axon_core.errors import CheckpointError, ContractError
from axon_core.processes import agree, gather, local, together
from axon_core.registry.parts import part
from axon_core.training.decay import WEIGHT_DECAYS
from axon_core.training.direct_trainer import DirectTrainer
from axon_core.training.trainer import Trainer

__all__ = ["TrainState"]


_log = logging.getLogger("axon")
_KEPT = frozenset("step data first_batch evaluation best worse models optimizer lr moments average trainer".split())


class TrainState:
    """Weights, optimisers, average, and counters of one training, with one way in and one way out.

    Attributes:
        step: steps done.
        evaluation: the last evaluation.
        best: the lowest held-out loss so far.
        worse: evaluations in a row since then.

    Raises:
        ContractError: no parameter of the trainable models requires a gradient.
        ConfigError: an option of the optimiser's `decay` breaks a rule.
        UnknownKey: no installed plugin offers a weight decay of that name.
        UsageError: a `DirectTrainer` has settings for updates by gradients.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.step = 0
        self.evaluation: dict[str, float] = {}
        self.best: float | None = None
        self.worse = 0
        self._swapped = False
        for role, model in trainer.models.items():
            if role not in trainer.trainable:
                model.requires_grad_(False)
        self.roles: Mapping[str, nn.Module] = {role: trainer.models[role] for role in trainer.trainable}
        named = {  # by identity, because two roles may share a part
            id(parameter): (f"{role}.{name}", parameter)
            for role, module in self.roles.items()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        self.parameters: dict[str, nn.Parameter] = dict(named.values())
        if isinstance(trainer, DirectTrainer):
            trainer.check_settings()
            self.optimizers: list[torch.optim.Optimizer] = []
        elif not self.parameters:
            raise ContractError(f"nothing to train: no parameter of {', '.join(self.roles)} requires a gradient")
        else:
            self.optimizers = (optimizer := trainer.config.optimizer).build(list(self.roles.values()))
            if optimizer.decay is not None:
                with at("trainer", "optimizer"):
                    part(optimizer, "decay", WEIGHT_DECAYS).attach(self.optimizers)
        self.average: dict[str, Tensor] | None = None
        if trainer.config.ema is not None:
            self.average = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
            for name, average in self.average.items():
                keep_order(average, order_of(self.parameters[name]))

    def update(self, factor: float) -> None:
        """Make one update of the weights: `factor` times the peak learning rates, then the average."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.average is not None and self.trainer.config.ema is not None:
            # A large decay would hold on to the first weights for thousands of steps, so it rises to its value.
            decay = min(self.trainer.config.ema, (1 + self.step) / (10 + self.step))
            for name, average in self.average.items():
                local(average).lerp_(local(self.parameters[name].detach()), 1 - decay)

    @contextmanager
    def averaged(self) -> Generator[None]:
        """Within the block the models carry the averaged weights, if there are any."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def settle(self) -> None:
        """Leave the averaged weights in the models, if there are any; the training is over."""
        self._swap()
        self.average, self._swapped = None, False

    @torch.no_grad()
    def _swap(self) -> None:
        """Exchange the numbers, not the tensors: sharding keeps its own reference to those."""
        for name, average in (self.average or {}).items():
            mine, other = local(self.parameters[name].detach()), local(average)
            before = mine.clone()
            mine.copy_(other)
            other.copy_(before)
        self._swapped = not self._swapped

    def judge(self, evaluation: dict[str, float]) -> bool:
        """Record an evaluation; return whether the training has stopped improving."""
        self.evaluation = evaluation
        if (loss := evaluation.get("loss")) is not None:
            improved = math.isfinite(loss) and (self.best is None or loss < self.best)
            self.best, self.worse = (loss, 0) if improved else (self.best, self.worse + 1)
        return self.exhausted

    @property
    def exhausted(self) -> bool:
        """Whether the last `patience` evaluations were all no better than the best before."""
        patience = self.trainer.config.patience
        return patience is not None and self.worse >= patience

    def not_finite(self) -> str | None:
        """Return the name of a weight, average or moment in which a number is not finite, or None.

        It waits for the device once, and needs hardly any memory. All processes call it alike, and get the same name.
        """
        tensors: dict[str, Tensor] = {f"the weight {name}": weight for name, weight in self.parameters.items()}
        if isinstance(self.trainer, DirectTrainer):
            tensors = {
                f"{role}.{name}": buffer
                for role, model in self.roles.items()
                for name, buffer in model.named_buffers()
                if buffer.is_floating_point()
            }
        tensors |= {f"the average of {name}": average for name, average in (self.average or {}).items()}
        for name, moments in self._moments().items():
            found = {key: value for key, value in moments.items() if isinstance(value, Tensor)}
            tensors |= {f"the optimiser's {key} of {name}": value for key, value in found.items()}
        tensors = {name: local(tensor) for name, tensor in tensors.items()}
        names = [name for name, tensor in tensors.items() if tensor.numel()]
        device = tensors[names[0]].device if names else torch.device("cpu")
        # The extremes of a tensor are finite if all of it is: they are NaN if one of its numbers is.
        extremes = [torch.stack(tensors[name].aminmax()).isfinite().all().to(device) for name in names]
        finite = torch.stack(extremes).tolist() if extremes else []
        mine = next((name for name, fine in zip(names, finite, strict=True) if not fine), None)
        if not agree(mine is not None):
            return None
        return next(name for name in gather(mine) if name is not None)

    @cached_property
    def _data(self) -> str:
        """The checksum of all data, computed once: the data do not change while they are in memory."""
        return self.trainer.data_digest()

    def _moments(self) -> dict[str, dict[str, Any]]:
        """Return what the optimisers keep for each parameter, by its name."""
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        for parameter, state in (item for optimizer in self.optimizers for item in optimizer.state.items()):
            for moment in state.values():
                if isinstance(moment, Tensor) and moment.shape == parameter.shape:
                    keep_order(moment, order_of(parameter))
        return {names[id(p)]: state for optimizer in self.optimizers for p, state in optimizer.state.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return everything as nested dictionaries, by the names of the parameters, with the tensors themselves.

        It is the same within `averaged`, where models and average have exchanged their numbers.
        """
        models = {role: own_state(module) for role, module in self.roles.items()}
        average = None if self.average is None else dict(self.average)
        if self._swapped and average is not None:
            other = {id(self.parameters[name]): tensor for name, tensor in average.items()}
            average = {name: self.parameters[name] for name in average}
            models = {
                role: {name: other.get(id(tensor), tensor) for name, tensor in tensors.items()}
                for role, tensors in models.items()
            }
        return {
            "step": self.step,
            "data": self._data,
            "first_batch": digest(self.trainer.batch(0)),
            "evaluation": self.evaluation,
            "best": self.best,
            "worse": self.worse,
            "models": models,
            "optimizer": self.trainer.config.optimizer.type,
            "lr": self.trainer.config.optimizer.lr,
            "moments": self._moments(),
            "average": average,
            "trainer": self.trainer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned, or what `Checkpoints.read` did; all processes call it alike.

        Each reads its own part of what is spread over processes, whatever number of them wrote it.

        Raises:
            CheckpointError: it is not whole, or belongs to another model or optimiser, or to other data.
            PeerError: another process could not read its part.
        """
        if missing := _KEPT - state.keys():
            raise CheckpointError(
                f"the checkpoint lacks {', '.join(sorted(missing))}: another version wrote it, or it was changed"
            )
        kind = self.trainer.config.optimizer.type
        if state["optimizer"] != kind:
            raise CheckpointError(f"the checkpoint's optimiser is {state['optimizer']}, but the recipe's is {kind}")
        if (state["average"] is None) != (self.average is None):
            raise CheckpointError("a run has a moving average (trainer.ema) from its first step on, or never")
        together(lambda: self._load_models(state["models"]))
        if state["data"] != self._data:
            raise CheckpointError(
                "the data are not those that the run started with; restore them, or start a new run, which "
                "can start from this run's model (model.init)"
            )
        if state["first_batch"] != digest(self.trainer.batch(0)):
            _log.warning(
                "seed or batch size differ from those that the run started with: it continues, but not exactly"
            )
        self.step, self.evaluation = state["step"], state["evaluation"]
        self.best, self.worse = state["best"], state["worse"]
        together(lambda: self._load_moments(state["moments"], state["average"]))
        self.trainer.load_state_dict(read_whole(state["trainer"]))

    def _load_models(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        for role, module in self.roles.items():
            if (reason := load_module(module, states.get(role, {}))) is not None:
                raise CheckpointError(f"the checkpoint's model is not the one that the recipe describes: {reason}")

    def _load_moments(self, states: Mapping[str, Mapping[str, Any]], averages: Mapping[str, Any]) -> None:
        if unknown := sorted(states.keys() - self.parameters.keys()):
            raise CheckpointError(
                f"the checkpoint's model is not the one that the recipe describes: {unknown[0]} is not trained in it"
            )
        for optimizer in self.optimizers:
            mine = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
            for name, moments in states.items():
                if id(parameter := self.parameters[name]) in mine:
                    optimizer.state[parameter] = {key: placed(value, parameter) for key, value in moments.items()}
        for name, average in (self.average or {}).items():
            average.copy_(placed(averages[name], average))
