"""
The service as unmodified third-party clients see it: a running stack, which the stories of e2e/ use too, and each client in an
environment of its own. Each file has tenants of its own, and depends on nothing that others left.

Clients are installed once into pytest's cache, from the registries, at the versions that are pinned here and in `node/package-lock.json`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.embedded.ports import free_port
from tests.stack import Stack, wait_until

HERE = Path(__file__).parent
_UV = Path(sys.executable).with_name("uv")
_INSTALL_S = 240


@pytest.fixture(scope="session")
def hasty_url(stack: Stack) -> str:
    """A second API process of the stack, which holds requests for a moment only."""
    return another_api(stack, "hasty_api", GLMQ_SYNC_MAX_S="0.3")


@pytest.fixture(scope="session")
def lively_url(stack: Stack) -> str:
    """A third one, which keeps the requests that it holds alive."""
    return another_api(stack, "lively_api", GLMQ_SYNC_KEEP_ALIVE_S="0.2")


def another_api(stack: Stack, name: str, **settings: str) -> str:
    """Where one more API process of the stack answers."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    stack.start(name, "api", GLMQ_API_PORT=str(port), GLMQ_PUBLIC_URL=url, **settings)

    def answers() -> bool:
        try:
            return httpx.get(f"{url}/healthz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    wait_until(answers)
    return url


@pytest.fixture(scope="session")
def client_cache(pytestconfig: pytest.Config) -> Path:
    """Where clients are installed; kept between runs."""
    assert pytestconfig.cache is not None
    return pytestconfig.cache.mkdir("clients")


def install_python(cache: Path, *requirements: str) -> Path:
    """The Python of an environment with these packages and no other."""
    folder = cache / ("py-" + hashlib.sha256(" ".join([sys.version, *requirements]).encode()).hexdigest()[:16])
    with _alone(cache, folder.name):
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            _run([str(_UV), "venv", "-q", "--python", sys.executable, str(folder)])
            _run([str(_UV), "pip", "install", "-q", "--python", str(folder / "bin" / "python"), *requirements])
            (folder / "done").touch()
    return folder / "bin" / "python"


@pytest.fixture(scope="session")
def node_modules(client_cache: Path) -> Path:
    """A folder with the clients of `node/package-lock.json`, for scripts in it to require."""
    lock = (HERE / "node" / "package-lock.json").read_bytes()
    folder = client_cache / ("node-" + hashlib.sha256(lock).hexdigest()[:16])
    with _alone(client_cache, folder.name):
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for name in ("package.json", "package-lock.json"):
                shutil.copy(HERE / "node" / name, folder)
            _run(["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=folder)
            (folder / "done").touch()
    return folder


@dataclass(frozen=True)
class Outcome:
    """What a scenario of a client's script found, or how it failed."""

    values: dict[str, Any] | None
    error: str | None

    def get(self) -> dict[str, Any]:
        """What it found; fails with the script's own words."""
        assert self.error is None, self.error
        assert self.values is not None
        return self.values


def run_script(command: list[str], stack: Stack, cwd: Path | None = None, **environment: str) -> dict[str, Outcome]:
    """
    Run a script that drives a client: it prints a line of JSON for each scenario, `{"name", "values" | "error"}`.

    The URL and the tenant's key are in its environment, as `BASE_URL` and `API_KEY`.
    """
    # Nothing of ours: the client must not find this project's packages, nor its settings.
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    given = {"BASE_URL": f"{stack.url}/v1", "API_KEY": stack.api_key, **environment}
    done = subprocess.run(command, cwd=cwd, env={**kept, **given}, capture_output=True, text=True, timeout=240)
    found = {}
    for text in done.stdout.splitlines():
        line = json.loads(text)
        found[line["name"]] = Outcome(line.get("values"), line.get("error"))
    assert done.returncode == 0, done.stderr[-12_000:]
    return found


class _alone:  # noqa: N801 - used like a function
    """One xdist worker at a time."""

    def __init__(self, cache: Path, name: str) -> None:
        self._path = cache / f"{name}.lock"

    def __enter__(self) -> None:
        self._file = self._path.open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _run(command: list[str], cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=_INSTALL_S)
    assert done.returncode == 0, f"{command}: {done.stdout[-1000:]}{done.stderr[-2000:]}"
