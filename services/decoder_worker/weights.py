"""
The decoder half of a checkpoint -> nets on a device, or a clear refusal to start.

Knows the published folder layout and the versions that draw wrong pictures without an error. Loads transformer, vae, text_encoder,
tokenizer and scheduler, never the AR half; from local safetensors only, so that loading runs no code of the checkpoint.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, GlmImageTransformer2DModel
from transformers import ByT5Tokenizer, T5EncoderModel

from services.decoder_worker.schedule import ScheduleParams, make_schedule
from shared.adapters import Adapters
from shared.errors import StartupError
from shared.grid import PATCH_PX
from shared.lora import Lora
from shared.net_loading import NetOptions, choose_device, choose_dtype, load_net, load_part
from shared.offload import park
from shared.quantization import quantize_linears

_VERSIONS = {"diffusers": "0.42.1", "transformers": "5.17.0"}
"""The pair that glmq's pixels are proved against."""

_PATCHES_OF_1024 = (1024 // PATCH_PX) ** 2
"""A 1024x1024 picture, whose mu is 3.25 in the published scheduler config."""

_DEFAULT_OPTIONS = NetOptions()

_ATTENTION = {"native": "native", "flash": "flash", "flash_3": "_flash_3", "sage": "sage", "xformers": "xformers"}
"""diffusers' names. None of those that fetch their kernels, which are code, from the hub."""

_BLOCK_LAYER = re.compile(r"transformer_blocks\.\d+\.(attn1|ff)\..+")
"""
The linear layers of attention and feed-forward: what is quantised, and what an adapter may change.

Not those that make shifts and scales from the timestep (adaLN), nor the projections into and out of the net: together a tenth of the
weights, and where rounding is seen first.
"""


@dataclass(frozen=True)
class DecoderModel:
    """
    The nets of the decoder and the few numbers that the rest of the worker asks them for.

    `options`: what the operator chose; all of it is done when the model is loaded.
    """

    transformer: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    schedule_params: ScheduleParams
    codebook_size: int
    latent_channels: int
    vae_scale_factor: int
    device: torch.device
    dtype: torch.dtype
    options: NetOptions
    adapters: Adapters

    @property
    def goes_side_by_side(self) -> bool:
        """
        May cond and uncond of small pictures share a call of the DiT?

        Only in float32: a product of other shape may be summed in another order, and in bfloat16 that would show. Only on a CPU: on no
        GPU was it measured. And only where blocks are not compiled, because they are not called as such.
        """
        return self.dtype == torch.float32 and self.device.type == "cpu" and self.options.compile == "off"

    def use_lora(self, lora: Lora) -> None:
        """
        Let exactly these adapters act from now on; `()` is the bare model, exactly. Cheap, and nothing at all when they act already.

        Raises:
            PermanentWorkError: `unknown_lora` or `lora_broken`; the adapters that acted before go on to.
        """
        self.adapters.use(lora)


def check_versions(diffusers_version: str = diffusers.__version__, transformers_version: str = transformers.__version__) -> None:
    """
    Refuse any pair of libraries but the proved one.

    diffusers 0.40 and 0.41 condition the DiT on wrong times, which shows only as wrong colours; transformers 5.18 and newer break
    image-to-image of diffusers 0.42.1. A newer pair may be right, but nothing here has proved it.

    Raises:
        StartupError: with the command that installs the pair.
    """
    found = {"diffusers": diffusers_version, "transformers": transformers_version}
    if found != _VERSIONS:
        have, want = (" ".join(f"{name}=={version}" for name, version in pair.items()) for pair in (found, _VERSIONS))
        raise StartupError(f"glmq's pictures are proved with {want}, but {have} is installed. Run: pip install {want}")


def check_scheduler(scheduler: Any) -> ScheduleParams:
    """
    Prove that the installed scheduler keeps the timesteps it is given, and that `schedule.py` makes the same numbers.

    Raises:
        StartupError: the library is one that shifts timesteps, or the checkpoint wants a schedule that glmq does not make.
    """
    params = ScheduleParams.from_config(scheduler.config)
    for num_patches, num_steps in ((_PATCHES_OF_1024, 50), (4, 1), (_PATCHES_OF_1024 * 4, 7)):
        ours = make_schedule(params, num_patches, num_steps)
        timesteps = np.array(ours.timesteps, dtype=np.float32)
        scheduler.set_timesteps(timesteps=timesteps, sigmas=timesteps / params.num_train_timesteps, mu=ours.mu)
        if tuple(scheduler.timesteps.tolist()) != ours.timesteps:
            found = ", ".join(f"{timestep:g}" for timestep in scheduler.timesteps[:3])
            due = ", ".join(f"{timestep:g}" for timestep in ours.timesteps[:3])
            install = f"pip install diffusers=={_VERSIONS['diffusers']}"
            raise StartupError(f"diffusers {diffusers.__version__} conditions on times {found} for {due}: wrong colours. Run: {install}")
        if tuple(scheduler.sigmas.tolist()) != ours.sigmas:
            raise StartupError("the checkpoint's scheduler is not the published one (flow matching with linear dynamic shifting)")
    return params


def load_decoder_model(path: Path, device: str = "auto", dtype: str = "auto", options: NetOptions = _DEFAULT_OPTIONS) -> DecoderModel:
    """
    Load the decoder half from a folder in the published layout.

    Args:
        device: `auto` (cuda where there is one, else cpu) or a torch device.
        dtype: `auto` (bfloat16 on cuda, float32 elsewhere), `float32` or `bfloat16`.
    Raises:
        StartupError: wrong versions, a missing or broken part, parts that do not fit one another, or an option that this machine cannot do.
    """
    check_versions()
    # Bars drawn with carriage returns would end up between the worker's structured log lines.
    transformers.utils.logging.disable_progress_bar()
    on_device = choose_device(device)
    in_dtype = choose_dtype(dtype, on_device)
    options.check(on_device)
    schedule_params = check_scheduler(load_part(FlowMatchEulerDiscreteScheduler, path / "scheduler"))
    tokenizer = load_part(ByT5Tokenizer, path / "tokenizer")
    # What does not stay on the device is loaded beside it.
    idle_on = on_device if options.cpu_offload == "off" else torch.device("cpu")
    transformer_on = torch.device("cpu") if options.cpu_offload == "all" or options.quantization != "none" else on_device
    text_encoder = load_net(T5EncoderModel, path / "text_encoder", idle_on, in_dtype)
    vae = load_net(AutoencoderKL, path / "vae", idle_on, in_dtype)
    transformer = load_net(GlmImageTransformer2DModel, path / "transformer", transformer_on, in_dtype)
    parts = {"transformer": transformer, "vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer}
    return describe(**parts, schedule_params=schedule_params, device=on_device, dtype=in_dtype, options=options)


def describe(
    *,
    transformer: Any,
    vae: Any,
    text_encoder: Any,
    tokenizer: Any,
    schedule_params: ScheduleParams,
    device: torch.device,
    dtype: torch.dtype,
    options: NetOptions = _DEFAULT_OPTIONS,
) -> DecoderModel:
    """
    Nets that lie where their options want them, as the engine wants them; the options are applied here.

    Raises:
        StartupError: the parts do not fit each other, or an option cannot be had.
    """
    _check_fit(transformer, vae, text_encoder)
    return DecoderModel(
        transformer=transformer,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        schedule_params=schedule_params,
        codebook_size=transformer.config.prior_vq_quantizer_codebook_size,
        latent_channels=transformer.config.in_channels,
        vae_scale_factor=_vae_scale_factor(vae),
        device=device,
        dtype=dtype,
        options=options,
        adapters=_apply_options(transformer, vae, text_encoder, options, device, dtype),
    )


def _apply_options(
    transformer: Any, vae: Any, text_encoder: Any, options: NetOptions, device: torch.device, dtype: torch.dtype
) -> Adapters:
    if options.quantization != "none":
        quantize_linears(transformer, options.quantization, device, _is_block_layer)
        transformer.to(device)
    if options.cpu_offload != "off":
        park(text_encoder, device)
        offload_layers(vae, device)
    if options.cpu_offload == "all":
        offload_layers(transformer, device)
    if options.attention in _ATTENTION:
        transformer.set_attention_backend(_ATTENTION[options.attention])
    adapters = Adapters.load(transformer, _is_block_layer, "decoder", options.lora_dir, options.lora_memory_gib, device, dtype)
    if options.compile != "off":
        transformer.compile_repeated_blocks(mode=options.compile)
    return adapters


def offload_layers(net: Any, device: torch.device) -> None:
    """
    Keep a net of diffusers on the CPU; each of its layers visits the device while it runs.

    By leaf, so that any part of the net can be called on its own, as `vae.encode` and `vae.decode` are. Without streams: they would
    overlap moving and computing, but trace the order of layers in one whole pass, which an engine that calls parts never makes.
    """
    net.enable_group_offload(onload_device=device, offload_type="leaf_level")


def _is_block_layer(name: str) -> bool:
    return _BLOCK_LAYER.fullmatch(name) is not None


def _vae_scale_factor(vae: Any) -> int:
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def _check_fit(transformer: Any, vae: Any, text_encoder: Any) -> None:
    for fits, sentence in (
        (transformer.config.patch_size * _vae_scale_factor(vae) == PATCH_PX, f"patch size times VAE scale is not {PATCH_PX} pixels"),
        (transformer.config.in_channels == vae.config.latent_channels, "transformer and VAE differ in latent channels"),
        (transformer.config.text_embed_dim == text_encoder.config.d_model, "transformer and text encoder differ in embedding size"),
        (vae.config.latents_mean is not None and vae.config.latents_std is not None, "the VAE has no latents_mean and latents_std"),
    ):
        if not fits:
            raise StartupError(f"the parts of the checkpoint do not fit: {sentence}")
