"""
The AR half of a checkpoint -> the net and its processor on a device, or a clear refusal to start.

Knows the published folder layout and the library versions that work. Loads vision_language_encoder and processor, never the
decoder half; from local safetensors only, so that loading runs no code of the checkpoint.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import GlmImageForConditionalGeneration, GlmImageProcessor

from services.ar_worker.sampling import SamplingRules
from shared.adapters import Adapters
from shared.errors import StartupError
from shared.lora import Lora
from shared.net_loading import NetOptions, choose_device, choose_dtype, load_net, load_part
from shared.offload import park
from shared.quantization import quantize_linears

_PROVED_TRANSFORMERS = "5.17.0"
"""What glmq's tokens are proved against. 5.0 has the first GLM-Image; 5.18 changed what image features look like."""

_DEFAULT_OPTIONS = NetOptions()

_ATTENTION = {"auto": None, "native": "sdpa", "flash": "flash_attention_2", "flash_3": "flash_attention_3"}
"""transformers' names."""

_LANGUAGE_LAYER = re.compile(r"model\.language_model\.layers\.\d+\.(self_attn|mlp)\.\w+")
"""
The linear layers of the language model: nearly all that is read for a token, so what is quantised, and what an adapter may change.

Not lm_head, which has less than a hundredth of the weights and the last word on every token; not the vision tower and the VQ, whose
ids of a source image must be the same with every adapter, because they are shared.
"""


@dataclass(frozen=True)
class ArModel:
    """
    The AR net with its processor, and what the engine asks them for again and again.

    Attributes:
        control_ids: ids that a prompt's own text must not contain: vision ids and every special token.
        max_positions: longest sequence, prompt and generated ids together.
        options: what the operator chose; all of it is done when the model is loaded.
    """

    net: Any
    processor: Any
    rules: SamplingRules
    control_ids: frozenset[int]
    codebook_size: int
    image_token_id: int
    image_start_token_id: int
    image_end_token_id: int
    max_positions: int
    num_layers: int
    device: torch.device
    dtype: torch.dtype
    options: NetOptions
    adapters: Adapters

    def use_lora(self, lora: Lora) -> None:
        """
        Let exactly these adapters act from now on; `()` is the bare model, exactly. Cheap, and nothing at all when they act already.

        Raises:
            PermanentWorkError: `unknown_lora` or `lora_broken`; the adapters that acted before go on to.
        """
        self.adapters.use(lora)


def check_versions(transformers_version: str = transformers.__version__) -> None:
    """
    Refuse a transformers that has no GLM-Image or another one than this worker was written for.

    Raises:
        StartupError: with the command that installs the proved version.
    """
    major, minor = (int(part) for part in transformers_version.split(".")[:2])
    if not (5, 0) <= (major, minor) <= (5, 17):
        raise StartupError(
            f"transformers {transformers_version} does not fit the AR worker: 5.0 to 5.17 do, {_PROVED_TRANSFORMERS} is proved."
            f" Run: pip install transformers=={_PROVED_TRANSFORMERS}"
        )


def load_ar_model(checkpoint_path: Path, device: str = "auto", dtype: str = "auto", options: NetOptions = _DEFAULT_OPTIONS) -> ArModel:
    """
    Load the AR half from a folder in the published layout.

    Args:
        device: `auto` (cuda where there is one, else cpu) or a torch device.
        dtype: `auto` (bfloat16 on cuda, float32 elsewhere), `float32` or `bfloat16`.
    Raises:
        StartupError: a wrong version, a missing or broken part, sampling settings that the engine does not know, or an option that this
            machine or this half cannot do.
    """
    check_versions()
    # Bars drawn with carriage returns would end up between the worker's structured log lines.
    transformers.utils.logging.disable_progress_bar()
    on_device = choose_device(device)
    in_dtype = choose_dtype(dtype, on_device)
    _check_options(options, on_device)
    processor = load_part(GlmImageProcessor, checkpoint_path / "processor")
    net = _load_net(checkpoint_path / "vision_language_encoder", on_device, in_dtype, options)
    return describe(net, processor, on_device, in_dtype, options)


def _check_options(options: NetOptions, device: torch.device) -> None:
    if options.attention not in _ATTENTION:
        raise StartupError(f"GLMQ_ATTENTION={options.attention} is for the decoder; the AR worker has {', '.join(_ATTENTION)}")
    if options.cpu_offload == "all":
        raise StartupError("GLMQ_CPU_OFFLOAD=all is for the decoder: the AR model would be moved once for every token; `idle` is for both")
    if options.compile != "off":
        raise StartupError(f"GLMQ_COMPILE={options.compile} is for the decoder; the AR worker has GLMQ_AR_DECODE")
    options.check(device)


def _load_net(folder: Path, device: torch.device, dtype: torch.dtype, options: NetOptions) -> Any:
    attention = _ATTENTION[options.attention]
    extra = {"attn_implementation": attention} if attention else {}
    # Quantised on the way to the device, where the whole net in its own dtype may not fit.
    first = torch.device("cpu") if options.quantization != "none" else device
    net = load_net(GlmImageForConditionalGeneration, folder, first, dtype, **extra)
    if options.quantization != "none":
        quantize_linears(net, options.quantization, device, lambda name: _LANGUAGE_LAYER.fullmatch(name) is not None)
        net.to(device)
    if options.cpu_offload == "idle":
        park(net.model.visual, device)
    return net


def describe(net: Any, processor: Any, device: torch.device, dtype: torch.dtype, options: NetOptions = _DEFAULT_OPTIONS) -> ArModel:
    """
    A net that is on its device, and its processor, as the engine wants them.

    Raises:
        StartupError: they do not fit each other, or the engine does not know the net's sampling settings.
    """
    config, text_config, tokenizer = net.config, net.config.text_config, processor.tokenizer
    codebook_size = config.vq_config.num_embeddings
    for fits, sentence in (
        (codebook_size <= 2**15, "the codebook has more ids than the int16 of a token grid can name"),
        (codebook_size <= text_config.vision_vocab_size, "the codebook is larger than the vision vocabulary"),
        (processor.image_token_id == config.image_token_id, "tokenizer and model differ in the image token"),
        (tokenizer.bos_token_id == config.image_start_token_id, "tokenizer and model differ in the image start token"),
        (config.image_start_token_id >= codebook_size, "the image start token is a code"),
    ):
        if not fits:
            raise StartupError(f"the parts of the checkpoint do not fit: {sentence}")
    special_ids = {*tokenizer.all_special_ids, *tokenizer.added_tokens_encoder.values()}
    return ArModel(
        net=net,
        processor=processor,
        rules=SamplingRules.read(net.generation_config, codebook_size, text_config.vision_vocab_size, device),
        control_ids=frozenset(special_ids | set(range(text_config.vision_vocab_size))),
        codebook_size=codebook_size,
        image_token_id=config.image_token_id,
        image_start_token_id=config.image_start_token_id,
        image_end_token_id=config.image_end_token_id,
        max_positions=text_config.max_position_embeddings,
        num_layers=text_config.num_hidden_layers,
        device=device,
        dtype=dtype,
        options=options,
        adapters=Adapters.load(
            net,
            lambda name: _LANGUAGE_LAYER.fullmatch(name) is not None,
            "ar",
            options.lora_dir,
            options.lora_memory_gib,
            device,
            dtype,
        ),
    )
