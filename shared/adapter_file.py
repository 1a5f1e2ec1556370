"""
One half of a LoRA adapter: files -> what it adds to each linear layer, or a clear refusal. For GPU workers only: needs torch.

Everything is checked before anything is believed, because the files are whatever somebody put into the folder: which layers they name,
ranks, shapes, types, finite numbers, and options of peft that mean more than a plain `W + scaling * up @ down`. Knows no net but the
shapes of its layers.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors import SafetensorError, safe_open
from torch import Tensor

from shared.errors import PermanentWorkError
from shared.lora_store import AdapterFiles

LayerShape = tuple[int, int]
"""out_features, in_features."""

_MAX_RANK = 1024
"""Far above what is trained (4 to 256)."""

_MAX_CONFIG_BYTES = 1 << 20

_KEY = re.compile(r"(?:base_model\.model\.|transformer\.)?(?P<layer>.+)\.lora_(?P<part>[AB])\.weight")
"""peft's and diffusers' names of a tensor, and what both put before the layer's own name."""

_INERT_OPTIONS = frozenset(
    (
        "auto_mapping",
        "base_model_name_or_path",
        "revision",
        "task_type",
        "inference_mode",
        "target_modules",
        "exclude_modules",
        "lora_dropout",
        "layers_to_transform",
        "layers_pattern",
        "peft_type",
        "peft_version",
        "megatron_core",
        "eva_config",
        "corda_config",
        "loftq_config",
        "runtime_config",
    )
)
"""What only matters while an adapter is trained, or repeats what its tensors say."""

_READ_OPTIONS = frozenset(("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "init_lora_weights"))

_HARMLESS_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""`init_lora_weights` that leave the base weights alone. PiSSA, OLoRA, CorDA and others change them, and the adapter only fits then."""


@dataclass(frozen=True)
class LowRank:
    """What an adapter adds to one linear layer: `scaling * up @ down`. Shapes: down [rank, in], up [out, rank]."""

    down: Tensor
    up: Tensor
    scaling: float

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])


class _AdapterError(Exception):
    """What is wrong with an adapter, without its name."""


def read_adapter(files: AdapterFiles, layers: Mapping[str, LayerShape], dtype: torch.dtype) -> dict[str, LowRank]:
    """
    Read one half of an adapter.

    Args:
        layers: the linear layers that may be adapted, by their names in the net.
        dtype: that of the net; the tensors are converted to it.
    Returns:
        on the CPU, by layer.
    Raises:
        PermanentWorkError: `lora_broken`; names the adapter and what is wrong with it.
    """
    try:
        with safe_open(files.weights, framework="pt", device="cpu") as opened:
            options = _read_options(files.config) if files.config else _header_options(opened.metadata() or {})
            return _read_tensors(opened, options, layers, dtype)
    except (_AdapterError, SafetensorError, OSError) as error:
        raise PermanentWorkError("lora_broken", f"LoRA adapter {files.name!r}: {files.weights.name}: {error}") from error


def _read_tensors(opened: Any, options: dict[str, Any] | None, layers: Mapping[str, LayerShape], dtype: torch.dtype) -> dict[str, LowRank]:
    keys: dict[str, dict[str, str]] = {}
    for key in opened.keys():  # noqa: SIM118 - not a mapping
        match = _KEY.fullmatch(key)
        if match is None:
            raise _AdapterError(f"tensor {key[:200]!r} is not understood; lora_A.weight and lora_B.weight of linear layers are")
        if match["layer"] not in layers:
            raise _AdapterError(f"{match['layer'][:200]!r} is no layer that may be adapted")
        keys.setdefault(match["layer"], {})[match["part"]] = key
    if not keys:
        raise _AdapterError("it adapts nothing")
    return {layer: _read_layer(opened, layer, parts, options, layers[layer], dtype) for layer, parts in keys.items()}


def _read_layer(
    opened: Any, layer: str, parts: dict[str, str], options: dict[str, Any] | None, shape: LayerShape, dtype: torch.dtype
) -> LowRank:
    if parts.keys() != {"A", "B"}:
        raise _AdapterError(f"{layer} has no {'B' if 'A' in parts else 'A'}")
    # Shapes from the header: a tensor that does not fit is never read.
    (down_shape, up_shape) = (tuple(opened.get_slice(parts[part]).get_shape()) for part in "AB")
    rank = down_shape[0] if down_shape else 0
    if not 1 <= rank <= _MAX_RANK or down_shape != (rank, shape[1]) or up_shape != (shape[0], rank):
        raise _AdapterError(f"{layer} has A {_text(down_shape)} and B {_text(up_shape)}; the layer is {_text(shape)}")
    down, up = (_read_tensor(opened, layer, parts[part], dtype) for part in "AB")
    return LowRank(down, up, _scaling(layer, rank, options))


def _read_tensor(opened: Any, layer: str, key: str, dtype: torch.dtype) -> Tensor:
    tensor: Tensor = opened.get_tensor(key)
    if not tensor.is_floating_point():
        raise _AdapterError(f"{layer} has {tensor.dtype} numbers")
    # After the conversion, in which a large number may have become infinite.
    converted = tensor.to(dtype)
    if not converted.isfinite().all():
        raise _AdapterError(f"{layer} has numbers that are not finite")
    return converted


def _scaling(layer: str, rank: int, options: dict[str, Any] | None) -> float:
    if options is None:
        return 1.0  # diffusers' rule where nothing is said: alpha is the rank
    configured = _of_layer(options["rank_pattern"], layer, options["r"])
    if configured != rank:
        raise _AdapterError(f"{layer} has rank {rank}, and the configuration says {configured}")
    alpha = float(_of_layer(options["alpha_pattern"], layer, options["lora_alpha"]))
    return alpha / math.sqrt(rank) if options["use_rslora"] else alpha / rank


def _of_layer(pattern: dict[str, Any], layer: str, default: Any) -> Any:
    """The first that names the layer or the end of its name. peft takes regular expressions, which could be made to run for ever."""
    return next((value for name, value in pattern.items() if layer == name or layer.endswith(f".{name}")), default)


def _read_options(file: Path) -> dict[str, Any]:
    if file.stat().st_size > _MAX_CONFIG_BYTES:
        raise _AdapterError(f"{file.name} is larger than {_MAX_CONFIG_BYTES >> 20} MiB")
    return _check_options(_parse(file.read_bytes(), file.name), file.name)


def _header_options(metadata: dict[str, str]) -> dict[str, Any] | None:
    """diffusers keeps peft's options in the header, each with the name of the pipeline's part before it; older files have none."""
    text = metadata.get("lora_adapter_metadata")
    if text is None:
        return None
    options = _parse(text.encode(), "the header")
    return _check_options({key.removeprefix("transformer."): value for key, value in options.items()}, "the header")


def _parse(data: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _AdapterError(f"{where} is no JSON") from error
    if not isinstance(value, dict):
        raise _AdapterError(f"{where} holds no JSON object")
    return value


def _check_options(options: dict[str, Any], where: str) -> dict[str, Any]:
    """The options that are read, with peft's defaults; any other that changes what an adapter does is refused."""
    defaults = LoraConfig().to_dict()
    if options.get("peft_type", "LORA") != "LORA":
        raise _AdapterError(f"{where}: peft_type {options['peft_type']!r} is not LORA")
    for name in sorted(options.keys() - _INERT_OPTIONS - _READ_OPTIONS):
        if options[name] and options[name] != defaults.get(name):
            raise _AdapterError(f"{where}: {name[:50]} is not supported; plain LoRA on linear layers is")
    read = {name: options.get(name, defaults[name]) for name in sorted(_READ_OPTIONS)}
    if read["init_lora_weights"] not in _HARMLESS_STARTS:
        raise _AdapterError(f"{where}: init_lora_weights {read['init_lora_weights']!r:.50} changes the base weights")
    _check_numbers(read["r"], read["rank_pattern"], f"{where}: r", integer=True)
    _check_numbers(read["lora_alpha"], read["alpha_pattern"], f"{where}: lora_alpha", integer=False)
    if not isinstance(read["use_rslora"], bool):
        raise _AdapterError(f"{where}: use_rslora is neither true nor false")
    return read


def _check_numbers(value: Any, pattern: Any, what: str, *, integer: bool) -> None:
    if not isinstance(pattern, dict) or not all(re.fullmatch(r"[\w.]+", name) for name in pattern):
        raise _AdapterError(f"{what}: its pattern may hold names of layers only")
    for number in (value, *pattern.values()):
        is_number = isinstance(number, int if integer else int | float) and not isinstance(number, bool)
        # Compared, not asked whether it is finite: JSON's whole numbers may be larger than a float can be.
        if not (is_number and abs(number) <= sys.float_info.max):
            raise _AdapterError(f"{what}: {number!r:.50} is not a {'whole ' if integer else ''}number")


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "0"
