"""
The items of a native batch, as they were sent -> the requests that are kept. All of them are understood, or all wrong members are named.

What takes the network to judge, such as a picture behind a URL, is judged when an item becomes a job (`batch_clerk.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from services.api.batch_answers import JOBS
from services.api.batch_schemas import NativeBatchRequest, window_seconds
from services.api.field_errors import ErrorCollector, FieldError, InvalidFieldsError, Path, from_pydantic, validated
from services.api.new_job import check_request
from services.api.parts import Parts
from services.api.priority import with_allowed_priority
from services.api.schemas import JobRequest
from services.api.webhooks.callbacks import collect_webhook
from shared.lifecycle.batch_values import NewBatch, NewItem
from shared.lifecycle.files import known_pictures
from shared.lifecycle.jobs import known_results
from shared.lifecycle.tenants import Caller
from shared.states import Priority

_MAX_WEBHOOKS = 20
"""Different ones of a request: each costs a look-up of its host."""
_ENOUGH = 200
"""Errors after which nothing more is looked for."""


def native_batch(parts: Parts, caller: Caller, sent: dict[str, Any]) -> NewBatch:
    """
    The batch that a request asks for.

    Raises:
        InvalidFieldsError: names every wrong member, such as `#/items/3/size`.
        NoModelError
    """
    asked = validated(NativeBatchRequest, sent)
    defaults = dict(sent.get("defaults", {}))
    requests = read_items(parts, caller, sent["items"], defaults)
    return NewBatch(
        tenant_id=caller.tenant_id,
        input_file_id=None,
        endpoint=JOBS,
        completion_window=asked.completion_window,
        window_s=window_seconds(asked.completion_window),
        name=asked.name,
        defaults=defaults,
        is_sealed=bool(requests) if asked.sealed is None else asked.sealed,
        items=[NewItem(line, custom_id, request) for line, (custom_id, request) in enumerate(requests.items(), 1)],
        max_failures=asked.max_failures,
        metadata=dict(asked.metadata),
    )


def read_items(parts: Parts, caller: Caller, items: Sequence[Mapping[str, Any]], defaults: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """
    The whole request of each item by its custom id, in order.

    Args:
        items: each of them has been found to be a `BatchItemRequest`.
    Raises:
        InvalidFieldsError
        NoModelError
    """
    reader = _Reader(parts, caller, defaults)
    requests: dict[str, dict[str, Any]] = {}
    for index, item in enumerate(items):
        request = reader.read(index, item)
        if item["custom_id"] in requests:
            reader.refuse(("items", index, "custom_id"), "doubled", "another item of the request has it, too")
        requests[item["custom_id"]] = request
        if reader.has_enough:
            break
    reader.raise_any()
    return requests


class _Reader:
    """Judges the items of one request."""

    def __init__(self, parts: Parts, caller: Caller, defaults: Mapping[str, Any]) -> None:
        self._parts = parts
        self._caller = caller
        self._defaults = defaults
        self._info = parts.model.get()
        # By path: what is wrong with the defaults is told once, and not for every item.
        self._errors: dict[tuple[Path, str], FieldError] = {}
        self._webhooks: dict[str, tuple[FieldError, ...]] = {}
        self._pictures: list[tuple[str | tuple[str, int], Path]] = []

    @property
    def has_enough(self) -> bool:
        return len(self._errors) >= _ENOUGH

    def read(self, index: int, item: Mapping[str, Any]) -> dict[str, Any]:
        """The whole request of an item; what is wrong with it is noted."""
        # Without a word, it is bulk work, as a line of a file is.
        request: dict[str, Any] = {"priority": Priority.BULK, **self._defaults, **item}
        if "metadata" in item and self._defaults.get("metadata"):
            request["metadata"] = {**self._defaults["metadata"], **item["metadata"]}
        for wrong in self._wrong(index, item, request):
            self._note(index, item, wrong)
        return request

    def refuse(self, path: Path, reason: str, detail: str) -> None:
        """Note an error."""
        name = ".".join(map(str, path))
        self._errors[path, reason] = FieldError(path, reason, f"{name}: {detail}")

    def raise_any(self) -> None:
        """
        Look for the pictures that were named.

        Raises:
            InvalidFieldsError: something is wrong.
        """
        files = {name for name, _ in self._pictures if isinstance(name, str)}
        results = {name for name, _ in self._pictures if isinstance(name, tuple)}
        db, tenant_id = self._parts.db, self._caller.tenant_id
        found = {*known_pictures(db, tenant_id, files), *known_results(db, tenant_id, results)}
        for name, path in self._pictures:
            if name not in found:
                what = "file_id names no source image" if isinstance(name, str) else "job_id and index name no finished image"
                self.refuse(path, "invalid_request", f"{what} of yours")
        if self._errors:
            raise InvalidFieldsError(list(self._errors.values()))

    def _note(self, index: int, item: Mapping[str, Any], wrong: FieldError) -> None:
        place = self._place(index, item, wrong.path)
        prefix = ".".join(map(str, place[: len(place) - len(wrong.path)]))
        self._errors.setdefault((place, wrong.reason), replace(wrong, path=place, detail=f"{prefix}.{wrong.detail}"))

    def _place(self, index: int, item: Mapping[str, Any], path: Path) -> Path:
        is_inherited = bool(path) and path[0] not in item and path[0] in self._defaults
        return ("defaults", *path) if is_inherited else ("items", index, *path)

    def _wrong(self, index: int, item: Mapping[str, Any], request: dict[str, Any]) -> Iterator[FieldError]:
        try:
            asked = JobRequest.model_validate(request)
        except ValidationError as error:
            yield from from_pydantic(error, JobRequest, request).errors
            return
        errors = ErrorCollector()
        with errors.collecting(("priority",)):
            with_allowed_priority(self._caller, asked)
        check_request(asked, self._info, 0, errors)
        try:
            errors.raise_any()
        except InvalidFieldsError as error:
            yield from error.errors
        if asked.webhook is not None:
            yield from self._wrong_webhook(asked, request["webhook"])
        for place, source in enumerate(asked.images):
            path = self._place(index, item, ("images", place))
            if source.file_id is not None:
                self._pictures.append((source.file_id, path))
            elif source.job_id is not None:
                self._pictures.append(((source.job_id, source.index), path))

    def _wrong_webhook(self, asked: JobRequest, sent: object) -> tuple[FieldError, ...]:
        key = json.dumps(sent, sort_keys=True)
        if key not in self._webhooks and len(self._webhooks) >= _MAX_WEBHOOKS:
            return (FieldError(("webhook",), "too_many", f"webhook: a request may name {_MAX_WEBHOOKS} different ones"),)
        if key not in self._webhooks:
            errors = ErrorCollector()
            collect_webhook(self._parts, self._caller.tenant_id, asked.webhook, sent, errors)
            try:
                errors.raise_any()
                self._webhooks[key] = ()
            except InvalidFieldsError as error:
                self._webhooks[key] = error.errors
        return self._webhooks[key]
