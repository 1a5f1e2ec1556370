"""The one form of every list. Knows no kind of thing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, Field

Item = TypeVar("Item")


class ListAnswer(BaseModel, Generic[Item]):
    """Things in their order; where there may be many, a page of them."""

    object: Literal["list"]
    data: list[Item]
    has_more: bool = Field(description="Others follow behind `last_id`.")
    first_id: str | None
    last_id: str | None


def list_body(data: Sequence[Any], has_more: bool = False, id_of: Callable[[Any], str] = itemgetter("id")) -> dict[str, Any]:
    """
    The body of a list.

    Args:
        id_of: what `after` would name an entry by.
    """
    first_id, last_id = (id_of(data[0]), id_of(data[-1])) if data else (None, None)
    return {"object": "list", "data": data, "has_more": has_more, "first_id": first_id, "last_id": last_id}
