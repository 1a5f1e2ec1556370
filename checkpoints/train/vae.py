"""
Stage `vae`: an AutoencoderKL between posters and latents of 16 channels at an eighth of their size.

Three phases, each a run of its own. `skeleton`: the network's linear path alone, which an untrained network needs a long time to
find. `whole`: everything, from the skeleton on; at its end the encoder is frozen and the latents' mean and spread are measured.
The last phase trains the decoder alone, with noisy latents, so that small errors of the DiT do not show; what the DiT learns
from stays as it is, so this phase may run beside the DiT's training, or again after it.
"""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import nn
from torch.nn import functional as F

from checkpoints.train import networks
from checkpoints.train.crops import Crops, unseen
from checkpoints.train.run import Run, load_weights, mixed_precision
from checkpoints.train.skeleton import Skeleton

_SKELETON_SHARE, _WHOLE_SHARE = 0.07, 0.63
_LATENT_NOISE = 0.1
"""In units of each channel's spread, for the pipeline divides by it; absolute noise only makes the encoder's output grow."""

_DECODER_NOISE = (0.0, 0.25)
"""The range of the decoder's last phase, one draw for each picture."""


# ---------------------------------------------------------------- the stage


def train(folder: Path, *, minutes: float = 45, max_steps: int | None = None, seed: int = 0) -> None:
    """
    All phases that are not done yet. Where `folder/vae/autoencoder` exists, by `adopt` or an earlier call, only the decoder's last.

    Args:
        max_steps: of each phase.
    """
    if not (folder / "vae" / "autoencoder").is_dir():
        skeleton = _train_skeleton(folder, _SKELETON_SHARE * minutes, max_steps, seed)
        _train_whole(folder, skeleton, _WHOLE_SHARE * minutes, max_steps, seed)
    finish_decoder(folder, minutes=(1 - _SKELETON_SHARE - _WHOLE_SHARE) * minutes, max_steps=max_steps, seed=seed)


def adopt(folder: Path, autoencoder: Path) -> None:
    """
    Begin with the AutoencoderKL folder of another run instead of with the first two phases.

    Raises:
        FileExistsError: this run has an encoder already, and a DiT may have learned from it.
    """
    net = AutoencoderKL.from_pretrained(autoencoder, dtype=torch.float32, local_files_only=True)
    _save(folder, net)


def encoder_of(folder: Path) -> AutoencoderKL:
    """
    The net after the phase `whole`, frozen, in float32, with the latents' statistics in its config.

    Raises:
        OSError: that phase is not done.
    """
    net = AutoencoderKL.from_pretrained(folder / "vae" / "autoencoder", dtype=torch.float32, local_files_only=True)
    net.requires_grad_(False)
    return net.eval()


def finished(folder: Path) -> AutoencoderKL:
    """`encoder_of` with its decoder as far as the last phase has come. The encoder and the statistics are the same in both."""
    net = encoder_of(folder)
    if (folder / "vae" / "snapshot.safetensors").is_file():
        load_weights(folder / "vae", {"decoder": net.decoder})
    return net


def _save(folder: Path, net: AutoencoderKL) -> None:
    place = folder / "vae" / "autoencoder"
    if place.exists():
        raise FileExistsError(f"{place} exists, and later stages depend on it")
    unfinished = place.with_name("unfinished-autoencoder")
    # bf16, as it will be published: the DiT shall learn the latents that this encoder gives, not almost these.
    net.to(torch.bfloat16).save_pretrained(unfinished)
    unfinished.rename(place)


# ---------------------------------------------------------------- phases


class _FanInRun(Run):
    """
    A run whose learning rate is smaller where more inputs meet.

    Adam moves each weight by about the learning rate, so the output of a convolution moves by that times its inputs. One rate for
    all, if the small layers are to learn, wrecks the skeleton in the wide ones within a minute.
    """

    def __init__(self, folder: Path, nets: dict[str, nn.Module], **settings: Any) -> None:
        super().__init__(folder, nets, **settings)
        optimizer = self._optimizers[-1]
        [group] = optimizer.param_groups
        common = {name: value for name, value in group.items() if name not in ("params", "lr")}
        optimizer.param_groups[:] = [
            {**common, "params": [parameter], "lr": group["lr"] * self._scale(parameter)} for parameter in group["params"]
        ]
        self._base_lrs = [group["lr"] for group in optimizer.param_groups]

    @staticmethod
    def _scale(parameter: nn.Parameter) -> float:
        return min(1.0, 64 / parameter[0].numel()) if parameter.ndim == 4 else 0.3


def _train_skeleton(folder: Path, minutes: float, max_steps: int | None, seed: int) -> Skeleton:
    """A trained skeleton, installed in its net."""
    torch.manual_seed(seed)
    skeleton = Skeleton(networks.vae())
    run = Run(
        folder / "vae" / "skeleton",
        {"skeleton": skeleton},
        minutes=minutes,
        lr=2e-3,
        ema_decay=0.99,
        weight_decay=0.0,
        warmup_steps=50,
        constant_share=0.0,
        max_steps=max_steps,
        seed=seed,
    )
    crops = Crops(random.Random(f"skeleton {seed} {run.step}"))
    for _ in run.steps():
        pixels = crops.batch(8, 64)
        with mixed_precision():
            latents = skeleton.encode(pixels)
            drawn = skeleton.decode(latents + 0.02 * latents.std().detach() * torch.randn_like(latents)).float()
        loss = F.mse_loss(drawn, pixels)
        run.note(psnr=_decibels(loss.item()))
        run.update(loss, len(pixels))
    run.load_average()
    skeleton.install(Crops(random.Random(f"install {seed}")).batch(64, 64))
    return skeleton


def _train_whole(folder: Path, skeleton: Skeleton, minutes: float, max_steps: int | None, seed: int) -> None:
    net = skeleton.net
    run = _FanInRun(
        folder / "vae" / "whole",
        {"vae": net},
        minutes=minutes,
        lr=1e-3,
        ema_decay=0.998,
        weight_decay=1e-4,
        warmup_steps=200,
        constant_share=0.25,
        max_steps=max_steps,
        seed=seed,
    )
    crops = Crops(random.Random(f"whole {seed} {run.step}"))
    spread: torch.Tensor | None = None
    for step in run.steps():
        pixels = crops.mixed_batch(step)
        with mixed_precision():
            latents = net.encode(pixels).latent_dist.mode().float()
        with torch.no_grad():
            seen = latents.std((0, 2, 3), keepdim=True)
            spread = seen if spread is None else spread.lerp(seen, 0.02)
        with mixed_precision():
            drawn = net.decode(latents + _LATENT_NOISE * spread * torch.randn_like(latents)).sample.float()
        loss = _loss(drawn, pixels) + 1e-3 * latents.square().mean()
        run.note(loss=loss.item(), psnr=_decibels(F.mse_loss(drawn, pixels).item()), spread=spread.mean().item())
        run.update(loss, len(pixels))
    run.load_average()
    with torch.no_grad():
        latents = net.encode(unseen(32)[0]).latent_dist.mode()
    net.register_to_config(latents_mean=latents.mean((0, 2, 3)).tolist(), latents_std=latents.std((0, 2, 3)).tolist())
    _save(folder, net)


def finish_decoder(folder: Path, *, minutes: float, max_steps: int | None = None, seed: int = 0) -> None:
    """
    Train the decoder alone, from `encoder_of`, for latents with noise of up to a quarter of each channel's spread.

    Raises:
        OSError: there is no encoder yet.
    """
    torch.manual_seed(seed)
    net = encoder_of(folder)
    net.decoder.requires_grad_(True)
    spread = torch.tensor(net.config.latents_std).view(1, -1, 1, 1)
    run = _FanInRun(
        folder / "vae",
        {"decoder": net.decoder},
        minutes=minutes,
        lr=7e-4,
        ema_decay=0.998,
        weight_decay=1e-4,
        warmup_steps=200,
        constant_share=0.25,
        max_steps=max_steps,
        seed=seed,
    )
    crops = Crops(random.Random(f"decoder {seed} {run.step}"))
    for step in run.steps():
        pixels = crops.mixed_batch(step)
        with torch.no_grad(), mixed_precision():
            latents = net.encode(pixels).latent_dist.mode().float()
        amount = torch.empty(len(pixels), 1, 1, 1).uniform_(*_DECODER_NOISE)
        with mixed_precision():
            drawn = net.decode(latents + amount * spread * torch.randn_like(latents)).sample.float()
        loss = _loss(drawn, pixels)
        run.note(loss=loss.item(), psnr=_decibels(F.mse_loss(drawn, pixels).item()))
        run.update(loss, len(pixels))


def _loss(drawn: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Absolute and squared error, and the absolute error of the differences of neighbours, which keeps edges sharp."""
    error = drawn - pixels
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + 3 * error.square().mean() + 0.5 * edges


# ---------------------------------------------------------------- figures


def measure(net: AutoencoderKL, count: int = 32, noise: float = 0.0) -> dict[str, float]:
    """
    PSNR in dB over posters of 256x256 that no training saw: all pixels, patches with a character, patches without.

    Args:
        noise: added to the latents, in units of each channel's spread.
    """
    pixels, letters = unseen(count)
    spread = torch.tensor(net.config.latents_std).view(1, -1, 1, 1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        latents = net.encode(pixels).latent_dist.mode()
        drawn = net.decode(latents + noise * spread * torch.randn(latents.shape, generator=generator)).sample.clamp(-1, 1)
    error = (drawn - pixels).square().mean(1)
    return {
        "all": _decibels(error.mean().item()),
        "text": _decibels(error[letters].mean().item()),
        "no text": _decibels(error[~letters].mean().item()),
    }


def _decibels(mean_square: float) -> float:
    """PSNR of pixels in -1..1."""
    return 10 * math.log10(4 / max(mean_square, 1e-10))
