"""A request and a checkpoint make a job."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from services.api.field_errors import ErrorCollector, InvalidFieldsError
from services.api.new_job import check_request, new_job, requested_size
from services.api.schemas import JobRequest
from shared.checkpoint import ModelInfo
from shared.grid import TokenGrid
from shared.lifecycle.new_job import NewJob, SourceFile
from shared.lifecycle.reuse import Cache
from shared.lora import LoraChoice
from shared.states import Priority


def ask(**fields: Any) -> JobRequest:
    return JobRequest.model_validate({"prompt": "a fox", **fields})


def problems(info: ModelInfo, num_uploads: int = 0, **fields: Any) -> list[str]:
    errors = ErrorCollector()
    check_request(ask(**fields), info, num_uploads, errors)
    try:
        errors.raise_any()
    except InvalidFieldsError as error:
        return [field.param for field in error.errors]
    return []


def make(info: ModelInfo, **fields: Any) -> NewJob:
    request = ask(**fields)
    return new_job(request, info, "ten_1", fields, (64, 96), (SourceFile("file_1", "ab"),), None, random_seed=123, approval_s=60)


def test_defaults_come_from_the_checkpoint(info: ModelInfo) -> None:
    """What the request leaves out, the checkpoint says; the seed is the one that was drawn, for both stages."""
    job = make(info)
    assert (job.steps, job.guidance_scale, job.temperature, job.top_p) == (50, 1.5, 0.9, 0.75)
    assert (job.seed, job.layout_seed, job.same_layout) == (123, 123, False)
    assert (job.num_images, job.format, job.quality, job.priority) == (1, "png", None, Priority.STANDARD)
    assert (job.height_px, job.width_px, job.model_name, job.model_revision) == (64, 96, "m", "r1")
    assert (job.lora, job.is_fast, job.cache, job.wants_previews, job.approval_s) == ((), False, Cache.USE, True, None)


def test_request_overrides_the_checkpoint(info: ModelInfo) -> None:
    """What the request says holds, zeros included."""
    job = make(info, seed=0, layout_seed=0, steps=1, guidance_scale=1, temperature=2, top_p=0.1, priority="bulk")
    assert (job.seed, job.layout_seed, job.steps) == (0, 0, 1)
    assert (job.guidance_scale, job.temperature, job.top_p, job.priority) == (1.0, 2.0, 0.1, Priority.BULK)
    assert isinstance(job.guidance_scale, float)
    assert make(info, seed=5).layout_seed == 5
    job = make(info, quality="fast", cache="off", previews=False, lora=[{"name": "b"}, {"name": "a", "scale": -2}])
    assert (job.is_fast, job.cache, job.wants_previews) == (True, Cache.OFF, False)
    assert job.lora == (LoraChoice("a", -2.0), LoraChoice("b", 1.0))
    assert make(info, approve=True).approval_s == 60


@pytest.mark.parametrize(
    ("fields", "sources", "expected"),
    [
        ({}, [], (128, 256)),
        ({}, [(96, 64)], (128, 256)),
        ({"size": "auto"}, [], (128, 256)),
        ({"size": "auto"}, [(96, 64), (64, 64)], (96, 64)),
        # Sources may be larger than results.
        ({"size": "auto"}, [(1024, 64)], (512, 64)),
        ({"size": "100x65"}, [], (65, 100)),
        ({"width": 100, "height": 65}, [(96, 64)], (65, 100)),
    ],
)
def test_size(info: ModelInfo, fields: dict[str, Any], sources: list[tuple[int, int]], expected: tuple[int, int]) -> None:
    """Height before width inside; "auto" follows the first source, within the range of results."""
    assert requested_size(ask(**fields), info, sources) == expected


def test_what_is_drawn_follows_the_checkpoint(info: ModelInfo) -> None:
    """The result has the size that was asked; a model with a limit draws it smaller, one without as large."""
    assert make(info).grid == TokenGrid(2, 3)
    small = replace(info, max_generate_px=64)
    job = make(small)
    assert (job.height_px, job.width_px, job.grid) == (64, 96, TokenGrid(1, 2))
    assert job.params()["size"] == "96x64"
    assert make(replace(small, min_generate_px=64)).grid == TokenGrid(2, 2)


@pytest.mark.parametrize(
    ("fields", "params"),
    [
        ({"size": "32x512"}, []),
        ({"size": "31x513"}, ["size", "size"]),
        ({"width": 31, "height": 513}, ["width", "height"]),
        ({"size": "64x64", "height": 64}, ["size"]),
        ({"width": 64}, ["height"]),
        ({"format": "webp", "format_options": {"quality": 1}}, []),
        ({"format_options": {"quality": 1}}, ["format_options.quality"]),
        ({"prompt": "a <|image|>"}, ["prompt"]),
        ({"lora": [{"name": "sketch", "scale": 0.5}]}, []),
        ({"lora": [{"name": "sketch"}, {"name": "neon"}]}, ["lora.1.name"]),
        ({"approve": True}, []),
        ({"approve": True, "images": [{"file_id": "x"}]}, ["approve"]),
        ({"approve": True, "previews": False}, ["previews"]),
    ],
)
def test_limits(info: ModelInfo, fields: dict[str, Any], params: list[str]) -> None:
    """What only the checkpoint or another field can judge is found, each with its field."""
    assert problems(replace(info, loras=("sketch",)), **fields) == params


def test_uploads_count_as_images(info: ModelInfo) -> None:
    """Sixteen images in all, wherever they stand."""
    references = [{"file_id": "x"}] * 10
    assert problems(info, 6, images=references) == []
    assert problems(info, 7, images=references) == ["images"]
    assert problems(info, 1, approve=True) == ["approve"]
