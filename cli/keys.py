"""`glmq keys` and `glmq tenants`: what may be done with a service, and by whom. An HTTP client, like the rest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cli.client import ApiError, Client
from cli.generate import connect

keys = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)
tenants = typer.Typer(help="Make tenants and set their limits; for operators.", no_args_is_help=True)
out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

LIMITS = ("max_queued", "max_running", "requests_per_minute", "gpu_seconds_per_day", "results_kept_s", "live_batches")
_PAGE = 100

TenantOption = Annotated[str | None, typer.Option(help="Whose keys, by name; for operators. [default: the tenant of your key]")]


@keys.command(name="create")
def create_key(
    scope: Annotated[str, typer.Option(help="read, submit (also read), admin (also manage keys) or operator (also manage tenants).")],
    name: Annotated[str, typer.Option(help="Tells keys apart.")] = "",
    tenant: TenantOption = None,
    max_priority: Annotated[
        str, typer.Option(help="The most urgent lane its jobs may take: interactive, standard or bulk.")
    ] = "interactive",
) -> None:
    """Make a key and print it: the only time that it is shown."""
    request = {"scope": scope, "name": name, "max_priority": max_priority} | ({} if tenant is None else {"tenant": tenant})
    with _client() as client:
        made = client.post("/v1/api_keys", request)
    # The key alone on stdout, so that a script can take it; not by rich, which might wrap it.
    print(made["key"])
    err.print(f"{made['id']}, scope {made['scope']}. It is stored as a hash and cannot be shown again.", markup=False)


@keys.command(name="list")
def list_keys(tenant: TenantOption = None) -> None:
    """Show the keys, newest first, without their secrets."""
    with _client() as client:
        found = list(_all(client, "/v1/api_keys", {} if tenant is None else {"tenant": tenant}))
    table = Table("id", "begins with", "name", "scope", "priority", "made", "last used", "state")
    for key in found:
        state = f"revoked {key['revoked_at']}" if key["revoked_at"] else "works"
        used = key["last_used_at"] or "never"
        table.add_row(key["id"], key["prefix"], key["name"], key["scope"], key["max_priority"], key["created_at"], used, state)
    Console(width=None if out.is_terminal else 200).print(table)


@keys.command(name="revoke")
def revoke_key(
    key: Annotated[str, typer.Argument(help="Its id, or how it begins: key_… or glmq_….")],
    tenant: TenantOption = None,
) -> None:
    """Make a key open nothing any more, at once."""
    # A whole key is taken too: whoever has a leaked one at hand should not have to search for its id.
    key_id = f"key_{key.split('_')[1]}" if key.startswith("glmq_") else key
    with _client() as client:
        revoked = client.delete(f"/v1/api_keys/{key_id}", {} if tenant is None else {"tenant": tenant})
    out.print(f"{revoked['id']} is revoked", markup=False)


@tenants.command(name="create")
def create_tenant(
    name: Annotated[str, typer.Argument(help="Its name; no other tenant has it.")],
) -> None:
    """Make a tenant."""
    with _client() as client:
        made = client.post("/v1/tenants", {"name": name})
    out.print(f"{made['id']} {made['name']}. Its first key: glmq keys create --scope admin --tenant '{name}'", markup=False)


@tenants.command(name="list")
def list_tenants() -> None:
    """Show the tenants and their own limits."""
    with _client() as client:
        _show_tenants(list(_all(client, "/v1/tenants", {})))


@tenants.command(name="limit")
def limit_tenant(
    name: Annotated[str, typer.Argument(help="Name of the tenant.")],
    max_queued: Annotated[str | None, typer.Option(help="Jobs that have not begun.")] = None,
    max_running: Annotated[str | None, typer.Option(help="Layouts and images in hand at once.")] = None,
    requests_per_minute: Annotated[str | None, typer.Option(help="Requests that make jobs.")] = None,
    gpu_seconds_per_day: Annotated[str | None, typer.Option(help="Seconds of workers, from midnight to midnight UTC.")] = None,
    results_kept_s: Annotated[str | None, typer.Option(help="Seconds after its end until a job is erased that does not say it.")] = None,
    live_batches: Annotated[str | None, typer.Option(help="Batches that have not ended.")] = None,
) -> None:
    """Set limits: a number, 0 for none, or "default" for the service's own. What is not named stays."""
    values = (max_queued, max_running, requests_per_minute, gpu_seconds_per_day, results_kept_s, live_batches)
    given = dict(zip(LIMITS, values, strict=True))
    with _client() as client:
        limits = {limit: _number(limit, value) for limit, value in given.items() if value is not None}
        found = client.get("/v1/tenants", {"name": name})["data"]
        if not found:
            raise ApiError(f"there is no tenant {name}")
        _show_tenants([client.patch(f"/v1/tenants/{found[0]['id']}", {"limits": limits})])


def _number(limit: str, text: str) -> float | int | None:
    if text == "default":
        return None
    try:
        return float(text) if limit == "gpu_seconds_per_day" else int(text)
    except ValueError:
        raise ApiError(f"--{limit.replace('_', '-')} should be a number, or default (got {text})") from None


def _show_tenants(found: list[dict[str, Any]]) -> None:
    table = Table("id", "name", *(limit.replace("_", " ") for limit in LIMITS))
    for tenant in found:
        table.add_row(tenant["id"], tenant["name"], *(_limit_text(tenant["limits"][limit]) for limit in LIMITS))
    Console(width=None if out.is_terminal else 200).print(table)


def _limit_text(value: float | int | None) -> str:
    if value is None:
        return "default"
    return f"{value:g}" if value else "none"


def _all(client: Client, path: str, query: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Every entry of a list, page after page."""
    after: dict[str, str] = {}
    while True:
        page = client.get(path, {**query, **after, "limit": str(_PAGE)})
        yield from page["data"]
        if not page["has_more"]:
            return
        after = {"after": page["last_id"]}


@contextmanager
def _client() -> Iterator[Client]:
    """The service; what it refuses becomes a message and an exit code."""
    try:
        with connect() as client:
            yield client
    except ApiError as error:
        err.print(f"glmq: {error}", markup=False)
        raise typer.Exit(1) from None
