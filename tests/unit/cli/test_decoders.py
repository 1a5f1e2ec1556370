"""How many decoder workers a stack runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cli.decoders import num_decoders
from cli.roles import stack_roles
from cli.supervisor import StackError

CORES = min(len(os.sched_getaffinity(0)), 4)


def test_a_miniature_gets_the_cores(tmp_path: Path) -> None:
    """Small weights on a machine without a GPU: one decoder per core, also before the checkpoint is built."""
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "weights.safetensors").write_bytes(b"x")
    nowhere = tmp_path / "none"
    assert num_decoders(str(tmp_path), {}, nowhere) == CORES
    assert num_decoders(str(nowhere), {}, nowhere) == CORES


def test_a_real_model_gets_one(tmp_path: Path) -> None:
    """Of large weights, of a hub's checkpoint and on a GPU there is one copy."""
    gpu = tmp_path / "gpu"
    gpu.touch()
    with (tmp_path / "weights.safetensors").open("wb") as sparse:
        sparse.truncate(300 << 20)
    assert num_decoders(str(tmp_path), {}, tmp_path / "none") == 1
    assert num_decoders("zai-org/GLM-Image", {}, tmp_path / "none") == 1
    assert num_decoders(str(tmp_path / "small"), {}, gpu) == 1
    assert num_decoders(str(tmp_path / "small"), {"GLMQ_DEVICE": "cpu"}, gpu) == CORES


def test_who_asks_gets_what_was_asked_for(tmp_path: Path) -> None:
    """The variable counts before everything that is guessed."""
    assert num_decoders("zai-org/GLM-Image", {"GLMQ_DECODER_WORKERS": "3"}, tmp_path / "none") == 3


@pytest.mark.parametrize("value", ["0", "65", "-1", "two", "1.5", "", "٣"])
def test_nonsense_is_refused(value: str) -> None:
    """A count that cannot be is refused by the variable's name."""
    with pytest.raises(StackError, match="GLMQ_DECODER_WORKERS must be a whole number from 1 to 64"):
        num_decoders("zai-org/GLM-Image", {"GLMQ_DECODER_WORKERS": value})


def test_each_decoder_has_a_name_of_its_own() -> None:
    """Several decoders are several processes with logs of their own, and the same command."""
    decoders = {role.name: role.command for role in stack_roles(0, 3) if "decoder" in role.name}
    assert list(decoders) == ["decoder_worker", "decoder_worker_2", "decoder_worker_3"]
    assert len(set(decoders.values())) == 1
