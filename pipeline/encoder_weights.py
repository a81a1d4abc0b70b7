"""Where an encoder's weights come from: timm's download, the Hugging Face hub, or a checkpoint file of the user's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.contracts.encoders import EncoderFacts
from pipeline.contracts.errors import InputError, nearest
from pipeline.contracts.files import bytes_digest, whole_file
from pipeline.encoder_network import Encoder, build_network, weights_digest
from pipeline.encoders import EncoderSpec

#: what checkpoints nest a state dict in, the better one first, and what they put before its names
_NESTED = ("state_dict", "model_state_dict", "teacher", "model", "student", "module")
_PREFIXES = ("module.", "model.", "backbone.", "encoder.", "network.")

_GATED = ("GatedRepoError", "RepositoryNotFoundError", "LocalTokenNotFoundError")
_UNREACHABLE = ("LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectionError", "ConnectError", "URLError")


def fetched(spec: EncoderSpec) -> tuple[nn.Module, dict[str, Any]]:
    """The network with its weights, and the arguments that timm builds it with beside its name.

    Raises InputError for a name that does not exist and for weights that cannot be had or do not fit.
    """
    args = dict(spec.args)
    if spec.input_px is not None and _takes_image_size(spec):
        args.setdefault("img_size", spec.input_px)
    try:
        network = build_network(spec.built_from, args, pretrained=spec.weights == "pretrained", seed=spec.seed)
    except Exception as error:  # timm and its download library raise a dozen kinds
        raise _cannot_build(spec, error) from error
    if spec.weights == "file":
        _load_state(spec, network)
    return network, {**_published_args(spec), **args}


def described(spec: EncoderSpec, network: nn.Module, args: dict[str, Any]) -> EncoderFacts:
    """The facts of a fetched network. Raises InputError for a layer or pooling that it does not have."""
    import timm

    data = timm.data.resolve_model_data_config(network)
    config = json.loads(json.dumps(getattr(network, "pretrained_cfg", None) or {}, default=str))
    input_px = spec.input_px or (data["input_size"][-1] if config.get("fixed_input_size") else None)
    if spec.pooling and not getattr(network, "num_prefix_tokens", 0):
        raise InputError(spec.where, f"pooling '{spec.pooling}' needs a transformer with a class token.")
    facts = EncoderFacts(
        slug=spec.slug,
        name=spec.name,
        title=f"{spec.name} (RANDOM weights, seed {spec.seed})" if spec.weights == "random" else spec.name,
        weights=spec.weights,
        weights_digest=weights_digest(network),
        file_digest=bytes_digest(spec.path) if spec.path else "",
        layer=spec.layer or "",
        width=0,
        input_px=input_px,
        mean=tuple(spec.mean or data["mean"]),
        std=tuple(spec.std or data["std"]),
        pooling=spec.pooling or "",
        architecture=config.get("architecture") or spec.built_from,
        args=args,
        config={key: value for key, value in config.items() if key not in ("url", "file", "state_dict", "source")},
    )
    side = input_px or data["input_size"][-1]
    trial = Encoder(network, facts).encode(np.zeros((1, side, side, 3), np.uint8))
    if trial.ndim != 2:
        problem = f"gives an array of shape {trial.shape} per tile, expected [1, features]."
        raise InputError(spec.where, problem, "set its pooling, or a layer.")
    return replace(facts, width=trial.shape[1])


def save_weights(path: str | Path, network: nn.Module) -> None:
    """Write every tensor of the network, the same bytes for the same weights."""
    state = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in network.state_dict().items()}
    with whole_file(path) as part:
        save_file(state, part)


def _published_args(spec: EncoderSpec) -> dict[str, Any]:
    """What the page or folder that a network is built from adds to the call; it is in the cache by now."""
    from timm.models import load_model_config_from_hf

    source, _, place = spec.built_from.partition(":")
    if source in ("hf-hub", "hf_hub"):
        return load_model_config_from_hf(place)[2] or {}
    if source == "local-dir":
        return json.loads(Path(place, "config.json").read_text()).get("model_args") or {}
    return {}


def _takes_image_size(spec: EncoderSpec) -> bool:
    """Whether a network is built for one image size, so that another must be said when it is built."""
    from pipeline.torchvision_ops import ensure_torchvision

    ensure_torchvision()
    import timm

    if ":" in spec.built_from:
        return False
    cfg = timm.get_pretrained_cfg(spec.built_from, allow_unregistered=True)
    return bool(cfg and cfg.fixed_input_size)


def _cannot_build(spec: EncoderSpec, error: Exception) -> InputError:
    import timm

    base = spec.built_from.split(".")[0]
    if ":" not in spec.built_from and not timm.is_model(base):
        hint = nearest(base, timm.list_models())
        return InputError(spec.where, f"timm knows no model '{base}'{hint}", "see timm.list_models().")
    if "Invalid pretrained tag" in str(error):
        tags = ", ".join(timm.list_pretrained(f"{base}.*")) or "none"
        return InputError(spec.where, f"no such weights; known: {tags}.", "use one of these names.")
    root = list(_chain(error))[-1]
    cause = f"{type(root).__name__}: {' '.join(str(root).split())[:300]}"
    repository = spec.hub_id or f"timm/{spec.name}"
    if _is_gated(error):
        return InputError(
            spec.where,
            f"the hub does not give it out without a licence or a login, or has no model of this name ({cause}).",
            f"log in on https://huggingface.co/{repository} and accept its conditions, make a read token on"
            " https://huggingface.co/settings/tokens, set the variable HF_TOKEN to it, and run `snakemake weights`.",
        )
    if _is_unreachable(error):
        return InputError(
            spec.where,
            f"its weights are neither in the cache nor reachable: there is no network here ({cause}).",
            "run `snakemake --cores 1 weights` on a machine with a network that shares this folder; or save the state"
            " dict elsewhere and set weights: file with path.",
        )
    return InputError(
        spec.where,
        f"it could not be fetched or built ({cause}).",
        "check its name and `args`; or save its state dict elsewhere and set weights: file with path.",
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _kinds(error: BaseException) -> set[str]:
    return {kind.__name__ for link in _chain(error) for kind in type(link).__mro__}


def _is_gated(error: BaseException) -> bool:
    codes = {getattr(getattr(link, "response", None), "status_code", None) for link in _chain(error)}
    return bool(_kinds(error) & set(_GATED) or codes & {401, 403})


def _is_unreachable(error: BaseException) -> bool:
    unknown_host = any("Name or service not known" in str(link) for link in _chain(error))
    return bool(_kinds(error) & set(_UNREACHABLE)) or unknown_host


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
    state = _without_prefixes(state, set(network.state_dict()))
    heads = getattr(network, "pretrained_cfg", {}).get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    state = {key: value for key, value in state.items() if not key.startswith(tuple(f"{h}." for h in heads))}
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        cause = " ".join(str(error).split())[:400]
        fix = "set `name` (or `architecture`) and `args` to what the file was saved from."
        raise InputError(spec.where, f"weights file '{path}' does not fit the network: {cause}", fix) from error


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        return load_file(path)
    body = torch.load(path, map_location="cpu", weights_only=True)
    while (key := next((k for k in _NESTED if isinstance(body.get(k), dict)), None)) is not None:
        body = body[key]
    tensors = {key: value for key, value in body.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise ValueError("it holds no tensors")
    return tensors


def _without_prefixes(state: dict[str, torch.Tensor], wanted: set[str]) -> dict[str, torch.Tensor]:
    """Take off what wrappers put before names, layer by layer; what a wrapper holds beside the network is dropped."""
    while not wanted & set(state):
        prefix = next((p for p in _PREFIXES if any(key.startswith(p) for key in state)), None)
        if prefix is None:
            break
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return state
