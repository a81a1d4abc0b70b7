"""The network behind an encoder: built by timm from fetched weights, its tiles preprocessed, its output pooled."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from pipeline.contracts.encoders import EncoderFacts
from pipeline.contracts.errors import InputError, nearest
from pipeline.torchvision_ops import ensure_torchvision

_AUTOCAST = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Encoder:
    """A frozen network that turns tiles into features.

    Parameters
    ----------
    network : in evaluation mode; images [B, 3, H, W] to features [B, D], or to tokens or maps where the facts name a
        pooling or a layer
    facts : of the same network
    device : as torch names it
    precision : float32, or the autocast type bfloat16 or float16
    """

    def __init__(
        self, network: nn.Module, facts: EncoderFacts, device: str | torch.device = "cpu", precision: str = "float32"
    ) -> None:
        self.facts = facts
        self.device = torch.device(device)
        # Weights and images in channels-last order: on a CPU 1.2 times as fast as torch's own on a ResNet-50, no slower
        # on a ViT-S (benchmarks/cpu_encoders.py). The rule for compiling: only where it gains a fifth on every network.
        # It gained up to a fifth on the one and nothing on the other, takes 10 to 100 s in every job, and ties the last
        # bits of the features to whether a C++ compiler is there.
        self._network = network.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._layer_index = _layer_index(facts, network) if facts.layer else None
        self._autocast = _AUTOCAST[precision]
        self._mean = torch.tensor(facts.mean, device=self.device).view(1, 3, 1, 1) * 255
        self._std = torch.tensor(facts.std, device=self.device).view(1, 3, 1, 1) * 255

    @torch.inference_mode()
    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        """Features float32 [B, D] of uint8 tiles [B, H, W, 3], both on the encoder's device; does not wait for it."""
        images = tiles.permute(0, 3, 1, 2).float()
        images = ((_resize(images, self.facts.input_px) - self._mean) / self._std).contiguous(
            memory_format=torch.channels_last
        )
        mixed = self._autocast is not None
        with torch.autocast(self.device.type, self._autocast) if mixed else nullcontext():
            features = self._forward(images)
        return features.float()

    def encode(self, tiles: np.ndarray) -> np.ndarray:
        """Features float32 [B, D] of uint8 tiles [B, H, W, 3] in the host's memory."""
        return self(torch.from_numpy(np.ascontiguousarray(tiles)).to(self.device)).cpu().numpy()

    def _forward(self, images: torch.Tensor) -> torch.Tensor:
        if self._layer_index is not None:
            maps = self._network.forward_intermediates(
                images, indices=[self._layer_index], norm=False, stop_early=True, intermediates_only=True
            )
            return maps[0].float().mean(dim=(2, 3))
        if self.facts.pooling:
            return _pooled(self._network.forward_features(images), self._network.num_prefix_tokens, self.facts.pooling)
        return self._network(images)


def _pooled(tokens: torch.Tensor, n_prefix: int, pooling: str) -> torch.Tensor:
    """[B, N, D] to [B, D] or, class and mean one after the other, [B, 2 D]; registers are neither class nor patch."""
    parts = []
    if "class" in pooling:
        parts.append(tokens[:, 0])
    if "mean" in pooling:
        parts.append(tokens[:, n_prefix:].mean(dim=1))
    return torch.cat(parts, dim=-1)


def _resize(images: torch.Tensor, side: int | None) -> torch.Tensor:
    """Bicubic with antialiasing, kept within 0-255; images [B, 3, H, W] that have the side pass unchanged."""
    if side is None or images.shape[-2:] == (side, side):
        return images
    return nn.functional.interpolate(images, (side, side), mode="bicubic", antialias=True).clamp_(0, 255)


def load_encoder(
    facts: EncoderFacts, weights: str | Path, device: str | torch.device = "cpu", precision: str = "float32"
) -> Encoder:
    """Build an encoder from what `fetch_weights` left; asks nothing of any network.

    Raises InputError when the weights are gone, damaged, or not those of the facts.
    """
    where, fix = f"encoder '{facts.slug}' ({facts.name})", f"delete {weights} and run again: they are fetched anew."
    try:
        state = load_file(weights)
    except FileNotFoundError as error:
        raise InputError(where, f"its weights are not at {weights}.", "run `snakemake weights`.") from error
    except SafetensorError as error:
        raise InputError(where, f"its weights at {weights} are damaged ({error}).", fix) from error
    try:
        network = build_network(facts.architecture, facts.args, facts.config)
        network.load_state_dict(state, strict=True)
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(where, f"its weights no longer fit the network ({error}).", fix) from error
    if weights_digest(network) != facts.weights_digest:
        raise InputError(where, "its weights are not those that were fetched.", fix)
    return Encoder(network, facts, device, precision)


def build_network(
    name: str, args: dict[str, Any], config: dict[str, Any] | None = None, pretrained: bool = False, seed: int = 0
) -> nn.Module:
    """Have timm build a network without classifier, frozen; weights that are not pretrained are drawn from `seed`.

    `args` may name layers by their class in ``timm.layers`` or ``torch.nn``, such as ``mlp_layer: SwiGLUPacked``.
    """
    ensure_torchvision()
    import timm

    classes = {
        key: getattr(timm.layers, value, None) or getattr(nn, value, value)
        for key, value in args.items()
        if key.endswith("_layer") and isinstance(value, str)
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = timm.create_model(
            name, pretrained=pretrained, pretrained_cfg=config or None, **{"num_classes": 0, **args, **classes}
        )
    return network.eval().requires_grad_(False)


def weights_digest(network: nn.Module) -> str:
    """SHA-256 (hex) of every tensor of the state dict with its name, type and shape, in order of names."""
    total = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.contiguous().cpu().reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def _layer_index(facts: EncoderFacts, network: nn.Module) -> int:
    info = getattr(network, "feature_info", None) or []
    names = [entry["module"] for entry in info]
    if facts.layer not in names or not hasattr(network, "forward_intermediates"):
        known = ", ".join(names) or "none"
        where = f"encoder '{facts.slug}' ({facts.name})"
        raise InputError(where, f"layer '{facts.layer}' is none of: {known}{nearest(facts.layer, names)}")
    return names.index(facts.layer)
