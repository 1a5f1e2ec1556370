"""Loading the decoder half, and refusing what would draw wrong pictures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from services.decoder_worker.schedule import ScheduleParams
from services.decoder_worker.weights import DecoderModel, check_scheduler, check_versions, load_decoder_model
from shared.errors import StartupError

_HALF = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")


@pytest.fixture
def half(miniature: Path, tmp_path: Path) -> Path:
    """A copy of the decoder half alone, to be spoilt."""
    for part in _HALF:
        shutil.copytree(miniature / part, tmp_path / part)
    return tmp_path


def _change_config(folder: Path, **values: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_its_half_is_enough(half: Path) -> None:
    """A folder without the AR half loads, in the dtype asked for."""
    model = load_decoder_model(half, device="cpu", dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    assert {net.dtype for net in (model.transformer, model.vae, model.text_encoder)} == {torch.bfloat16}


def test_auto_is_float32_on_the_cpu(half: Path) -> None:
    """dtype auto means float32 on a CPU, and nothing is left in training mode or with gradients."""
    model = load_decoder_model(half, device="cpu")
    assert model.dtype == torch.float32
    for net in (model.transformer, model.vae, model.text_encoder):
        assert not net.training
        assert not any(parameter.requires_grad for parameter in net.parameters())


def test_numbers_come_from_the_configs(model: DecoderModel) -> None:
    """Codebook, channels, scale and schedule are read, not assumed."""
    assert (model.codebook_size, model.latent_channels, model.vae_scale_factor) == (256, 16, 8)
    assert model.schedule_params == ScheduleParams(1000, 256, 0.25, 0.75)


@pytest.mark.parametrize(
    ("diffusers_version", "transformers_version"), [("0.41.0", "5.17.0"), ("0.40.0", "5.17.0"), ("0.42.1", "5.18.0"), ("0.42.1", "4.57.1")]
)
def test_unproved_versions_are_refused(diffusers_version: str, transformers_version: str) -> None:
    """Versions known to be wrong are refused, with the command that installs the right ones."""
    with pytest.raises(StartupError, match=r"pip install diffusers==0\.42\.1 transformers==5\.17\.0"):
        check_versions(diffusers_version, transformers_version)


def test_the_installed_versions_are_the_proved_ones() -> None:
    """What the lock installs is what the worker accepts."""
    check_versions()


def test_a_scheduler_that_changes_timesteps_is_refused() -> None:
    """A scheduler that conditions on other times than it was given is refused: the fault of diffusers 0.40 and 0.41."""
    changing = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="linear", invert_sigmas=True)
    with pytest.raises(StartupError, match="wrong colours"):
        check_scheduler(changing)


@pytest.mark.parametrize(
    "options", [{"use_dynamic_shifting": False}, {"time_shift_type": "exponential"}, {"shift_terminal": 0.1}, {"use_karras_sigmas": True}]
)
def test_a_schedule_that_is_not_the_published_one_is_refused(options: dict[str, object]) -> None:
    """A checkpoint whose schedule glmq does not make is refused instead of drawn wrongly."""
    scheduler = FlowMatchEulerDiscreteScheduler(**({"use_dynamic_shifting": True, "time_shift_type": "linear"} | options))
    with pytest.raises(StartupError, match="not the published one"):
        check_scheduler(scheduler)


@pytest.mark.parametrize("part", _HALF)
def test_a_missing_part_is_named(half: Path, part: str) -> None:
    """A checkpoint without one of the five parts is refused by the name of the part."""
    shutil.rmtree(half / part)
    with pytest.raises(StartupError, match=f"no {part}/"):
        load_decoder_model(half, device="cpu")


def test_cut_weights_are_refused(half: Path) -> None:
    """A weights file that ends too early is refused by the name of its folder."""
    (weights,) = (half / "transformer").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(StartupError, match="transformer"):
        load_decoder_model(half, device="cpu")


def test_only_safetensors_are_read(half: Path) -> None:
    """Weights in a format that can run code are not even opened."""
    (weights,) = (half / "vae").glob("*.safetensors")
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(StartupError, match="vae"):
        load_decoder_model(half, device="cpu")


@pytest.mark.parametrize(("part", "change"), [("transformer", {"num_layers": 3}), ("text_encoder", {"num_layers": 3})])
def test_weights_of_another_config_are_refused(half: Path, part: str, change: dict[str, object]) -> None:
    """Missing weights are refused, where both libraries would fill in random numbers and go on."""
    _change_config(half / part, **change)
    with pytest.raises(StartupError, match=part):
        load_decoder_model(half, device="cpu")


def test_a_vae_without_latent_statistics_is_refused(half: Path) -> None:
    """Parts that load but do not belong together are refused."""
    _change_config(half / "vae", latents_mean=None)
    with pytest.raises(StartupError, match="latents_mean"):
        load_decoder_model(half, device="cpu")


@pytest.mark.parametrize("device", ["abacus", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(half: Path, device: str) -> None:
    """A wrong device stops the start with its name."""
    with pytest.raises(StartupError, match=device):
        load_decoder_model(half, device=device)


def test_float16_is_refused(half: Path) -> None:
    """float16, in which the VAE overflows, is not offered."""
    with pytest.raises(StartupError, match="float16"):
        load_decoder_model(half, device="cpu", dtype="float16")
