"""How wrong fields are named."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from services.api.field_errors import ErrorCollector, FieldError, InvalidFieldsError, from_pydantic, validated
from services.api.openai.schemas import EditRequest, ImageRequest
from services.api.schemas import JobRequest
from shared.errors import RequestError


def refuse(**fields: Any) -> InvalidFieldsError:
    with pytest.raises(ValidationError) as caught:
        JobRequest.model_validate(fields)
    return from_pydantic(caught.value, JobRequest, fields)


def test_value_is_echoed_when_short() -> None:
    """A short wrong value is repeated, a long one is not: it may be a whole prompt."""
    assert refuse(prompt="x", steps=500).detail == "steps: input should be less than or equal to 200 (got 500)"
    assert refuse(prompt="x", steps=None, n=True).errors[0].detail.endswith("(got true)")
    assert "yyy" not in refuse(prompt="x", format="y" * 100).detail


def test_missing_field_echoes_nothing() -> None:
    """What was not sent is not shown as if it had been."""
    assert refuse().detail == "prompt: field required"


def test_path_ends_where_the_request_ends() -> None:
    """A webhook sent as a URL is named `webhook`, one sent as an object `webhook.url`."""
    assert refuse(prompt="x", webhook="").param == "webhook"
    assert refuse(prompt="x", webhook={"url": ""}).param == "webhook.url"
    assert refuse(prompt="x", webhook={}).param == "webhook.url"
    assert refuse(prompt="x", metadata={"k": 1}).param == "metadata.k"
    assert refuse(prompt="x", images=[{"url": "u"}, {"url": 1}]).param == "images.1.url"


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        ({"format_options": {"qualty": 5}}, "format_options.quality"),
        ({"images": [{"job_id": "x"}, {"file_ids": "x"}]}, "images.1.file_id"),
        ({"webhook": {"url": "https://a.example", "event": []}}, "webhook.events"),
        ({"renditions": [{"name": "small", "format_option": {}}]}, "renditions.0.format_options"),
        ({"renditions": [{"name": "small", "format_options": {"max_byte": 1}}]}, "renditions.0.format_options.max_bytes"),
        ({"lora": [{"name": "x", "scales": 1}]}, "lora.0.scale"),
    ],
)
def test_suggestions_at_every_depth(sent: dict[str, object], meant: str) -> None:
    """An unknown field of a part of the request gets a suggestion from that part's own fields."""
    details = [error.detail for error in refuse(prompt="x", **sent).errors]
    assert any(detail.endswith(f"did you mean {meant}?") for detail in details), details


def test_errors_are_named_from_further_out() -> None:
    """Within a line of a batch, all names of an error begin with `body`: those of fields, of unknown ones and of suggestions."""
    unknown = refuse(prompt="x", promt="y").errors[0].within("body")
    assert (unknown.param, unknown.detail) == ("body.promt", "unknown field body.promt; did you mean body.prompt?")
    wrong = refuse(prompt="x", steps=500).errors[0].within("tools", 0)
    assert (wrong.param, wrong.detail) == ("tools.0.steps", "tools.0.steps: input should be less than or equal to 200 (got 500)")
    assert wrong.at(("input",)).detail == "input: input should be less than or equal to 200 (got 500)"


def test_errors_of_two_fields_together_have_no_name() -> None:
    """What is wrong between two fields is told without the empty name of the whole request before it."""
    errors = ErrorCollector()
    errors.add((), "range_empty", "should have until after since")
    with pytest.raises(InvalidFieldsError) as caught:
        errors.raise_any()
    assert (caught.value.detail, caught.value.param) == ("should have until after since", None)


def test_equal_errors_are_one() -> None:
    """Two checks that say the same of a field, such as of both sides of a size, make one error."""
    error = FieldError(("size",), "out_of_range", "size: each side should have 32 to 2048 pixels (got 1)")
    assert InvalidFieldsError([error, error]).detail == error.detail


def test_suggestions_are_only_close_ones() -> None:
    """A typing error gets a suggestion; a word of another API does not."""
    assert refuse(prompt="x", promt="x").detail.endswith("did you mean prompt?")
    assert refuse(prompt="x", sampler="euler").detail == "unknown field sampler"


@pytest.mark.parametrize(
    ("model", "sent", "told"),
    [
        (ImageRequest, "steps", "did you mean num_inference_steps?"),
        (ImageRequest, "format", "did you mean output_format?"),
        (ImageRequest, "width", "did you mean size?"),
        (ImageRequest, "text", "POST /v1/jobs takes it"),
        (ImageRequest, "renditions", "POST /v1/jobs takes it"),
        (ImageRequest, "images", "POST /v1/images/edits takes it"),
        (ImageRequest, "streem", "did you mean stream?"),
        (EditRequest, "image_url", "did you mean images?"),
        (JobRequest, "num_inference_steps", "did you mean steps?"),
        (JobRequest, "output_format", "did you mean format?"),
        (JobRequest, "num_outputs", "did you mean n?"),
        (JobRequest, "response_format", "unknown field response_format"),
        (JobRequest, "service_tier", "did you mean priority?"),
    ],
)
def test_a_name_of_another_interface_is_known(model: type[BaseModel], sent: str, told: str) -> None:
    """Who brings the words of another interface, or of another route, is told the one that means the same here, or who knows it."""
    with pytest.raises(InvalidFieldsError) as caught:
        validated(model, {"prompt": "x", sent: "y"})
    [detail] = [error.detail for error in caught.value.errors if error.param == sent]
    assert detail.endswith(told), detail


def test_collector_keeps_order_and_codes() -> None:
    """The first error decides code and param; each keeps its own."""
    errors = ErrorCollector()
    errors.raise_any()
    with errors.collecting(("webhook",)):
        raise RequestError("forbidden_address", "not public", "webhook")
    errors.add(("size",), "out_of_range", "too large")
    with pytest.raises(InvalidFieldsError) as caught:
        errors.raise_any()
    assert (caught.value.code, caught.value.param) == ("forbidden_address", "webhook")
    assert [error.detail for error in caught.value.errors] == ["webhook: not public", "size: too large"]


def test_many_errors_are_cut() -> None:
    """A hostile request does not make a hostile answer."""
    error = InvalidFieldsError([FieldError((str(i),), "x", "y") for i in range(1000)])
    assert len(error.errors) == 20
    assert "999 more" in error.detail
