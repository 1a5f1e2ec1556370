"""How many workers of each kind a stack runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cli.roles import stack_roles
from cli.supervisor import StackError
from cli.worker_counts import WorkerCounts, worker_counts

CORES = min(len(os.sched_getaffinity(0)), 4)
ONE_PER_CORE = WorkerCounts(CORES, CORES)
ONE_OF_EACH = WorkerCounts(1, 1)


def test_a_miniature_gets_the_cores(tmp_path: Path) -> None:
    """Small weights on a machine without a GPU: a worker of each kind per core, also before the checkpoint is built."""
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "weights.safetensors").write_bytes(b"x")
    nowhere = tmp_path / "none"
    assert worker_counts(str(tmp_path), {}, nowhere) == ONE_PER_CORE
    assert worker_counts(str(nowhere), {}, nowhere) == ONE_PER_CORE


def test_a_real_model_gets_one(tmp_path: Path) -> None:
    """Of large weights, of a hub's checkpoint and on a GPU there is one copy."""
    gpu = tmp_path / "gpu"
    gpu.touch()
    with (tmp_path / "weights.safetensors").open("wb") as sparse:
        sparse.truncate(300 << 20)
    assert worker_counts(str(tmp_path), {}, tmp_path / "none") == ONE_OF_EACH
    assert worker_counts("zai-org/GLM-Image", {}, tmp_path / "none") == ONE_OF_EACH
    assert worker_counts(str(tmp_path / "small"), {}, gpu) == ONE_OF_EACH
    assert worker_counts(str(tmp_path / "small"), {"GLMQ_DEVICE": "cpu"}, gpu) == ONE_PER_CORE


def test_who_asks_gets_what_was_asked_for(tmp_path: Path) -> None:
    """Each variable counts before what is guessed, and for its own stage alone."""
    named = {"GLMQ_DECODER_WORKERS": "3"}
    assert worker_counts("zai-org/GLM-Image", named, tmp_path / "none") == WorkerCounts(ar=1, decoder=3)
    assert worker_counts("zai-org/GLM-Image", {**named, "GLMQ_AR_WORKERS": "2"}, tmp_path / "none") == WorkerCounts(ar=2, decoder=3)
    assert worker_counts(str(tmp_path), {"GLMQ_AR_WORKERS": "1"}, tmp_path / "none") == WorkerCounts(ar=1, decoder=CORES)


@pytest.mark.parametrize("variable", ["GLMQ_AR_WORKERS", "GLMQ_DECODER_WORKERS"])
@pytest.mark.parametrize("value", ["0", "65", "-1", "two", "1.5", "", "٣"])
def test_nonsense_is_refused(variable: str, value: str) -> None:
    """A count that cannot be is refused by the variable's name."""
    with pytest.raises(StackError, match=f"{variable} must be a whole number from 1 to 64"):
        worker_counts("zai-org/GLM-Image", {variable: value})


def test_each_worker_has_a_name_of_its_own() -> None:
    """Several workers of a kind are several processes with logs of their own, and the same command; the first of each starts first."""
    workers = {role.name: role.command for role in stack_roles(0, ar_workers=2, decoder_workers=3) if "_worker" in role.name}
    assert list(workers) == ["ar_worker", "decoder_worker", "ar_worker_2", "decoder_worker_2", "decoder_worker_3"]
    assert len(set(workers.values())) == 2
    assert workers["ar_worker"] == workers["ar_worker_2"]
