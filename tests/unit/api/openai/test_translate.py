"""Requests of OpenAI's interface, and the native ones that they become."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import pytest

from services.api.field_errors import InvalidFieldsError
from services.api.openai.schemas import EditRequest, ImageRequest
from services.api.openai.translate import native_image_request, nested_fields, read_asked
from services.api.schemas import JobRequest
from shared.checkpoint import ModelInfo
from shared.errors import RequestError


def native(info: ModelInfo, **sent: Any) -> dict[str, Any]:
    fields = native_image_request(read_asked({"prompt": "A cat", **sent}, ImageRequest), info).fields
    # What we make is what the native route takes.
    JobRequest.model_validate(fields)
    return fields


def refused(info: ModelInfo, **sent: Any) -> list[tuple[str, str]]:
    with pytest.raises(InvalidFieldsError) as caught:
        native(info, **sent)
    return [(error.problem, error.param) for error in caught.value.errors]


def test_a_prompt_is_enough(info: ModelInfo) -> None:
    """All else has OpenAI's defaults: one PNG of the model's size, in the standard lane, with no pictures on the way."""
    fields = native(info)
    assert fields["n"] == 1
    assert (fields["size"], fields["format"], fields["previews"]) == ("auto", "png", False)
    assert fields["steps"] == info.steps


@pytest.mark.parametrize(("quality", "steps"), [("low", 20), ("medium", 35), ("high", 50), ("auto", 50), ("hd", 50), ("standard", 50)])
def test_quality_is_steps(info: ModelInfo, quality: str, steps: int) -> None:
    """Of the published model 20, 35 or 50; of another one in proportion, and never none."""
    assert native(replace(info, steps=50), quality=quality)["steps"] == steps
    assert native(replace(info, steps=1), quality=quality)["steps"] == 1
    assert native(info, quality=quality, num_inference_steps=9)["steps"] == 9


def test_null_is_no_opinion(info: ModelInfo) -> None:
    """OpenAI's clients write null for what nobody set."""
    sent = dict.fromkeys(("size", "quality", "mask", "n", "svg", "stream", "background", "output_format", "user", "webhook"))
    assert native(info, **sent) == native(info)


def test_extensions_reach_the_job(info: ModelInfo) -> None:
    """What `extra_body` adds has the native fields' meaning."""
    sent = {
        "seed": 7,
        "guidance_scale": 2.5,
        "temperature": 0.5,
        "top_p": 0.5,
        "metadata": {"order": "1"},
        "custom_id": "c",
        "deadline": "2999-01-01T00:00:00Z",
        "webhook": "https://example.com/hook",
        "cache": "off",
    }
    fields = native(info, **sent)
    for name in ("seed", "guidance_scale", "temperature", "top_p", "metadata", "custom_id", "cache"):
        assert fields[name] == sent[name]
    assert fields["webhook"] == sent["webhook"]


@pytest.mark.parametrize(("tier", "lane"), [("priority", "interactive"), ("default", "standard"), ("flex", "bulk")])
def test_service_tiers_are_lanes(info: ModelInfo, tier: str, lane: str) -> None:
    """OpenAI's tiers are glmq's lanes, and one of both words is enough."""
    assert native(info, service_tier=tier)["priority"] == lane
    assert native(info, priority=lane)["priority"] == lane
    assert "priority" not in native(info, service_tier="auto")
    assert refused(info, service_tier=tier, priority=lane) == [("invalid_request", "priority")]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("background", "transparent"),
        ("output_format", "gif"),
        ("output_format", "svg"),
        ("svg", {"model": "m"}),
        ("frame_count", 4),
        ("frame_duration_ms", 100),
        ("mask", "x"),
        ("markup", "x"),
        ("negative_prompt", "blur"),
        ("quality", "max"),
    ],
)
def test_what_would_change_the_meaning_is_refused(info: ModelInfo, field: str, value: object) -> None:
    """glmq says that it cannot, instead of leaving it out."""
    assert refused(info, **{field: value}) == [("unsupported_parameter", field)]


def test_what_changes_nothing_is_ignored(info: ModelInfo) -> None:
    """Words about moderation, style and users change no picture."""
    sent = {"moderation": "low", "style": "vivid", "user": "u", "safety_identifier": "s", "complexity": "low", "background": "opaque"}
    assert native(info, **sent) == native(info)


@pytest.mark.parametrize(
    ("sent", "param"),
    [
        ({"n": 11}, "n"),
        ({"n": "2"}, "n"),
        ({"size": "big"}, "size"),
        ({"output_compression": 50}, "output_compression"),
        ({"output_compression": 101, "output_format": "jpeg"}, "output_compression"),
        ({"partial_images": 1}, "partial_images"),
        ({"partial_images": 4, "stream": True}, "partial_images"),
        ({"stream": True, "background": True}, "stream"),
        ({"quality": "ultra"}, "quality"),
        ({"steps": 4}, "steps"),
    ],
)
def test_errors_name_what_was_sent(info: ModelInfo, sent: dict[str, Any], param: str) -> None:
    """By OpenAI's name, not by ours."""
    assert refused(info, **sent) == [("invalid_request", param)]


@pytest.mark.parametrize("name", ["miniature", "glm-image", "zai-org/GLM-Image", "gpt-image-1.5", "dall-e-3", "chatgpt-image-latest", None])
def test_names_of_the_model(info: ModelInfo, name: str | None) -> None:
    """Its own name, and those that unmodified programs send."""
    assert native(replace(info, name="miniature"), model=name) == native(info)


def test_an_unknown_model(info: ModelInfo) -> None:
    """Who asks for another model does not get this one."""
    assert refused(info, model="stable-diffusion") == [("model_not_found", "model")]


def test_sizes_are_rounded_for_who_wants_it(info: ModelInfo) -> None:
    """`nearest` is a size of whole tokens in range; `exact` leaves the size for the native check."""
    info = replace(info, min_px=64, max_px=512)
    assert native(info, size="1024x600", size_policy="nearest")["size"] == "480x288"
    assert native(info, size="128x64", size_policy="nearest")["size"] == "128x64"
    assert native(info, size="1024x600")["size"] == "1024x600"


def test_compression_is_quality_of_the_file(info: ModelInfo) -> None:
    """OpenAI counts from 0; PNG has none, and 100 asks for nothing."""
    assert native(info, output_format="webp", output_compression=0)["format_options"] == {"quality": 1}
    assert native(info, output_format="jpeg", output_compression=80)["format_options"] == {"quality": 80}
    assert "format_options" not in native(info, output_compression=100)


def test_images_keep_their_order(info: ModelInfo) -> None:
    """Files, URLs and data URLs may be mixed."""
    data = "data:image/png;base64," + base64.b64encode(b"picture").decode()
    images = [{"image_url": data}, {"file_id": "file-1"}, {"image_url": "https://example.com/a.png"}, {"image_url": data}]
    body = native_image_request(read_asked({"prompt": "A cat", "images": images}, EditRequest), info)
    assert body.fields["images"] == [{"file_id": "file-1"}, {"url": "https://example.com/a.png"}]
    assert [upload.data for upload in body.uploads] == [b"picture", b"picture"]
    assert body.order == (2, 0, 1, 3)


@pytest.mark.parametrize("url", ["data:image/png;base64,@@", "data:image/png,abc", "data:text/plain;base64,aaaa"])
def test_broken_data_urls(info: ModelInfo, url: str) -> None:
    """A data URL holds a picture in base 64, or the error says which one does not."""
    asked = read_asked({"prompt": "A cat", "images": [{"file_id": "file-1"}, {"image_url": url}]}, EditRequest)
    with pytest.raises(InvalidFieldsError) as caught:
        native_image_request(asked, info)
    assert (caught.value.code, caught.value.param) == ("invalid_image", "images.1.image_url")


def test_forms_are_json_in_brackets() -> None:
    """As OpenAI's clients write nested fields into forms."""
    parts = [
        ("n", "2"),
        ("stream", "false"),
        ("metadata[a]", "1"),
        ("metadata[b]", "x"),
        ("tags[]", "p"),
        ("tags[]", "q"),
        ("top_p", "0.5"),
    ]
    fields = nested_fields([*parts, ("prompt", "12"), ("seed", "x")], ("n", "top_p", "seed"), ("stream",))
    assert fields == {
        "n": 2,
        "stream": False,
        "metadata": {"a": "1", "b": "x"},
        "tags": ["p", "q"],
        "top_p": 0.5,
        "prompt": "12",
        "seed": "x",
    }


@pytest.mark.parametrize("parts", [[("n", "1"), ("n", "2")], [("a", "1"), ("a[b]", "2")], [("a[b", "1")], [("a[][b]", "1"), ("a[]", "1")]])
def test_broken_forms(parts: list[tuple[str, str]]) -> None:
    """Doubled or crooked names are refused, whatever they are."""
    with pytest.raises(RequestError):
        nested_fields(parts, ("n",), ())
