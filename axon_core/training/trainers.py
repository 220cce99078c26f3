"""The registry of trainers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from axon_core.registry.registry import Registry

if TYPE_CHECKING:
    from axon_core.training.trainer import Trainer

__all__ = ["TRAINERS"]

TRAINERS: Registry[Trainer] = Registry("trainer", "axon_core.training.trainer:Trainer")
"""Trainers by key."""
