"""Token grids on their way between the stages."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save

from shared.artifacts import TokenGridArtifact, pack_written, unpack_written
from shared.errors import TokenGridError

GRID = TokenGridArtifact(
    token_ids=[[0, 1, 2], [3, 4, 127]],
    source_token_ids=([[5]], [[6, 7]]),
    prompt_sha256="ab" * 32,
    seed=2**63 - 1,
    temperature=0.9,
    top_p=0.75,
    codebook_size=128,
    model_revision="sha256:0123",
)


def test_round_trip() -> None:
    """What was written is read back, every number exact; equal grids are equal bytes."""
    data = GRID.to_bytes()
    assert TokenGridArtifact.from_bytes(data) == GRID
    assert replace(GRID).to_bytes() == data


def test_largest_grid_is_8_kib() -> None:
    """A 2048x2048 picture crosses in 8 KiB and a header."""
    largest = replace(GRID, token_ids=[[1] * 64 for _ in range(64)], source_token_ids=())
    assert len(largest.to_bytes()) < 8192 + 512


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"\x00" * 8,
        b"\xff" * 64,
        b'{"not": "safetensors"}',
        replace(GRID, token_ids=[[128]]).to_bytes(),
        replace(GRID, token_ids=[[-1]]).to_bytes(),
        replace(GRID, source_token_ids=([[999]],)).to_bytes(),
        save({"target": np.zeros((2, 2), np.int16)}),
        save({"target": np.zeros((2, 2), np.int16)}, {"glmq-token-grid": "[]"}),
        save({"target": np.zeros((2, 2), np.int16)}, {"glmq-token-grid": '{"version": 2}'}),
        GRID.to_bytes() + bytes(1 << 20),
    ],
    ids=["empty", "zeros", "ones", "json", "id too large", "negative id", "source id", "no metadata", "list", "version", "too long"],
)
def test_anything_else_is_refused(broken: bytes) -> None:
    """Bytes that are not a token grid raise TokenGridError and nothing else."""
    with pytest.raises(TokenGridError) as caught:
        TokenGridArtifact.from_bytes(broken)
    assert caught.value.code == "artifact_broken"


@pytest.mark.parametrize("tensor", [np.zeros((2, 2), np.int64), np.zeros(4, np.int16), np.zeros((0, 4), np.int16)])
def test_wrong_tensors_are_refused(tensor: np.ndarray) -> None:
    """Another type or shape than two dimensions of int16 is refused."""
    made_from = '{"version": 1, "codebook_size": 8, "prompt_sha256": "", "seed": 1, "temperature": 1, "top_p": 1, "model_revision": ""}'
    with pytest.raises(TokenGridError):
        TokenGridArtifact.from_bytes(save({"target": tensor}, {"glmq-token-grid": made_from}))


def test_flipped_bytes_never_escape() -> None:
    """Random damage gives a grid with ids in range, or a TokenGridError."""
    rng = random.Random(7)
    data = GRID.to_bytes()
    for _ in range(2000):
        damaged = bytearray(data)
        damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            grid = TokenGridArtifact.from_bytes(bytes(damaged[: rng.choice([len(damaged), rng.randrange(len(damaged))])]))
        except TokenGridError:
            continue
        assert all(0 <= token_id < grid.codebook_size for row in grid.token_ids for token_id in row)


def test_check_refuses_a_grid_of_something_else() -> None:
    """Shape, number of sources, codebook and revision must be those of the image."""
    GRID.check(2, 3, 2, 128, "sha256:0123")
    for wrong in [(3, 2, 2, 128, "sha256:0123"), (2, 3, 1, 128, "sha256:0123"), (2, 3, 2, 64, "sha256:0123"), (2, 3, 2, 128, "other")]:
        with pytest.raises(TokenGridError) as caught:
            GRID.check(*wrong)
        assert caught.value.code == "artifact_mismatch"


@pytest.mark.parametrize("token_ids", [[], [0], [127, 0, 5] * 100])
def test_a_checkpoint_comes_back(token_ids: list[int]) -> None:
    """The ids written so far are read back as they were, none of them included."""
    assert unpack_written(pack_written(token_ids, 2**63 - 1), 2**63 - 1, codebook_size=128, num_tokens=300) == tuple(token_ids)


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"\xff" * 64,
        pack_written([1, 128], 7),
        pack_written([-1], 7),
        pack_written([1] * 9, 7),
        pack_written([1], 8),
        save({"written": np.zeros((2, 2), np.int16), "seed": np.array([7])}),
        save({"written": np.zeros(2, np.int64), "seed": np.array([7])}),
        save({"written": np.zeros(2, np.int16)}),
        save({"written": np.zeros(2, np.int16), "seed": np.zeros(0, np.int64)}),
        pack_written([1], 7) + bytes(1 << 20),
    ],
    ids=[
        *("empty", "ones", "id too large", "negative id", "too many", "other seed"),
        *("two dimensions", "type", "no seed", "empty seed", "too long"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(broken: bytes) -> None:
    """Whatever Redis may hold under the name: TokenGridError and nothing else."""
    with pytest.raises(TokenGridError):
        unpack_written(broken, 7, codebook_size=128, num_tokens=8)
