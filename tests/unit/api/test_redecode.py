"""A request, and the job whose layouts it is about, make a job."""

from __future__ import annotations

from typing import Any

import pytest

from services.api.field_errors import ErrorCollector, InvalidFieldsError
from services.api.redecode import check_redecode, redecoded_job
from services.api.schemas import RedecodeRequest
from shared.checkpoint import ModelInfo
from shared.grid import TokenGrid
from shared.lifecycle.new_job import NewJob, SourceFile
from shared.lifecycle.reuse import Cache

SOURCE = {
    "id": "job_1",
    "model": {"name": "m", "revision": "r1"},
    # As jobs of before adapters, previews and fast drawing have them.
    "params": {
        "prompt": "a fox",
        "size": "96x64",
        "n": 2,
        "seed": 7,
        "layout_seed": 8,
        "same_layout": True,
        "steps": 4,
        "guidance_scale": 1.5,
        "temperature": 0.9,
        "top_p": 0.75,
        "format": "jpeg",
        "format_options": {"quality": 80},
        "images": [{"file_id": "file_1"}],
    },
    "glyph_texts": ["OPEN"],
    "warnings": [],
    "outputs": [{"generated_width": 128, "generated_height": 64}],
}
FILES = (SourceFile("file_1", "ab"),)


def make(**fields: Any) -> NewJob:
    return redecoded_job(RedecodeRequest.model_validate(fields), SOURCE, "ten_1", fields, FILES, None)


def problems(info: ModelInfo, **fields: Any) -> list[str]:
    errors = ErrorCollector()
    check_redecode(RedecodeRequest.model_validate(fields), info, SOURCE["params"], errors)
    try:
        errors.raise_any()
    except InvalidFieldsError as error:
        return [field.param for field in error.errors]
    return []


def test_what_is_left_out_stays() -> None:
    """An empty request is the source once more, also of a job from before there were adapters and previews."""
    job = make()
    assert (job.redecode_of, job.tenant_id, job.sources, job.grid) == ("job_1", "ten_1", FILES, TokenGrid(2, 4))
    assert (job.height_px, job.width_px, job.num_images, job.seed, job.layout_seed, job.same_layout) == (64, 96, 2, 7, 8, True)
    assert (job.steps, job.guidance_scale, job.temperature, job.top_p, job.format, job.quality) == (4, 1.5, 0.9, 0.75, "jpeg", 80)
    assert (job.model_name, job.model_revision, job.prompt) == ("m", "r1", "a fox")
    assert (job.lora, job.is_fast, job.wants_previews, job.cache, job.approval_s) == ((), False, False, Cache.USE, None)


def test_what_is_named_changes() -> None:
    """Every field of the decoder may be another one, zeros included; layout, prompt and sampling stay."""
    job = make(n=1, size="32x512", seed=0, steps=9, guidance_scale=1, format="webp", quality="fast", previews=True, cache="off")
    assert (job.num_images, job.height_px, job.width_px, job.seed, job.steps, job.guidance_scale) == (1, 512, 32, 0, 9, 1.0)
    assert (job.format, job.quality, job.is_fast, job.wants_previews, job.cache) == ("webp", None, True, True, Cache.OFF)
    assert (job.layout_seed, job.grid) == (8, TokenGrid(2, 4))


@pytest.mark.parametrize(
    ("fields", "quality"), [({"format": "jpeg"}, 80), ({"format_options": {"quality": 5}}, 5), ({"format_options": {}}, None)]
)
def test_quality_of_the_file(fields: dict[str, Any], quality: int | None) -> None:
    """The same format keeps its quality, unless the options are given anew."""
    assert make(**fields).quality == quality


@pytest.mark.parametrize(
    ("fields", "params"),
    [
        ({}, []),
        ({"lora": []}, []),
        ({"lora": [{"name": "a"}]}, ["lora"]),
        ({"size": "32x512"}, []),
        ({"size": "31x513"}, ["size", "size"]),
        ({"format_options": {"quality": 5}}, []),
        ({"format": "png", "format_options": {"quality": 5}}, ["format_options.quality"]),
    ],
)
def test_limits(info: ModelInfo, fields: dict[str, Any], params: list[str]) -> None:
    """What only the checkpoint or the source can judge is found, each with its field."""
    assert problems(info, **fields) == params
