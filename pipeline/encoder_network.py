"""The network behind an encoder: built by timm, its weights loaded and digested, its tiles preprocessed."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.contracts.encoders import EncoderFacts
from pipeline.contracts.errors import InputError, nearest
from pipeline.contracts.files import bytes_digest
from pipeline.encoders import EncoderSpec
from pipeline.torchvision_ops import ensure_torchvision

_AUTOCAST = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Encoder:
    """A frozen network that turns tiles into features.

    Parameters
    ----------
    network : in evaluation mode; images [B, 3, H, W] to features [B, D], or to maps [B, D, h, w] with `layer_index`
    facts : of the same network
    layer_index : index among the network's intermediate maps, None for its own pooled output
    device : as torch names it
    precision : float32, or the autocast type bfloat16 or float16
    """

    def __init__(
        self,
        network: nn.Module,
        facts: EncoderFacts,
        layer_index: int | None,
        device: str = "cpu",
        precision: str = "float32",
    ) -> None:
        self.facts = facts
        self.device = torch.device(device)
        # Weights [out, in, height, width] in channels-last order: convolutions on images of that order run 1.5x faster.
        self._network = network.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._layer_index = layer_index
        self._autocast = _AUTOCAST[precision]
        self._mean = torch.tensor(facts.mean, device=self.device).view(1, 3, 1, 1) * 255
        self._std = torch.tensor(facts.std, device=self.device).view(1, 3, 1, 1) * 255

    @torch.inference_mode()
    def encode(self, tiles: np.ndarray) -> np.ndarray:
        """Features float32 [B, D] of uint8 tiles [B, H, W, 3]."""
        images = torch.from_numpy(np.ascontiguousarray(tiles)).to(self.device).permute(0, 3, 1, 2).float()
        images = ((_resize(images, self.facts.input_px) - self._mean) / self._std).contiguous(
            memory_format=torch.channels_last
        )
        mixed = self._autocast is not None
        with torch.autocast(self.device.type, self._autocast) if mixed else nullcontext():
            features = self._forward(images)
        return features.float().cpu().numpy()

    def _forward(self, images: torch.Tensor) -> torch.Tensor:
        if self._layer_index is None:
            return self._network(images)
        maps = self._network.forward_intermediates(
            images, indices=[self._layer_index], norm=False, stop_early=True, intermediates_only=True
        )
        return maps[0].float().mean(dim=(2, 3))


def _resize(images: torch.Tensor, side: int | None) -> torch.Tensor:
    """Bicubic with antialiasing, kept within 0-255; images [B, 3, H, W] that have the side pass unchanged."""
    if side is None or images.shape[-2:] == (side, side):
        return images
    return nn.functional.interpolate(images, (side, side), mode="bicubic", antialias=True).clamp_(0, 255)


def load_encoder(
    spec: EncoderSpec, facts: EncoderFacts | None = None, device: str = "cpu", precision: str = "float32"
) -> Encoder:
    """Build an encoder. With `facts`, refuse weights that are not those of the facts.

    Raises InputError for a name or layer that does not exist and for weights that cannot be had or do not
    fit.
    """
    network = _build_network(spec)
    layer_index = _layer_index(spec, network)
    digest = weights_digest(network)
    if facts is None:
        facts = _describe(spec, network, layer_index, digest)
    elif facts.weights_digest != digest:
        raise InputError(
            spec.where,
            "its weights are not those it was prepared with (another file, download or version of torch).",
            f"delete results/encoders/{spec.slug}.json and run again: its features will be made anew.",
        )
    return Encoder(network, facts, layer_index, device, precision)


def _build_network(spec: EncoderSpec) -> nn.Module:
    ensure_torchvision()
    import timm

    arguments: dict[str, Any] = {"num_classes": 0}
    pretrained = spec.weights == "pretrained"
    if spec.input_px is not None and _takes_image_size(timm, spec.name):
        arguments["img_size"] = spec.input_px
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.seed)
            network = timm.create_model(spec.name, pretrained=pretrained, **arguments)
    except Exception as error:  # timm and its download library raise a dozen kinds
        raise _cannot_build(spec, timm, error) from error
    if spec.weights == "file":
        _load_state(spec, network)
    return network.eval().requires_grad_(False)


def _takes_image_size(timm: Any, name: str) -> bool:
    """Whether a network is built for one image size, so that another must be said when it is built."""
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=True) if not name.startswith("hf-hub:") else None
    return bool(cfg and cfg.fixed_input_size)


def _cannot_build(spec: EncoderSpec, timm: Any, error: Exception) -> InputError:
    base = spec.name.split(".")[0]
    if ":" not in spec.name and not timm.is_model(base):
        hint = nearest(base, timm.list_models())
        return InputError(spec.where, f"timm knows no model '{base}'{hint}", "see timm.list_models().")
    if "Invalid pretrained tag" in str(error):
        tags = ", ".join(timm.list_pretrained(f"{base}.*")) or "none"
        return InputError(spec.where, f"no such weights; known: {tags}.", "use one of these names.")
    cause = " ".join(str(error).split())[:300]
    return InputError(
        spec.where,
        f"'{spec.name}' could not be fetched or built ({type(error).__name__}: {cause}).",
        "run prepare_encoder where there is a network (and access to the model, if it is gated), or save its state"
        " dict elsewhere and set weights: file with path.",
    )


def _load_state(spec: EncoderSpec, network: nn.Module) -> None:
    """Load a state dict strictly; only the classifier, which is cut off, may be left over."""
    path = Path(spec.path or "")
    if not path.is_file():
        raise InputError(spec.where, f"weights file '{path}' does not exist.", "correct path in config.yaml.")
    try:
        state = _read_state(path)
    except Exception as error:
        raise InputError(
            spec.where,
            f"weights file '{path}' is not a plain state dict ({type(error).__name__}).",
            "save model.state_dict() with torch.save or safetensors; whole pickled models are not loaded.",
        ) from error
    heads = getattr(network, "pretrained_cfg", {}).get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    state = {key: value for key, value in state.items() if not key.startswith(tuple(f"{h}." for h in heads))}
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        cause = " ".join(str(error).split())[:400]
        raise InputError(spec.where, f"weights file '{path}' does not fit the network: {cause}") from error


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    body = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("state_dict", "model"):
        if isinstance(body.get(key), dict):
            body = body[key]
    return {key.removeprefix("module."): value for key, value in body.items()}


def weights_digest(network: nn.Module) -> str:
    """SHA-256 (hex) of every tensor of the state dict with its name, type and shape, in order of names."""
    total = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.contiguous().cpu().reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def _layer_index(spec: EncoderSpec, network: nn.Module) -> int | None:
    if spec.layer is None:
        return None
    info = getattr(network, "feature_info", None) or []
    names = [entry["module"] for entry in info]
    if spec.layer not in names or not hasattr(network, "forward_intermediates"):
        known = ", ".join(names) or "none"
        raise InputError(spec.where, f"layer '{spec.layer}' is none of: {known}{nearest(spec.layer, names)}")
    return names.index(spec.layer)


def _describe(spec: EncoderSpec, network: nn.Module, layer_index: int | None, digest: str) -> EncoderFacts:
    import timm

    data = timm.data.resolve_model_data_config(network)
    fixed = getattr(network, "pretrained_cfg", {}).get("fixed_input_size", False)
    input_px = spec.input_px or (data["input_size"][-1] if fixed else None)
    facts = EncoderFacts(
        slug=spec.slug,
        name=spec.name,
        title=f"{spec.name} (RANDOM weights, seed {spec.seed})" if spec.weights == "random" else spec.name,
        weights=spec.weights,
        weights_digest=digest,
        file_digest=bytes_digest(spec.path) if spec.path else "",
        layer=spec.layer or "",
        width=0,
        input_px=input_px,
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
    )
    side = input_px or data["input_size"][-1]
    trial = Encoder(network, facts, layer_index).encode(np.zeros((1, side, side, 3), np.uint8))
    if trial.ndim != 2:
        raise InputError(spec.where, f"gives an array of shape {trial.shape} per tile, expected [1, features].")
    return replace(facts, width=trial.shape[1])
