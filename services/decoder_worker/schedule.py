"""
The flow-matching schedule of one picture: mu, timesteps, sigmas. Plain numbers, pure.

Knows the formula and the four numbers of the checkpoint's scheduler; no tensors, no device, no state. diffusers' scheduler object
keeps one picture's position inside itself, so it cannot serve several pictures at different steps. `weights.py` proves at start
that the numbers made here are the scheduler's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class ScheduleParams:
    """What the schedule takes from the checkpoint's `scheduler_config.json`; names as there."""

    num_train_timesteps: int
    base_image_seq_len: int
    base_shift: float
    max_shift: float

    @classmethod
    def from_config(cls, config: Any) -> ScheduleParams:
        """Read the numbers from a diffusers scheduler config (a mapping)."""
        return cls(
            num_train_timesteps=int(config["num_train_timesteps"]),
            base_image_seq_len=int(config["base_image_seq_len"]),
            base_shift=float(config["base_shift"]),
            max_shift=float(config["max_shift"]),
        )


@dataclass(frozen=True)
class Schedule:
    """
    Every number a picture needs between its noise and its last step.

    `timesteps` (1000..1, unshifted) tell the DiT where it stands; `sigmas` (1..0, shifted by `mu`, one more than timesteps) are what the
    Euler steps integrate over. Each number is a float32 value.
    """

    mu: float
    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]

    @property
    def num_steps(self) -> int:
        return len(self.timesteps)


def make_schedule(params: ScheduleParams, num_patches: int, num_steps: int) -> Schedule:
    """
    Make the schedule of a picture of `num_patches` DiT patches (16x16 pixels each) in `num_steps` steps.

    Raises:
        ValueError: fewer than one step or one patch.
    Source: diffusers pipeline_glm_image.py, `__call__` sections 7 and 8; scheduling_flow_match_euler_discrete.py, `set_timesteps`.
    """
    if num_steps < 1 or num_patches < 1:
        raise ValueError(f"a schedule needs at least one step and one patch, not {num_steps} and {num_patches}")
    mu = (num_patches / params.base_image_seq_len) ** 0.5 * params.max_shift + params.base_shift
    # Through int64 because the reference truncates: 1000, 980, 960, … rather than 1000, 980.02, 960.04, …
    timesteps = np.linspace(params.num_train_timesteps, 1.0, num_steps + 1)[:-1].astype(np.int64).astype(np.float32)
    # numpy and float32 throughout: the same formula in Python's doubles differs in the last bit of some sigmas.
    sigmas = timesteps / params.num_train_timesteps
    # Bent towards noise, the more the larger the picture. Source: `_time_shift_linear` with its `sigma` 1.
    sigmas = mu / (mu + (1 / sigmas - 1))
    return Schedule(mu=mu, timesteps=tuple(timesteps.tolist()), sigmas=(*sigmas.tolist(), 0.0))
