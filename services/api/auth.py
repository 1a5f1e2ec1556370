"""Who is asking, and may they? Knows the Authorization header and scopes."""

from __future__ import annotations

from functools import partial
from typing import Literal

import structlog
from flask import Request, g

from services.api.together import Together
from shared.api_keys import SCOPES, ApiKeyText
from shared.db import Database
from shared.errors import RequestError
from shared.lifecycle.keys import find_callers
from shared.lifecycle.tenants import Caller

Scope = Literal["read", "submit", "admin", "operator"]

_ALLOWED = {scope: frozenset(SCOPES[: index + 1]) for index, scope in enumerate(SCOPES)}
"""What each scope of a key allows: itself, and all before it."""
_MOST_AT_ONCE = 64
"""Requests whose keys are looked up by one query: as many as a process works on, by default, and more."""


class Callers:
    """Finds who holds a key, asked anew at every request: a revoked key stops at once. Thread-safe."""

    def __init__(self, db: Database) -> None:
        self.find = Together(partial(find_callers, db), _MOST_AT_ONCE)


def authenticate(callers: Callers, request: Request, needed: Scope) -> Caller:
    """
    The holder of the request's API key.

    Raises:
        RequestError: `unauthorized` without a valid key, `forbidden_scope` if the key may not do this.
    """
    header = request.headers.get("Authorization", "")
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer":
        raise RequestError("unauthorized", "send an API key: Authorization: Bearer glmq_…")
    key = ApiKeyText.parse(token.strip())
    caller = None if key is None else callers.find(key)
    if caller is None:
        # One answer for malformed, unknown, wrong and revoked: a guesser learns nothing.
        raise RequestError("unauthorized", "this API key is not valid")
    require(caller, needed)
    structlog.contextvars.bind_contextvars(tenant_id=caller.tenant_id)
    return caller


def require(caller: Caller, needed: str) -> None:
    """
    Raises:
        RequestError: `forbidden_scope`, the key may not do this.
    """
    if not any(needed in _ALLOWED[scope] for scope in caller.scopes):
        raise RequestError("forbidden_scope", f"this API key lacks the scope {needed}")
    g.needed_scope = max(needed, g.get("needed_scope", needed), key=SCOPES.index)


def needed_scope() -> str:
    """The most that was asked of the key of this request."""
    return str(g.needed_scope)
