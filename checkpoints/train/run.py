"""
One training run of one stage: its folder, its snapshots, its log, its learning rate. Resumable at every snapshot.

A run's folder holds `snapshot.safetensors` (weights, their moving average, the optimizers' tensors), `snapshot.json` (step, samples,
seconds) and `log.jsonl` (one line of metrics each `log_seconds`). A snapshot appears whole: it is renamed into place.
"""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def mixed_precision() -> torch.autocast:
    """Multiply in bfloat16 where the CPU can; where it cannot, that would be sixty times slower than float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=torch.ops.mkldnn._is_mkldnn_bf16_supported())


class Run:
    """
    Args:
        nets: trained modules by name; all their parameters that require a gradient are trained.
        minutes: of training in all, over every session of this run; the learning rate is zero at the end.
        muon_lr: of the matrices inside transformer blocks (`muon_names`, parts of parameter names); 0 leaves them to AdamW.
        max_steps: end earlier; for tests.
    """

    def __init__(
        self,
        folder: Path,
        nets: dict[str, torch.nn.Module],
        *,
        minutes: float,
        lr: float,
        muon_lr: float = 0.0,
        muon_names: tuple[str, ...] = (),
        ema_decay: float = 0.999,
        weight_decay: float = 0.01,
        warmup_steps: int = 100,
        constant_share: float = 0.5,
        seed: int = 0,
        max_steps: int | None = None,
        log_seconds: float = 20.0,
        snapshot_seconds: float = 180.0,
    ) -> None:
        self.folder, self.nets, self.seed = folder, nets, seed
        self.seconds_in_all, self.max_steps = 60 * minutes, max_steps
        self._constant_share, self._warmup_steps, self._ema_decay = constant_share, warmup_steps, ema_decay
        self._log_seconds, self._snapshot_seconds = log_seconds, snapshot_seconds
        self.step, self.samples, self.seconds = 0, 0, 0.0
        self.parameters = {
            f"{name}.{key}": parameter for name, net in nets.items() for key, parameter in net.named_parameters() if parameter.requires_grad
        }
        matrices = {k: p for k, p in self.parameters.items() if muon_lr and p.ndim == 2 and any(part in k for part in muon_names)}
        others = [p for k, p in self.parameters.items() if k not in matrices]
        self._optimizers: list[torch.optim.Optimizer] = []
        self._names = [*matrices, *(k for k in self.parameters if k not in matrices)]
        if matrices:
            self._optimizers.append(
                torch.optim.Muon(list(matrices.values()), lr=muon_lr, weight_decay=weight_decay, adjust_lr_fn="original")
            )
        self._optimizers.append(torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=weight_decay, fused=True))
        self._base_lrs = [group["lr"] for optimizer in self._optimizers for group in optimizer.param_groups]
        self.average = {k: p.detach().clone() for k, p in self.parameters.items()}
        self._sums: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        folder.mkdir(parents=True, exist_ok=True)
        self._resume()

    # ---------------------------------------------------------------- the loop

    def steps(self) -> Iterator[int]:
        """Yield the number of each step until time or steps are over; keeps clock, log and snapshots."""
        torch.manual_seed(self.seed * 1_000_003 + self.step)
        last = last_log = last_snapshot = time.monotonic()
        while not self.finished:
            yield self.step
            now = time.monotonic()
            self.seconds += now - last
            last = now
            if now - last_log > self._log_seconds or self.finished:
                self._write_log()
                last_log = now
            if now - last_snapshot > self._snapshot_seconds or self.finished:
                self.snapshot()
                last_snapshot = now

    @property
    def finished(self) -> bool:
        return self.seconds >= self.seconds_in_all or (self.max_steps is not None and self.step >= self.max_steps)

    @property
    def progress(self) -> float:
        """Share of the run that is over, 0..1."""
        return min(1.0, self.seconds / self.seconds_in_all)

    def update(self, loss: torch.Tensor, num_samples: int, max_norm: float = 1.0) -> None:
        """One optimizer step."""
        rate = min(1.0, (self.step + 1) / self._warmup_steps) * self._decay()
        groups = [group for optimizer in self._optimizers for group in optimizer.param_groups]
        for group, base in zip(groups, self._base_lrs, strict=True):
            group["lr"] = base * rate
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), max_norm)
        for optimizer in self._optimizers:
            optimizer.step()
        self.step += 1
        self.samples += num_samples
        decay = min(self._ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in self.parameters.values()], 1 - decay)

    def _decay(self) -> float:
        left = (1 - self.progress) / (1 - self._constant_share)
        return max(0.02, min(1.0, left))

    def note(self, **metrics: float) -> None:
        """Add to the means that the next line of the log shows. NaN is left out."""
        for name, value in metrics.items():
            if not math.isnan(value):
                entry = self._sums[name]
                entry[0] += value
                entry[1] += 1

    # ---------------------------------------------------------------- files

    def _write_log(self) -> None:
        means = {name: round(total / count, 5) for name, (total, count) in self._sums.items()}
        line = json.dumps({"step": self.step, "samples": self.samples, "seconds": round(self.seconds), **means})
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(line + "\n")
        print(self.folder.name, line, flush=True)
        self._sums.clear()

    def snapshot(self) -> None:
        tensors = {f"weight.{k}": p.detach().contiguous() for k, p in self.parameters.items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        tensors |= {
            f"state.{k}.{field}": value.contiguous()
            for k, state in zip(self._names, self._states(), strict=True)
            for field, value in state.items()
            if isinstance(value, torch.Tensor)
        }
        unfinished = self.folder / "unfinished.safetensors"
        clock = {"step": self.step, "samples": self.samples, "seconds": self.seconds}
        save_file(tensors, unfinished, metadata={"clock": json.dumps(clock)})
        unfinished.replace(self.folder / "snapshot.safetensors")
        (self.folder / "snapshot.json").write_text(json.dumps(clock) + "\n")

    def _states(self) -> Iterator[dict[str, object]]:
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    yield optimizer.state[parameter]

    def _resume(self) -> None:
        path = self.folder / "snapshot.safetensors"
        if not path.is_file():
            return
        tensors = load_file(path)
        clock = json.loads((self.folder / "snapshot.json").read_text())
        self.step, self.samples, self.seconds = clock["step"], clock["samples"], clock["seconds"]
        with torch.no_grad():
            for key, parameter in self.parameters.items():
                parameter.copy_(tensors[f"weight.{key}"])
                self.average[key].copy_(tensors[f"average.{key}"])
        for key, state in zip(self._names, self._states(), strict=True):
            prefix = f"state.{key}."
            state.update({name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)})

    def load_average(self) -> None:
        """Put the moving average into the nets; what a finished stage hands on."""
        with torch.no_grad():
            for key, parameter in self.parameters.items():
                parameter.copy_(self.average[key])


def load_weights(folder: Path, nets: dict[str, torch.nn.Module], *, strict: bool = True) -> None:
    """
    Put the moving average of a run's snapshot into `nets`.

    Args:
        strict: every parameter must be there; otherwise those that fit are taken, for a run that starts from another.

    Raises:
        FileNotFoundError: the run has no snapshot.
        KeyError: a parameter is missing.
    """
    tensors = load_file(folder / "snapshot.safetensors")
    with torch.no_grad():
        for name, net in nets.items():
            for key, parameter in net.named_parameters():
                value = tensors.get(f"average.{name}.{key}")
                if value is not None and value.shape == parameter.shape:
                    parameter.copy_(value)
                elif strict:
                    raise KeyError(f"{folder} has no {name}.{key} of shape {tuple(parameter.shape)}")
