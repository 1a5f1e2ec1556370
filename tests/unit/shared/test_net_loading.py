"""What an operator may choose, and what is refused before a net is loaded."""

from __future__ import annotations

import base64

import pytest
import torch

from shared.errors import StartupError
from shared.net_loading import NetOptions
from shared.settings import WorkerSettings

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


def test_the_defaults_are_the_nets_as_published() -> None:
    """No option is on by itself, and any device takes that."""
    NetOptions().check(CPU)
    NetOptions().check(CUDA)


def test_options_come_from_the_settings() -> None:
    """Every option is a setting of both GPU workers, and defaults to the same."""
    core = {
        "database_url": "postgresql://localhost/x",
        "redis_url": "redis://localhost",
        "s3_endpoint": "http://localhost",
        "s3_access_key": "a",
        "s3_secret_key": "b",
        "secret_key": base64.b64encode(bytes(32)).decode(),
        "checkpoint": "x",
    }
    chosen = {
        "cpu_offload": "idle",
        "attention": "native",
        "compile": "max-autotune",
        "quantization": "int8",
        "lora_dir": "/loras",
        "lora_memory_gib": 1.5,
    }

    assert NetOptions.read(WorkerSettings.model_validate(core)) == NetOptions()
    assert NetOptions.read(WorkerSettings.model_validate(core | chosen)) == NetOptions(**chosen)


@pytest.mark.parametrize(
    ("options", "device", "message"),
    [
        (NetOptions(cpu_offload="idle"), CPU, "GLMQ_CPU_OFFLOAD=idle is for cuda devices; this worker runs on cpu"),
        (NetOptions(cpu_offload="all", quantization="int8"), CUDA, "GLMQ_CPU_OFFLOAD=all and GLMQ_QUANTIZATION exclude each other"),
        (NetOptions(attention="flash"), CPU, "GLMQ_ATTENTION=flash is for cuda devices"),
        (NetOptions(attention="flash"), CUDA, "GLMQ_ATTENTION=flash needs the package flash_attn: pip install flash-attn"),
        (NetOptions(attention="flash_3"), CUDA, "needs the package flash_attn_interface: build"),
        (NetOptions(attention="sage"), CUDA, "needs the package sageattention"),
        (NetOptions(attention="xformers"), CUDA, "needs the package xformers"),
    ],
)
def test_what_a_machine_cannot_do_refuses_the_start(options: NetOptions, device: torch.device, message: str) -> None:
    """The line names the variable, its value and what to do."""
    with pytest.raises(StartupError, match=message):
        options.check(device)
