"""Fixtures that several test folders share. Each folder's own fixtures live in its own conftest."""

from __future__ import annotations

import fcntl
import hashlib
import os
from importlib.metadata import version
from pathlib import Path

import pytest

# Before torch is imported: one thread is faster than two for nets this small, and xdist runs several tests at once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A test that asks the hub for something is a broken test.
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def miniature(pytestconfig: pytest.Config) -> Path:
    """
    Folder of the random-weight miniature checkpoint; read only.

    Kept between runs, because importing what builds it takes seconds; made anew when its recipe or a library changes.
    """
    recipe = Path(__file__).parents[1] / "checkpoints" / "random_miniature.py"
    key = hashlib.sha256(recipe.read_bytes())
    for library in ("torch", "transformers", "diffusers", "tokenizers", "safetensors"):
        key.update(f"{library}={version(library)}".encode())
    assert pytestconfig.cache is not None
    cache = pytestconfig.cache.mkdir("miniature")
    folder = cache / key.hexdigest()[:16]
    if not folder.exists():
        # build() is safe without a lock; this only spares the other xdist workers the same work.
        with (cache / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            from checkpoints import random_miniature

            random_miniature.build(folder)
    return folder
