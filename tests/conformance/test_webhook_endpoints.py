"""OpenAI's own clients manage webhook endpoints and believe their deliveries, unmodified, against a running stack."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.conftest import HERE, install_python, run_script
from tests.conformance.test_openai import VERSIONS
from tests.stack import Stack

SCRIPT = str(HERE / "openai_webhooks.py")


@pytest.fixture(scope="module")
def own(stack: Stack) -> Stack:
    return stack.as_tenant("openaihooks")


@pytest.fixture(scope="module")
def found(own: Stack, client_cache: Path) -> dict[str, Any]:
    """What the client of the current major found, which alone has endpoints."""
    python = install_python(client_cache, f"openai=={VERSIONS['openai 3']}")
    return run_script([str(python), SCRIPT], own)["endpoints"].get()


def test_an_endpoint_lives_as_its_owner_says(found: dict[str, Any]) -> None:
    """Made, changed, listed and deleted; a create that is repeated with its key is the same endpoint, with the same secret."""
    made = found["made"]
    assert len(base64.b64decode(made["signing_secret"].removeprefix("whsec_"), validate=True)) == 32
    assert found["is_same"]
    assert found["changed"] == ["atelier", True, ["batch.completed", "response.completed", "job.canceled"]]
    assert found["listed"] == [True, False]
    assert {"batch.completed", "response.completed", "job.canceled"} <= set(found["known"])
    assert found["deleted"] == {"id": made["id"], "object": "webhook_endpoint.deleted", "deleted": True}
    assert found["missing"] == "not_found"


def test_a_test_tells_what_the_receiver_said(found: dict[str, Any]) -> None:
    """The client's test arrives as the type that it asked for, and tells the receiver's status."""
    tested = found["tested"]
    assert (tested["object"], tested["success"], tested["status_code"], tested["event_type"]) == (
        "webhook_endpoint.test",
        True,
        204,
        "batch.completed",
    )
    assert found["type"] == "batch.completed"


def test_secrets_while_they_are_rotated(found: dict[str, Any]) -> None:
    """Before, during and after: the first secret, the first two, and the last one alone."""
    assert found["signed"] == [[True, False, False], [True, True, False], [False, False, True]]


@pytest.mark.parametrize("client", ["openai 2", "node"])
def test_the_other_clients_believe_both_signatures(
    client: str, own: Stack, client_cache: Path, node_modules: Path, found: dict[str, Any]
) -> None:
    """The previous major and Node's client unwrap a delivery of the rotation with either secret, and nothing that was changed."""
    delivery = json.dumps(found["delivery"])
    if client == "node":
        script = node_modules / "openai_webhooks.mjs"
        script.write_bytes((HERE / "node" / script.name).read_bytes())
        outcomes = run_script(["node", str(script)], own, node_modules, DELIVERY=delivery)
    else:
        python = install_python(client_cache, f"openai=={VERSIONS[client]}")
        outcomes = run_script([str(python), SCRIPT], own, DELIVERY=delivery)
    assert outcomes["unwrap"].get() == {"type": "job.canceled", "signed": [True, True, False], "forged": False}
