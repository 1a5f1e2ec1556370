"""The settings of roles and of clients."""

from __future__ import annotations

import base64
import shlex
import subprocess
from pathlib import Path

from cli.data_folder import StackState
from cli.environment import exports, role_environment, without_own
from cli.status import shell_exports
from infra.embedded.memory import Memory
from infra.embedded.server import ExternalServer
from shared.api_keys import ApiKeyText

REDIS = ExternalServer("redis", "GLMQ_REDIS_URL", {"GLMQ_REDIS_URL": "redis://:it's@127.0.0.1:1/0"}, 6379)


def settings(tmp_path: Path, checkpoint: str = "/model", environ: dict[str, str] | None = None) -> dict[str, str]:
    return role_environment([REDIS], Memory(tmp_path / "memory.json"), checkpoint, 8080, environ or {})


def test_keys_are_made_once_and_have_the_services_form(tmp_path: Path) -> None:
    """The API key is one that the service takes, the secret key is 32 bytes, and both are the same in the next run."""
    first = settings(tmp_path)

    assert ApiKeyText.parse(first["GLMQ_BOOTSTRAP_API_KEY"]) is not None
    assert len(base64.b64decode(first["GLMQ_SECRET_KEY"], validate=True)) == 32
    assert settings(tmp_path) == first


def test_other_settings_of_the_caller_pass_through(tmp_path: Path) -> None:
    """What this stack does not decide is left as the caller set it."""
    told = settings(tmp_path, environ={"GLMQ_EGRESS_ALLOW": "10.0.0.0/8", "GLMQ_REDIS_URL": "redis://elsewhere", "OMP_NUM_THREADS": "4"})

    assert told["GLMQ_EGRESS_ALLOW"] == "10.0.0.0/8"
    assert told["OMP_NUM_THREADS"] == "4"
    assert told["GLMQ_REDIS_URL"] == REDIS.env()["GLMQ_REDIS_URL"]


def test_only_a_folder_forbids_downloads(tmp_path: Path) -> None:
    """With a checkpoint on disk nothing asks the hub; with a hub id it must."""
    assert settings(tmp_path, "/model")["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in settings(tmp_path, "zai-org/GLM-Image")


def test_a_shell_reads_the_exports_back(tmp_path: Path) -> None:
    """Values with quotation marks and dollar signs survive `eval`."""
    state = StackState("ready", exports=exports(settings(tmp_path, "/my $model's folder")))

    script = f'eval {shlex.quote(shell_exports(state))}; printf "%s\\n" "$GLMQ_CHECKPOINT" "$GLMQ_REDIS_URL" "$GLMQ_URL"'
    told = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True).stdout.splitlines()

    assert told == ["/my $model's folder", "redis://:it's@127.0.0.1:1/0", "http://127.0.0.1:8080"]


def test_a_stacks_own_exports_do_not_come_back_as_settings() -> None:
    """After eval "$(glmq status --env)" the next `glmq up` does not take its own servers for somebody else's."""
    state = StackState("stopped", exports={"GLMQ_REDIS_URL": "redis://own", "GLMQ_CHECKPOINT": "/model"}, own_settings=["GLMQ_REDIS_URL"])

    assert without_own({"GLMQ_REDIS_URL": "redis://own", "GLMQ_CHECKPOINT": "/model", "PATH": "/bin"}, state) == {
        "GLMQ_CHECKPOINT": "/model",
        "PATH": "/bin",
    }
    assert without_own({"GLMQ_REDIS_URL": "redis://other"}, state) == {"GLMQ_REDIS_URL": "redis://other"}
