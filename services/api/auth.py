"""Who is asking, and may they? Knows the Authorization header and scopes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal, TypeVar

import structlog
from flask import Request, g
from werkzeug.exceptions import HTTPException

from services.api.together import Together
from shared.api_keys import SCOPES, ApiKeyText
from shared.db import Database, DatabaseDownError
from shared.errors import GlmqError, RequestError
from shared.lifecycle.keys import find_callers
from shared.lifecycle.tenants import Caller

Result = TypeVar("Result")
Scope = Literal["read", "submit", "admin", "operator"]

_ALLOWED = {scope: frozenset(SCOPES[: index + 1]) for index, scope in enumerate(SCOPES)}
"""What each scope of a key allows: itself, and all before it."""
_KNOWN_S = 10.0
"""How long a caller is remembered: bounds how late `last_used_at` is, which is written when one is found."""
_MAX_KNOWN = 10_000
_MOST_AT_ONCE = 64
"""Requests whose keys are looked up by one query: as many as a process works on, by default, and more."""


class Callers:
    """Finds who holds a key. Asked anew at every request, or at the write that it is for: a revoked key stops at once. Thread-safe."""

    def __init__(self, db: Database) -> None:
        self._find = Together(partial(find_callers, db), _MOST_AT_ONCE)
        self._known: dict[ApiKeyText, tuple[float, Caller]] = {}

    def find(self, key: ApiKeyText) -> Caller | None:
        """The holder of a key, or None."""
        caller = self._find(key)
        if caller is not None:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            self._known[key] = (time.monotonic() + _KNOWN_S, replace(caller, is_recalled=True))
        return caller

    def recall(self, key: ApiKeyText) -> Caller | None:
        """The holder of a key as he was found a moment ago; he may have lost it since."""
        until, caller = self._known.get(key, (0.0, None))
        return caller if time.monotonic() < until else None


class UnsureCallerError(GlmqError):
    """What was found of the caller a moment ago will not do for this: he has to be found anew."""


def require_fresh(caller: Caller) -> None:
    """
    Raises:
        UnsureCallerError: the caller is a recalled one.
    """
    if caller.is_recalled:
        raise UnsureCallerError(caller.key_id)


def as_caller(callers: Callers, request: Request, needed: Scope, work: Callable[[Caller], Result]) -> tuple[Caller, Result]:
    """
    Do something that writes for the holder of the request's API key.

    Args:
        work: is given the caller as he was a moment ago, if that is known. What it then does must come to nothing unless the ledger still
            has the same `stamp`; if it raises anything, it is called once more with the caller as he is now.
    Raises: as `authenticate`, and as `work`.
    """
    key = _key_of(request)
    recalled = None if key is None else callers.recall(key)
    if recalled is not None:
        try:
            return recalled, work(_admitted(recalled, needed))
        except DatabaseDownError:
            # It may have been written.
            raise
        except (GlmqError, HTTPException):
            pass
    caller = authenticate(callers, request, needed)
    return caller, work(caller)


def authenticate(callers: Callers, request: Request, needed: Scope) -> Caller:
    """
    The holder of the request's API key.

    Raises:
        RequestError: `unauthorized` without a valid key, `forbidden_scope` if the key may not do this.
    """
    key = _key_of(request)
    caller = None if key is None else callers.find(key)
    if caller is None:
        # One answer for malformed, unknown, wrong and revoked: a guesser learns nothing.
        raise RequestError("unauthorized", "this API key is not valid")
    return _admitted(caller, needed)


def _key_of(request: Request) -> ApiKeyText | None:
    header = request.headers.get("Authorization", "")
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer":
        raise RequestError("unauthorized", "send an API key: Authorization: Bearer glmq_…")
    return ApiKeyText.parse(token.strip())


def _admitted(caller: Caller, needed: Scope) -> Caller:
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
