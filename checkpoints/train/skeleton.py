"""The VAE's linear path, which is trained first, and how it is set into the real net."""

from __future__ import annotations

import math

import torch
from diffusers import AutoencoderKL
from torch import nn
from torch.nn import functional as F

from checkpoints.train.networks import LATENT_CHANNELS

_POSTERIOR_STD = 0.1


class Skeleton(nn.Module):  # type: ignore[misc]  # torch is Any to mypy
    """
    The linear path through an AutoencoderKL: no norms, no activations, no residual branches, a 1x1 convolution at either end.

    It finds a linear code of 8x8 blocks in minutes. A block PCA cannot be put in its place: a constant latent, upsampled by
    repetition and 3x3 convolutions, gives a constant patch, so the decoder must learn kernels that overlap.
    """

    def __init__(self, net: AutoencoderKL) -> None:
        super().__init__()
        self.net = net
        channels = net.config.block_out_channels
        self.down = nn.Linear(channels[2], LATENT_CHANNELS)
        self.up = nn.Linear(channels[1], 3)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, height, width) -> (B, 16, height / 8, width / 8)."""
        hidden = self.net.encoder.conv_in(pixels)
        for block in self.net.encoder.down_blocks[:3]:
            hidden = block.downsamplers[0](_shortcut(block.resnets[0], hidden))
        return F.conv2d(hidden, self.down.weight[:, :, None, None], self.down.bias)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, 16, height / 8, width / 8) -> (B, 3, height, width)."""
        hidden = self.net.decoder.conv_in(latents)
        for block in self.net.decoder.up_blocks[:3]:
            hidden = block.upsamplers[0](_shortcut(block.resnets[0], hidden))
        return F.conv2d(hidden, self.up.weight[:, :, None, None], self.up.bias)

    def install(self, pixels: torch.Tensor) -> None:
        """Make the net compute nearly what the skeleton does: latents whitened over `pixels`, residual branches silent."""
        with torch.no_grad():
            self._install(pixels)

    def _install(self, pixels: torch.Tensor) -> None:
        net = self.net
        for module in net.modules():
            if type(module).__name__ == "ResnetBlock2D":
                nn.init.zeros_(module.conv2.weight)
                nn.init.zeros_(module.conv2.bias)
        flat = self.encode(pixels).permute(1, 0, 2, 3).flatten(1)
        mean = flat.mean(1)
        variances, axes = torch.linalg.eigh(torch.cov(flat))
        variances = variances.clamp(min=1e-8)
        whiten = (axes * variances.rsqrt()).T
        encoder_out = net.encoder.conv_out
        _route(
            net.encoder.down_blocks[3].resnets[0].conv_shortcut,
            net.encoder.conv_norm_out,
            encoder_out,
            whiten @ self.down.weight,
            whiten @ (self.down.bias - mean),
        )
        nn.init.zeros_(encoder_out.weight[LATENT_CHANNELS:])
        nn.init.constant_(encoder_out.bias[LATENT_CHANNELS:], 2 * math.log(_POSTERIOR_STD))
        decoder_in = net.decoder.conv_in
        old = decoder_in.weight.clone()
        # Exact but for the rim, where padding with zeros is not padding with the mean.
        decoder_in.bias += torch.einsum("oikl,i->o", old, mean)
        decoder_in.weight.copy_(torch.einsum("oikl,ij->ojkl", old, axes * variances.sqrt()))
        _route(
            net.decoder.up_blocks[3].resnets[0].conv_shortcut,
            net.decoder.conv_norm_out,
            net.decoder.conv_out,
            self.up.weight,
            self.up.bias,
        )


def _shortcut(resnet: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    shortcut = resnet.conv_shortcut
    result: torch.Tensor = hidden if shortcut is None else shortcut(hidden)
    return result


def _route(
    shortcut: nn.Conv2d, norm: nn.GroupNorm, out: nn.Conv2d, weight: torch.Tensor, bias: torch.Tensor, constant: float = 8.0
) -> None:
    """
    Lead a linear map, `weight` (n, in) and `bias`, through the last shortcut, norm, SiLU and convolution.

    Each output travels as a pair, for silu(v) - silu(-v) = v, beside two large constants that make the norm nearly a fixed scale.
    """
    constant = 8.0
    count = len(weight)
    rest = shortcut.weight[2 * count + 2 :] * 0.3
    shortcut.weight.zero_()
    shortcut.bias.zero_()
    shortcut.weight[:count, :, 0, 0], shortcut.weight[count : 2 * count, :, 0, 0] = weight, -weight
    shortcut.bias[:count], shortcut.bias[count : 2 * count] = bias, -bias
    shortcut.bias[2 * count], shortcut.bias[2 * count + 1] = constant, -constant
    shortcut.weight[2 * count + 2 :] = rest
    # 0.3 is a guess of what the signal itself adds to the variance.
    norm.weight.fill_((2 * constant**2 / shortcut.out_channels + 0.3) ** 0.5)
    norm.bias.zero_()
    out.weight.mul_(0.02)
    out.bias.zero_()
    for i in range(count):
        out.weight[i, i, 1, 1] += 1
        out.weight[i, count + i, 1, 1] -= 1
