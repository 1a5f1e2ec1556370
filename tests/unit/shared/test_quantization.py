"""Weights in 8 bits: which layers, how far off, and what is refused."""

from __future__ import annotations

import importlib.abc
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType

import pytest
import torch
from torch import nn

from shared.errors import StartupError
from shared.quantization import quantize_linears

CPU = torch.device("cpu")


def make_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"big": nn.Linear(64, 48), "head": nn.Linear(64, 8)}).eval().requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_halves_the_wanted_layers_only(dtype: torch.dtype) -> None:
    """A wanted layer keeps 8 bits per weight and nearly its results; any other is left as it was."""
    net = make_net().to(dtype)
    sample = torch.randn(5, 64, dtype=dtype)
    exact, head = net["big"](sample), net["head"].weight

    quantize_linears(net, "int8", CPU, lambda name: name == "big")

    error = (net["big"](sample) - exact).float().norm() / exact.float().norm()
    assert 0 < error < 0.01
    assert net["big"].weight.qdata.dtype == torch.int8
    assert net["head"].weight is head


def test_fp8_is_refused_on_the_cpu() -> None:
    """It would lose precision and gain nothing."""
    with pytest.raises(StartupError, match=r"GLMQ_QUANTIZATION=fp8 needs a cuda device of compute capability 8\.9"):
        quantize_linears(make_net(), "fp8", CPU, lambda _: True)


class _WithoutTorchao(importlib.abc.MetaPathFinder):
    """A Python that has no torchao."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if fullname.partition(".")[0] == "torchao":
            raise ModuleNotFoundError(f"No module named {fullname!r}")


@pytest.fixture
def without_torchao() -> Iterator[None]:
    hidden = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "torchao"}
    finder = _WithoutTorchao()
    for name in hidden:
        del sys.modules[name]
    sys.meta_path.insert(0, finder)
    yield
    sys.meta_path.remove(finder)
    sys.modules.update(hidden)


@pytest.mark.usefixtures("without_torchao")
def test_without_torchao_the_command_that_installs_it_is_named() -> None:
    """It is an extra: no image carries it."""
    with pytest.raises(StartupError, match=r"GLMQ_QUANTIZATION=int8 needs torchao\. Run: pip install 'torchao"):
        quantize_linears(make_net(), "int8", CPU, lambda _: True)
