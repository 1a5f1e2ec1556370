"""
LoRA adapters on a net: which are there, and which act now. For GPU workers only: needs torch.

All are read at the start, because an engine's loop loads nothing, and because the model's revision names their content as it was then.
A layer that no active adapter touches is the very module that was loaded; without active adapters that is the whole net, so the bare
model is exact and costs nothing. Knows no prompts, grids or pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from peft import LoraConfig
from peft.tuners.lora import Linear as LoraLinear
from torch import nn

from shared.adapter_file import LowRank, read_adapter
from shared.errors import PermanentWorkError, StartupError
from shared.lora import Lora
from shared.lora_store import Half, find_adapter, list_loras


@dataclass
class _Spot:
    """A linear layer that some adapter knows: the module itself, the same with adapters on it, and each one's scaling as trained."""

    parent: nn.Module
    name: str
    bare: nn.Linear
    adapted: LoraLinear
    scalings: dict[str, float] = field(default_factory=dict)
    is_worn: bool = False

    def wear(self, scales: dict[str, float]) -> bool:
        """Put the layer with these of its adapters into the net; False: none of them is its."""
        acting = [slot for slot in scales if slot in self.scalings]
        for slot in acting:
            self.adapted.scaling[slot] = scales[slot] * self.scalings[slot]
        # Not by set_adapter(), which also walks the gradients of all adapters: 35 us a layer, and an engine whose rows wear different
        # adapters changes them several times a step.
        self.adapted._active_adapter = acting
        if bool(acting) != self.is_worn:
            self.is_worn = bool(acting)
            setattr(self.parent, self.name, self.adapted if self.is_worn else self.bare)
        return self.is_worn


class Adapters:
    """
    The adapters of one net, all of them in the memory of its device.

    Attributes:
        broken: what is wrong, by name, with those that cannot be used; a request that asks for one fails, and no other.
        is_active: do any act now? Then some linear layers of the net are wrapped by peft's.
    """

    def __init__(self) -> None:
        self.broken: dict[str, str] = {}
        self.is_active = False
        self._slots: dict[str, str] = {}
        self._spots: dict[str, _Spot] = {}
        self._current: Lora = ()

    @classmethod
    def load(
        cls,
        net: nn.Module,
        may_adapt: Callable[[str], bool],
        half: Half,
        lora_dir: str,
        max_gib: float,
        device: torch.device,
        dtype: torch.dtype,
    ) -> Adapters:
        """
        Read this half of every adapter in the folder.

        Args:
            may_adapt: tells by its name whether a linear layer of `net` may be adapted.
            max_gib: memory for all of them together, in GiB.
        Raises:
            StartupError: the folder is unusable, or the adapters need more memory. A single broken one refuses nothing.
        """
        adapters = cls()
        names = list_loras(lora_dir)
        if not names:
            return adapters
        linears = {path: module for path, module in net.named_modules() if isinstance(module, nn.Linear) and may_adapt(path)}
        shapes = {path: (module.out_features, module.in_features) for path, module in linears.items()}
        room = max_gib * 2**30
        for name in names:
            # Numbers, because peft's containers take no dots.
            adapters._slots[name] = str(len(adapters._slots))
            try:
                files = find_adapter(lora_dir, name, half)
                parts = read_adapter(files, shapes, dtype) if files else {}
            except PermanentWorkError as error:
                adapters.broken[name] = error.detail
                continue
            room -= sum(tensor.nbytes for part in parts.values() for tensor in (part.down, part.up))
            if room < 0:
                raise StartupError(f"the adapters in GLMQ_LORA_DIR up to {name!r} need more than GLMQ_LORA_MEMORY_GIB={max_gib:g}")
            for path, part in parts.items():
                adapters._add(net, path, linears[path], adapters._slots[name], part, device)
        return adapters

    def use(self, lora: Lora) -> None:
        """
        Let exactly these adapters act, each times its scale. Nothing is done when they do already; otherwise a few attributes are set.

        The same adapter named twice acts with the sum of its scales; scale 0 is not to act.

        Raises:
            PermanentWorkError: `unknown_lora` or `lora_broken`; what acted before goes on to.
        """
        if lora == self._current:
            return
        scales: dict[str, float] = {}
        for choice in lora:
            if choice.name not in self._slots:
                raise PermanentWorkError("unknown_lora", f"there is no LoRA adapter {choice.name!r} here")
            if choice.name in self.broken:
                raise PermanentWorkError("lora_broken", self.broken[choice.name])
            slot = self._slots[choice.name]
            scales[slot] = scales.get(slot, 0.0) + choice.scale
        scales = {slot: scale for slot, scale in scales.items() if scale != 0}
        worn = [spot.wear(scales) for spot in self._spots.values()]
        self.is_active = any(worn)
        self._current = lora

    def _add(self, net: nn.Module, path: str, bare: nn.Linear, slot: str, part: LowRank, device: torch.device) -> None:
        config = LoraConfig(r=part.rank, init_lora_weights=False, inference_mode=True)
        if path in self._spots:
            self._spots[path].adapted.update_layer(slot, part.rank, lora_alpha=part.rank, config=config)
        else:
            parent, _, last = path.rpartition(".")
            adapted = LoraLinear(bare, slot, config, r=part.rank, lora_alpha=part.rank)
            self._spots[path] = _Spot(net.get_submodule(parent), last, bare, adapted)
        spot = self._spots[path]
        spot.scalings[slot] = part.scaling
        for layer, weight in ((spot.adapted.lora_A[slot], part.down), (spot.adapted.lora_B[slot], part.up)):
            layer.weight = nn.Parameter(weight.to(device), requires_grad=False)
        spot.adapted.eval()
