"""How urgent the jobs of a key may be. Knows no route."""

from __future__ import annotations

from typing import TypeVar

from services.api.schemas import JobRequest, RedecodeRequest
from shared.errors import RequestError
from shared.lifecycle.tenants import Caller
from shared.states import Priority

Asked = TypeVar("Asked", JobRequest, RedecodeRequest)

_URGENCY = list(Priority)


def with_allowed_priority(caller: Caller, asked: Asked) -> Asked:
    """
    The request with a priority that the caller's key may ask for: one that names none goes as urgently as usual, or as the key may.

    Raises:
        RequestError: `forbidden_priority`, it names a more urgent one.
    """
    if _URGENCY.index(asked.priority) >= _URGENCY.index(caller.max_priority):
        return asked
    if "priority" in asked.model_fields_set:
        detail = f"priority: this API key may ask for {caller.max_priority} at most (got {asked.priority})"
        raise RequestError("forbidden_priority", detail, "priority")
    return asked.model_copy(update={"priority": caller.max_priority})
