"""The schedule, compared with diffusers' scheduler."""

from __future__ import annotations

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from services.decoder_worker.schedule import ScheduleParams, make_schedule

_PUBLISHED = ScheduleParams(num_train_timesteps=1000, base_image_seq_len=256, base_shift=0.25, max_shift=0.75)


def _scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(
        base_image_seq_len=256, base_shift=0.25, max_shift=0.75, use_dynamic_shifting=True, time_shift_type="linear"
    )


@settings(deadline=None)
@given(num_patches=st.integers(1, 128 * 128), num_steps=st.integers(1, 1000))
def test_equals_the_scheduler(num_patches: int, num_steps: int) -> None:
    """For every size and number of steps, timesteps and sigmas equal the scheduler's to the last bit."""
    schedule = make_schedule(_PUBLISHED, num_patches, num_steps)
    # The reference's own lines (pipeline_glm_image.py, section 7).
    timesteps = np.linspace(1000, 1.0, num_steps + 1)[:-1].astype(np.int64).astype(np.float32)
    scheduler = _scheduler()
    scheduler.set_timesteps(timesteps=timesteps, sigmas=timesteps / 1000, mu=(num_patches / 256) ** 0.5 * 0.75 + 0.25)

    assert schedule.timesteps == tuple(scheduler.timesteps.tolist())
    assert schedule.sigmas == tuple(scheduler.sigmas.tolist())
    assert schedule.num_steps == num_steps


@pytest.mark.parametrize(("side_px", "mu"), [(512, 1.75), (1024, 3.25), (2048, 6.25)])
def test_mu_of_the_published_sizes(side_px: int, mu: float) -> None:
    """mu is 1.75 at 512, 3.25 at 1024 and 6.25 at 2048 pixels square."""
    assert make_schedule(_PUBLISHED, (side_px // 16) ** 2, 50).mu == mu


def test_times_are_truncated_and_unshifted() -> None:
    """Fifty steps start 1000, 980, 960, …: whole numbers, not bent with the sigmas; the last sigma is 0."""
    schedule = make_schedule(_PUBLISHED, 4096, 50)
    assert schedule.timesteps[:3] == (1000, 980, 960)
    assert schedule.sigmas[0] == 1
    assert schedule.sigmas[1] > 0.99
    assert schedule.sigmas[-1] == 0


@pytest.mark.parametrize(("num_patches", "num_steps"), [(4, 0), (0, 4), (4, -1)])
def test_nothing_to_schedule_is_refused(num_patches: int, num_steps: int) -> None:
    """No steps or no patches is a fault of the caller."""
    with pytest.raises(ValueError, match="at least one step"):
        make_schedule(_PUBLISHED, num_patches, num_steps)
