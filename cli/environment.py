"""The settings that a stack's processes get, and those that a client beside the stack needs. Starts nothing."""

from __future__ import annotations

import base64
import os
import secrets
import string
from collections.abc import Mapping
from pathlib import Path

from cli.data_folder import StackState
from infra.embedded.memory import Memory
from infra.embedded.server import Server

_KEY_ID = string.ascii_lowercase + string.digits
_KEY_SECRET = string.ascii_letters + string.digits

_EXPORTED = (
    "GLMQ_CHECKPOINT",
    "GLMQ_DATABASE_URL",
    "GLMQ_REDIS_URL",
    "GLMQ_S3_ENDPOINT",
    "GLMQ_S3_ACCESS_KEY",
    "GLMQ_S3_SECRET_KEY",
    "GLMQ_S3_BUCKET",
)


def role_environment(
    servers: list[Server], memory: Memory, checkpoint: str, api_port: int, environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Everything of the caller's environment, and over it what this stack decides."""
    settings = {
        "GLMQ_SECRET_KEY": environ.get("GLMQ_SECRET_KEY") or memory.recall("stack", "secret_key", _new_secret_key),
        "GLMQ_CHECKPOINT": checkpoint,
        "GLMQ_API_HOST": "127.0.0.1",
        "GLMQ_API_PORT": str(api_port),
        "GLMQ_PUBLIC_URL": environ.get("GLMQ_PUBLIC_URL") or f"http://127.0.0.1:{api_port}",
        "GLMQ_BOOTSTRAP_API_KEY": environ.get("GLMQ_BOOTSTRAP_API_KEY") or memory.recall("stack", "api_key", _new_api_key),
        # One thread is faster than several for nets as small as the miniature, and processes share the cores.
        "OMP_NUM_THREADS": environ.get("OMP_NUM_THREADS", "1"),
        # A log line must reach its file before a crash does.
        "PYTHONUNBUFFERED": "1",
    }
    for server in servers:
        settings |= server.env()
    if is_folder(checkpoint):
        settings["HF_HUB_OFFLINE"] = "1"
    return {**environ, **settings}


def exports(role_settings: Mapping[str, str]) -> dict[str, str]:
    """What `glmq status --env` prints for a shell beside the stack."""
    own = {
        "GLMQ_URL": f"http://{role_settings['GLMQ_API_HOST']}:{role_settings['GLMQ_API_PORT']}",
        "GLMQ_API_KEY": role_settings["GLMQ_BOOTSTRAP_API_KEY"],
    }
    return own | {name: role_settings[name] for name in _EXPORTED if name in role_settings}


def without_own(environ: Mapping[str, str], state: StackState | None) -> dict[str, str]:
    """
    The caller's environment without what it took from this stack by `eval "$(glmq status --env)"`.

    Otherwise the next `glmq up` would look for its own servers as for somebody else's.
    """
    if state is None:
        return dict(environ)
    own = {name: state.exports[name] for name in state.own_settings if name in state.exports}
    return {name: value for name, value in environ.items() if own.get(name) != value}


def is_folder(checkpoint: str) -> bool:
    """Is the checkpoint a folder, and not the id of a model hub?"""
    return Path(checkpoint).is_absolute()


def _new_secret_key() -> str:
    return base64.b64encode(secrets.token_bytes(32)).decode()


def _new_api_key() -> str:
    key_id = "".join(secrets.choice(_KEY_ID) for _ in range(12))
    secret = "".join(secrets.choice(_KEY_SECRET) for _ in range(43))
    return f"glmq_{key_id}_{secret}"
