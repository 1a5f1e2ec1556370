"""
What is wrong with which field of a request, in words for its sender. Knows Pydantic's errors; knows no HTTP.

A path is the way through the request as it was sent: `("images", 0, "url")`.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from shared.errors import RequestError

Model = TypeVar("Model", bound=BaseModel)

Path = tuple[str | int, ...]

_UNKNOWN = "unknown_field"
_MAX_ECHO = 40
"""Characters of a wrong value that an error repeats."""
_MAX_ERRORS = 20
"""Enough to mend a request; a hostile one could have a million."""

_ONE_MEANING = (
    ("steps", "num_inference_steps", "num_steps", "inference_steps", "sampling_steps"),
    ("n", "num_outputs", "num_images", "num_images_per_prompt", "batch_size", "samples"),
    ("guidance_scale", "guidance", "cfg", "cfg_scale"),
    ("format", "output_format", "file_format"),
    ("output_quality", "output_compression", "format_options"),
    ("previews", "partial_images"),
    ("size", "resolution", "image_size", "width", "height", "preset", "aspect_ratio"),
    ("images", "image", "input_image", "input_images", "init_image", "image_url", "image_urls"),
    ("lora", "loras"),
    ("webhook", "webhook_url", "callback_url"),
    ("priority", "service_tier"),
)
"""Names of the same thing in the interfaces that are spoken here, and in others like them; the first that a request has is suggested."""


@dataclass(frozen=True)
class FieldError:
    """
    One wrong field.

    Args:
        reason: a word for programs, such as `missing`.
        detail: a sentence for people; names the field and the value.
        problem: entry of the problem catalogue.
        is_argument: it came behind the question mark, not in the body.
    """

    path: Path
    reason: str
    detail: str
    problem: str = "invalid_request"
    is_argument: bool = False

    @property
    def param(self) -> str:
        return _dotted(self.path)

    def within(self, *place: str | int) -> FieldError:
        """The same error, named from further out: `size` within `body` is `body.size`."""
        prefix = _dotted(place)
        if self.reason == _UNKNOWN:
            detail = re.sub("(unknown field |did you mean )", rf"\1{prefix}.", self.detail)
        else:
            detail = f"{prefix}.{self.detail}" if self.path else f"{prefix}: {self.detail}"
        return replace(self, path=(*place, *self.path), detail=detail)

    def at(self, path: Path) -> FieldError:
        """The same error under the name that the client used."""
        return replace(self, path=path, detail=self.detail.replace(self.param, _dotted(path), 1))


class InvalidFieldsError(RequestError):
    """Some fields are wrong; the first one gives the answer its code, detail and param."""

    def __init__(self, errors: Sequence[FieldError]) -> None:
        # Two checks may say the same: both sides of "1x1" are too short, and are one field.
        errors = tuple(dict.fromkeys(errors))
        first = errors[0]
        more = f" (and {len(errors) - 1} more, see errors)" if len(errors) > 1 else ""
        super().__init__(first.problem, first.detail + more, first.param or None)
        self.errors = errors[:_MAX_ERRORS]


class ErrorCollector:
    """Gathers what several checks of one request refuse, so that its sender hears of everything at once."""

    def __init__(self) -> None:
        self._errors: list[FieldError] = []

    def add(self, path: Path, reason: str, detail: str, problem: str = "invalid_request") -> None:
        self._errors.append(FieldError(path, reason, _named(path, detail), problem))

    @contextmanager
    def collecting(self, path: Path) -> Iterator[None]:
        """Note a RequestError of the block as an error of the field at `path`."""
        try:
            yield
        except RequestError as error:
            named = error.detail if error.detail.startswith(_dotted(path)) else _named(path, error.detail)
            self._errors.append(FieldError(path, error.code, named, error.code))

    def raise_any(self) -> None:
        """
        Raises:
            InvalidFieldsError: something was collected.
        """
        if self._errors:
            raise InvalidFieldsError(self._errors)


def validated(model: type[Model], sent: dict[str, Any]) -> Model:
    """
    What was sent, as `model`.

    Raises:
        InvalidFieldsError: names every wrong field.
    """
    try:
        return model.model_validate(sent)
    except ValidationError as error:
        raise from_pydantic(error, model, sent) from None


def from_pydantic(error: ValidationError, model: type[BaseModel], sent: object) -> InvalidFieldsError:
    """Say what Pydantic found, in terms of what was sent."""
    found = error.errors(include_url=False, include_context=False)
    return InvalidFieldsError([_field_error(item["type"], item["msg"], item["input"], item["loc"], model, sent) for item in found])


def _field_error(kind: str, message: str, value: object, loc: Path, model: type[BaseModel], sent: object) -> FieldError:
    path = _sent_path(loc, sent)
    name = _dotted(path)
    if kind == "extra_forbidden":
        return FieldError(path, _UNKNOWN, f"unknown field {name}{_suggestion(path, model)}")
    echo = "" if kind == "missing" else _echo(value)
    return FieldError(path, kind, _named(path, f"{message[:1].lower()}{message[1:]}{echo}"))


def _sent_path(loc: Path, sent: object) -> Path:
    """
    The part of a Pydantic location that exists in what was sent, and the first step beyond it.

    Pydantic's locations go on where a customer's short form ends: a webhook sent as a plain URL is checked as `webhook.url`.
    """
    path: Path = ()
    for step in loc:
        if isinstance(sent, dict):
            path, sent = (*path, step), sent.get(step)
        elif isinstance(sent, list) and isinstance(step, int) and step < len(sent):
            path, sent = (*path, step), sent[step]
        else:
            break
    return path


def _named(path: Path, detail: str) -> str:
    """What is said of a field; of the whole request, as of two fields that do not fit each other, without a name."""
    return f"{_dotted(path)}: {detail}" if path else detail


def _dotted(path: Path) -> str:
    return ".".join(_short(str(step)) for step in path)


def _suggestion(path: Path, model: type[BaseModel]) -> str:
    *place, sent = map(str, path)
    names = _field_names(path[:-1], model)
    # Before what is only spelled alike: of `steps` that is OpenAI's `style`.
    meant = next((name for group in _ONE_MEANING if sent in group for name in group if name in names), None)
    if meant is None and not place and (route := getattr(model, "elsewhere", {}).get(sent)):
        return f"; {route} takes it"
    close = [meant] if meant else difflib.get_close_matches(sent[:_MAX_ECHO], sorted(names), n=1)
    return f"; did you mean {'.'.join([*place, close[0]])}?" if close else ""


def _field_names(place: Path, model: type[BaseModel]) -> set[str]:
    """The fields that may stand at a place of a request, whichever of several forms it has."""
    whole = _schema(model)
    schemas = _alternatives(whole, whole)
    for step in place:
        inner = [schema.get("items") if isinstance(step, int) else schema.get("properties", {}).get(step) for schema in schemas]
        schemas = [found for schema in inner if schema is not None for found in _alternatives(schema, whole)]
    return {name for schema in schemas for name in schema.get("properties", {})}


def _alternatives(schema: dict[str, Any], whole: dict[str, Any]) -> list[dict[str, Any]]:
    """The schema, or all that it is one of."""
    if "$ref" in schema:
        return _alternatives(whole["$defs"][schema["$ref"].rpartition("/")[2]], whole)
    options = [option for choice in ("anyOf", "oneOf", "allOf") for option in schema.get(choice, ())]
    return [schema, *(found for option in options for found in _alternatives(option, whole))]


@functools.cache
def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema()


def _echo(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return f" (got {str(value).lower().replace('none', 'null')})"
    # Long text is not repeated: it may be a whole prompt.
    if isinstance(value, int | float | str) and len(repr(value)) <= _MAX_ECHO:
        return f" (got {value!r})"
    return ""


def _short(text: str) -> str:
    return text if len(text) <= _MAX_ECHO else text[: _MAX_ECHO - 1] + "…"
