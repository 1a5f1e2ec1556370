"""What clients send and receive about API keys."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from services.api.fields import PageQuery, Sent
from services.api.list_answer import ListAnswer
from shared.states import Priority

ScopeName = Literal["read", "submit", "admin", "operator"]

TENANT = "Id or name of another tenant; for operators."


class ApiKeyRequest(Sent):
    """A key to be made."""

    scope: ScopeName = Field(
        description="`read`: look. `submit`: also submit, cancel and delete. `admin`: also manage the tenant's keys. `operator`: also"
        " manage tenants; only operators make such keys."
    )
    name: str = Field(default="", max_length=100, description="Yours; tells keys apart.")
    # Not strict: an enum is what we make of the text.
    max_priority: Priority = Field(
        default=Priority.INTERACTIVE, strict=False, description="The most urgent lane that jobs of this key may ask for."
    )
    tenant: str | None = Field(default=None, max_length=100, description=TENANT)


class TenantQuery(Sent):
    """Whose keys."""

    tenant: str | None = Field(default=None, max_length=100, description=TENANT)


class ApiKeyListQuery(PageQuery, TenantQuery):
    """How to page through keys."""


class ApiKeyAnswer(BaseModel):
    """A key, without its secret."""

    id: str
    object: Literal["api_key"]
    name: str
    prefix: str = Field(description="How the key begins; enough to recognise it.")
    scope: ScopeName
    max_priority: Priority
    created_at: str
    last_used_at: str | None = Field(description="To the minute.")
    revoked_at: str | None


class NewApiKeyAnswer(ApiKeyAnswer):
    """A new key: the only answer that has all of it."""

    key: str = Field(description="The key. It is stored as a hash, and cannot be shown again.")


class ApiKeyListAnswer(ListAnswer[ApiKeyAnswer]):
    """A page of keys."""
