"""The AR half loads from its own folders alone, or the worker refuses to start and says why."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from services.ar_worker.weights import ArModel, check_versions, load_ar_model
from shared.errors import StartupError


@pytest.fixture
def ar_half(miniature: Path, tmp_path: Path) -> Path:
    """A copy of what an AR worker downloads."""
    for name in ("vision_language_encoder", "processor"):
        shutil.copytree(miniature / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("version", ["5.0.0", "5.9.1", "5.17.0", "5.17.3"])
def test_versions_that_work_are_accepted(version: str) -> None:
    """All of transformers 5.0 to 5.17."""
    check_versions(version)


@pytest.mark.parametrize("version", ["4.57.1", "5.18.0.dev0", "5.18.0", "5.23.0", "6.0.0"])
def test_other_versions_are_refused(version: str) -> None:
    """The message names the version found and the command that installs the proved one."""
    with pytest.raises(StartupError, match=rf"{version}.*pip install transformers==5\.17\.0"):
        check_versions(version)


def test_the_installed_version_is_accepted() -> None:
    """What the project pins is what the worker takes."""
    check_versions()


def test_the_ar_half_is_enough(ar_half: Path) -> None:
    """No folder of the decoder is looked for; on the CPU weights are float32."""
    model = load_ar_model(ar_half, "cpu", "auto")

    assert (model.device.type, model.dtype, model.codebook_size) == ("cpu", torch.float32, 256)
    assert {parameter.dtype for parameter in model.net.parameters()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in model.net.parameters())


def test_dtype_is_as_asked(ar_half: Path) -> None:
    """bfloat16 runs on the CPU too, if asked for."""
    assert load_ar_model(ar_half, "cpu", "bfloat16").net.dtype == torch.bfloat16


def test_control_ids_are_all_but_text(ar_model: ArModel) -> None:
    """Vision ids and special tokens are control ids; bytes of text are not."""
    tokenizer = ar_model.processor.tokenizer

    assert set(range(384)) < ar_model.control_ids
    assert tokenizer.convert_tokens_to_ids("<sop>") in ar_model.control_ids
    assert ar_model.control_ids.isdisjoint(tokenizer("A cat, 猫")["input_ids"])


@pytest.mark.parametrize("folder", ["vision_language_encoder", "processor"])
def test_a_missing_folder_is_named(ar_half: Path, folder: str) -> None:
    """A wrong path is the likeliest mistake."""
    shutil.rmtree(ar_half / folder)
    with pytest.raises(StartupError, match=f"no {folder}/"):
        load_ar_model(ar_half, "cpu", "float32")


def test_pickled_weights_are_not_loaded(ar_half: Path) -> None:
    """A checkpoint without safetensors is refused, for a pickle can run code."""
    weights = ar_half / "vision_language_encoder" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(StartupError, match="cannot load"):
        load_ar_model(ar_half, "cpu", "float32")


def test_truncated_weights_are_refused(ar_half: Path) -> None:
    """A download that was cut off is not half a model."""
    weights = ar_half / "vision_language_encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(StartupError, match="cannot load"):
        load_ar_model(ar_half, "cpu", "float32")


def test_weights_that_do_not_belong_are_refused(ar_half: Path) -> None:
    """transformers would fill a third layer with random numbers and only print a warning."""
    file = ar_half / "vision_language_encoder" / "config.json"
    config = json.loads(file.read_text())
    config["text_config"]["num_hidden_layers"] = 3
    file.write_text(json.dumps(config))
    with pytest.raises(StartupError, match="missing_keys"):
        load_ar_model(ar_half, "cpu", "float32")


@pytest.mark.parametrize(
    ("device", "dtype", "message"),
    [("gpu", "auto", "GLMQ_DEVICE='gpu'"), ("meta", "auto", "GLMQ_DEVICE='meta'"), ("cpu", "int8", "dtype 'int8'")],
)
def test_impossible_settings_are_refused(ar_half: Path, device: str, dtype: str, message: str) -> None:
    """The value that offended is in the message."""
    with pytest.raises(StartupError, match=message):
        load_ar_model(ar_half, device, dtype)
