"""
Every answer of every test held against the OpenAPI document: its status is declared for its route, and so are those of its headers that
the document knows at all.

A client that was generated from the document fails on a status that is not in it, and never sees a header.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from apiflask import APIFlask
from flask import Response, request

_ANYWHERE = (405, 500)
"""Of a method that the document does not have, and of a fault of ours."""

Declared = dict[tuple[str, str], dict[str, set[str]]]
"""By method and path, the names of the headers of each status."""


class AnswersDeclared:
    """Looks at every answer of an app, from now on."""

    def __init__(self, app: APIFlask) -> None:
        self._lacking: list[str] = []
        declared: Declared = {}

        @app.after_request
        def look(response: Response) -> Response:
            if request.url_rule is not None and request.method not in ("HEAD", "OPTIONS") and response.status_code not in _ANYWHERE:
                self._lacking.extend(_lacking(declared, request.method.lower(), request.url_rule.rule, response))
            return response

        # After the hook, which cannot be added once there was a request, and the document is read by one.
        declared |= declared_by(app)

    def check(self) -> None:
        """Fails if the document lacked anything since the last time."""
        lacking = sorted(set(self._lacking))
        self._lacking.clear()
        assert not lacking, f"the OpenAPI document lacks: {', '.join(lacking)}"


def _lacking(declared: Declared, method: str, rule: str, response: Response) -> Iterator[str]:
    statuses = declared.get((method, re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule)))
    if statuses is None:
        return
    answer = f"{method} {rule} {response.status_code}"
    if str(response.status_code) not in statuses:
        yield answer
        return
    known = set().union(*(names for found in declared.values() for names in found.values()))
    for name in {name.lower() for name, _ in response.headers} & known - statuses[str(response.status_code)]:
        yield f"{answer}: {name}"


_ALL: list[Declared] = []


def declared_by(app: APIFlask) -> Declared:
    """What the document says; it is made once for all apps of a process, which are alike."""
    if not _ALL:
        spec: dict[str, Any] = app.test_client().get("/openapi.json").get_json()
        _ALL.append(
            {
                (method, path): {
                    status: {name.lower() for name in response.get("headers", {})} for status, response in operation["responses"].items()
                }
                for path, item in spec["paths"].items()
                for method, operation in item.items()
                if "responses" in operation
            }
        )
    return _ALL[0]
