"""Adapters are read in both formats, and refused by name when they are not what they should be."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from shared.adapter_file import read_adapter
from shared.errors import PermanentWorkError
from shared.lora_store import AdapterFiles

LAYERS = {"blocks.0.q": (6, 8), "blocks.0.v": (4, 8)}
"""Layers that may be adapted: out and in features."""

CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q", "v"]}


def tensors(layer: str = "blocks.0.q", rank: int = 2, prefix: str = "base_model.model.") -> dict[str, Tensor]:
    num_out, num_in = LAYERS[layer]
    return {f"{prefix}{layer}.lora_A.weight": torch.ones(rank, num_in), f"{prefix}{layer}.lora_B.weight": torch.ones(num_out, rank)}


def peft_files(folder: Path, weights: dict[str, Tensor], config: Any = CONFIG) -> AdapterFiles:
    (folder / "adapter_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    save_file(weights, folder / "adapter_model.safetensors")
    return AdapterFiles("ink", folder / "adapter_config.json", folder / "adapter_model.safetensors")


def diffusers_files(folder: Path, weights: dict[str, Tensor], metadata: dict[str, str] | None = None) -> AdapterFiles:
    save_file(weights, folder / "pytorch_lora_weights.safetensors", metadata)
    return AdapterFiles("ink", None, folder / "pytorch_lora_weights.safetensors")


def test_peft_format(tmp_path: Path) -> None:
    """Each adapted layer has its tensors in the net's dtype, and alpha over rank as scaling."""
    parts = read_adapter(peft_files(tmp_path, tensors() | tensors("blocks.0.v")), LAYERS, torch.bfloat16)

    assert parts.keys() == LAYERS.keys()
    part = parts["blocks.0.q"]
    assert (tuple(part.down.shape), tuple(part.up.shape), part.rank, part.scaling) == ((2, 8), (6, 2), 2, 2.0)
    assert part.down.dtype == part.up.dtype == torch.bfloat16


def test_patterns_and_rank_stabilised_scaling(tmp_path: Path) -> None:
    """Rank and alpha of single layers count, by the end of their names, and the scaling may be by the root of the rank."""
    config = CONFIG | {"rank_pattern": {"v": 4}, "alpha_pattern": {"blocks.0.v": 6}, "use_rslora": True}
    parts = read_adapter(peft_files(tmp_path, tensors() | tensors("blocks.0.v", rank=4), config), LAYERS, torch.float32)

    assert parts["blocks.0.q"].scaling == 4 / math.sqrt(2)
    assert parts["blocks.0.v"].scaling == 3.0


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_diffusers_format(tmp_path: Path, prefix: str) -> None:
    """Without numbers in the header alpha is the rank; with them, they are peft's, named as the tensors are."""
    plain = read_adapter(diffusers_files(tmp_path, tensors(prefix=prefix)), LAYERS, torch.float32)
    assert plain["blocks.0.q"].scaling == 1.0

    header = {"lora_adapter_metadata": json.dumps({f"{prefix}r": 2, f"{prefix}lora_alpha": 8})}
    assert read_adapter(diffusers_files(tmp_path, tensors(prefix=prefix), header), LAYERS, torch.float32)["blocks.0.q"].scaling == 4.0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "no JSON object"),
        (CONFIG | {"peft_type": "IA3"}, "'IA3' is not LORA"),
        (CONFIG | {"use_dora": True}, "use_dora is not supported"),
        (CONFIG | {"bias": "all"}, "bias is not supported"),
        (CONFIG | {"modules_to_save": ["lm_head"]}, "modules_to_save is not supported"),
        (CONFIG | {"something_new": {"a": 1}}, "something_new is not supported"),
        (CONFIG | {"init_lora_weights": "pissa"}, "changes the base weights"),
        (CONFIG | {"r": 3}, "has rank 2, and the configuration says 3"),
        (CONFIG | {"r": 2.0}, "not a whole number"),
        (CONFIG | {"lora_alpha": "many"}, "'many' is not a number"),
        (json.dumps(CONFIG | {"lora_alpha": math.inf}), "inf is not a number"),
        (CONFIG | {"lora_alpha": 10**400}, "10000.* is not a number"),
        (CONFIG | {"rank_pattern": {"(a+)+$": 2}}, "names of layers only"),
        (CONFIG | {"alpha_pattern": []}, "names of layers only"),
        (CONFIG | {"use_rslora": "yes"}, "neither true nor false"),
        (" " * (1 << 20) + json.dumps(CONFIG), "larger than 1 MiB"),
    ],
)
def test_configurations_that_mean_something_else_are_refused(tmp_path: Path, config: Any, message: str) -> None:
    """What is no plain LoRA, or no sense at all, is not guessed at."""
    with pytest.raises(PermanentWorkError, match=rf"LoRA adapter 'ink'.*{message}") as caught:
        read_adapter(peft_files(tmp_path, tensors(), config), LAYERS, torch.float32)
    assert caught.value.code == "lora_broken"


def test_options_that_repeat_pefts_defaults_are_well(tmp_path: Path) -> None:
    """A file that peft wrote names every option; the defaults change nothing."""
    from peft import LoraConfig

    config = LoraConfig(r=2, lora_alpha=4, target_modules=["q"], inference_mode=True).to_dict()
    files = peft_files(tmp_path, tensors(), {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()})

    assert read_adapter(files, LAYERS, torch.float32)["blocks.0.q"].scaling == 2.0


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "adapts nothing"),
        ({"blocks.0.q.weight": torch.ones(6, 8)}, "is not understood"),
        ({"blocks.0.q.lora_A.weight": torch.ones(2, 8)}, "has no B"),
        ({"blocks.0.q.lora_B.weight": torch.ones(6, 2)}, "has no A"),
        (tensors() | {"base_model.model.blocks.9.q.lora_A.weight": torch.ones(2, 8)}, "'blocks.9.q' is no layer that may be adapted"),
        (tensors() | {"base_model.model.blocks.0.q.lora_B.weight": torch.ones(6, 3)}, "has A 2x8 and B 6x3; the layer is 6x8"),
        (tensors() | {"base_model.model.blocks.0.q.lora_A.weight": torch.ones(16)}, "has A 16 and B 6x2"),
        (tensors() | {"base_model.model.blocks.0.q.lora_A.weight": torch.ones(())}, "has A 0 and"),
        (tensors(rank=1025), "has A 1025x8"),
        (tensors() | {"base_model.model.blocks.0.q.lora_B.weight": torch.full((6, 2), math.nan)}, "not finite"),
        (tensors() | {"base_model.model.blocks.0.q.lora_B.weight": torch.full((6, 2), 1e300, dtype=torch.float64)}, "not finite"),
        (tensors() | {"base_model.model.blocks.0.q.lora_A.weight": torch.ones(2, 8, dtype=torch.int8)}, "has torch.int8 numbers"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path: Path, weights: dict[str, Tensor], message: str) -> None:
    """Missing halves, wrong layers, shapes, ranks, types and numbers are each named."""
    with pytest.raises(PermanentWorkError, match=f"LoRA adapter 'ink'.*{message}"):
        read_adapter(peft_files(tmp_path, weights), LAYERS, torch.float32)


@pytest.mark.parametrize("data", [b"", b"\x80\x04pickle", (1 << 60).to_bytes(8, "little"), b"\x02\0\0\0\0\0\0\0{}" + b"x" * 9])
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, data: bytes) -> None:
    """Pickles, lies about the header's length and trailing bytes end at the library's own checks."""
    files = peft_files(tmp_path, tensors())
    files.weights.write_bytes(data)

    with pytest.raises(PermanentWorkError, match="LoRA adapter 'ink'"):
        read_adapter(files, LAYERS, torch.float32)


def test_cut_weights_are_refused(tmp_path: Path) -> None:
    """A copy that broke off is no adapter."""
    files = peft_files(tmp_path, tensors())
    files.weights.write_bytes(files.weights.read_bytes()[:-8])

    with pytest.raises(PermanentWorkError, match="LoRA adapter 'ink'"):
        read_adapter(files, LAYERS, torch.float32)
