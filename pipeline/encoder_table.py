"""Facts of known pathology encoders, which complete a config entry that names one (standard library only).

What their authors or hubs state, looked up on the pages cited with each; what could not be verified is left out, and is
then the network's own. `um_per_px` and the feature widths of encoders other than their authors' own pages are those of
the table of patch encoders in the README of TRIDENT (`TABLE`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.contracts.encoders import IMPORTED
from pipeline.contracts.errors import InputError, nearest

HUB = "https://huggingface.co/"
TABLE = "https://github.com/mahmoodlab/TRIDENT/blob/main/README.md"
BUILDERS = "https://github.com/mahmoodlab/TRIDENT/blob/main/trident/patch_encoder_models/load.py"
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_H_OPTIMUS = {"mean": (0.707223, 0.578729, 0.703617), "std": (0.211883, 0.230117, 0.177517)}
_HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
_SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}
_TOLERANCE = 1.2  # a tile may show the tissue this much finer or coarser than recommended before anything is said


@dataclass(frozen=True)
class KnownEncoder:
    """One encoder.

    Attributes
    ----------
    name : as timm loads it with its weights; `architecture` builds the same network without asking the hub
    width : features per tile
    licence, is_gated : of the weights; gated ones need a login and the acceptance of conditions
    sources : pages that say so
    args, layer, pooling, input_px, mean, std : as in `encoders.EncoderSpec`
    um_per_px : of the tiles that it is meant for, at the size that enters the network; None where nobody says
    obstacle : why timm cannot build it; empty if it can
    """

    name: str
    width: int
    licence: str
    sources: tuple[str, ...]
    is_gated: bool = False
    architecture: str | None = None
    args: Mapping[str, Any] = field(default_factory=dict)
    layer: str | None = None
    pooling: str | None = None
    input_px: int | None = 224
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    um_per_px: float | None = None
    obstacle: str = ""


def _kaiko(architecture: str, width: int, size_px: int = 224) -> KnownEncoder:
    return KnownEncoder(
        f"hf-hub:1aurent/{architecture}.kaiko_ai_towards_large_pathology_fms", width, "Kaiko, non-commercial",
        (f"{HUB}1aurent/{architecture}.kaiko_ai_towards_large_pathology_fms",
         "https://github.com/kaiko-ai/towards_large_pathology_fms", BUILDERS, TABLE),
        architecture=architecture, args={"dynamic_img_size": True, "img_size": size_px}, um_per_px=0.5, **_HALF,
    )  # fmt: skip


def _virchow(name: str, licence: str, **args: Any) -> KnownEncoder:
    return KnownEncoder(
        f"hf-hub:paige-ai/{name}", 2560, licence, (f"{HUB}paige-ai/{name}", BUILDERS, TABLE), is_gated=True,
        architecture="vit_huge_patch14_224", pooling="class_mean", um_per_px=0.5, **IMAGENET,
        args={"img_size": 224, "init_values": 1e-5, "mlp_ratio": 5.3375, "global_pool": "", "dynamic_img_size": True,
              **_SWIGLU, **args},
    )  # fmt: skip


def _h_optimus(name: str, licence: str) -> KnownEncoder:
    return KnownEncoder(
        f"hf-hub:bioptimus/{name}", 1536, licence, (f"{HUB}bioptimus/{name}", BUILDERS, TABLE), is_gated=True,
        architecture="vit_giant_patch14_reg4_dinov2", um_per_px=0.5, **_H_OPTIMUS,
        args={"img_size": 224, "global_pool": "token", "init_values": 1e-5, "dynamic_img_size": False},
    )  # fmt: skip


def _not_timm(name: str, width: int, licence: str, obstacle: str, *sources: str, **facts: Any) -> KnownEncoder:
    return KnownEncoder(name, width, licence, (*sources, BUILDERS, TABLE), obstacle=obstacle, **facts)


_TRANSFORMERS = "its weights are published for the transformers library, in a form that timm does not read"

KNOWN: dict[str, KnownEncoder] = {
    "resnet50": KnownEncoder(
        "resnet50.tv_in1k", 2048, "BSD-3-Clause", (f"{HUB}timm/resnet50.tv_in1k", TABLE), input_px=None, **IMAGENET
    ),
    # what MCAT, SurvPath and their successors call ResNet-50: cut after the third stage, averaged, ImageNet weights
    "papers-resnet50-l3": KnownEncoder(
        "resnet50.tv_in1k", 1024, "BSD-3-Clause", (f"{HUB}timm/resnet50.tv_in1k", BUILDERS, TABLE), layer="layer3",
        input_px=None, **IMAGENET,
    ),
    "uni": KnownEncoder(
        "hf-hub:MahmoodLab/UNI", 1024, "CC-BY-NC-ND-4.0",
        (f"{HUB}MahmoodLab/UNI", "https://github.com/mahmoodlab/UNI", BUILDERS, TABLE), is_gated=True,
        architecture="vit_large_patch16_224", um_per_px=0.5, **IMAGENET,
        args={"img_size": 224, "patch_size": 16, "init_values": 1e-5, "dynamic_img_size": True},
    ),
    "uni2-h": KnownEncoder(
        "hf-hub:MahmoodLab/UNI2-h", 1536, "CC-BY-NC-ND-4.0",
        (f"{HUB}MahmoodLab/UNI2-h", "https://github.com/mahmoodlab/UNI", TABLE), is_gated=True,
        architecture="vit_giant_patch14_224", um_per_px=0.5, **IMAGENET,
        args={"img_size": 224, "patch_size": 14, "depth": 24, "num_heads": 24, "init_values": 1e-5, "embed_dim": 1536,
              "mlp_ratio": 5.33334, "no_embed_class": True, "reg_tokens": 8, "dynamic_img_size": True, **_SWIGLU},
    ),
    "virchow": _virchow("Virchow", "Apache-2.0"),
    "virchow2": _virchow("Virchow2", "CC-BY-NC-ND-4.0", reg_tokens=4),
    "prov-gigapath": KnownEncoder(
        "hf-hub:prov-gigapath/prov-gigapath", 1536, "Apache-2.0",
        (f"{HUB}prov-gigapath/prov-gigapath", "https://github.com/prov-gigapath/prov-gigapath", BUILDERS, TABLE),
        is_gated=True, architecture="vit_giant_patch14_dinov2", um_per_px=0.5, **IMAGENET,
        args={"img_size": 224, "patch_size": 16, "embed_dim": 1536, "depth": 40, "num_heads": 24,
              "mlp_ratio": 5.33334},
    ),
    "h-optimus-0": _h_optimus("H-optimus-0", "Apache-2.0"),
    "h-optimus-1": _h_optimus("H-optimus-1", "CC-BY-NC-ND-4.0"),
    "kaiko-vits16": _kaiko("vit_small_patch16_224", 384),
    "kaiko-vits8": _kaiko("vit_small_patch8_224", 384),
    "kaiko-vitb16": _kaiko("vit_base_patch16_224", 768),
    "kaiko-vitb8": _kaiko("vit_base_patch8_224", 768),
    "kaiko-vitl14": _kaiko("vit_large_patch14_reg4_dinov2", 1024, 518),
    "lunit-vits8": KnownEncoder(
        "hf-hub:1aurent/vit_small_patch8_224.lunit_dino", 384, "Lunit, non-commercial",
        (f"{HUB}1aurent/vit_small_patch8_224.lunit_dino", "https://github.com/lunit-io/benchmark-ssl-pathology",
         BUILDERS, TABLE),
        architecture="vit_small_patch8_224", um_per_px=0.5,
    ),
    "phikon": _not_timm(
        "hf-hub:owkin/phikon", 768, "Owkin, non-commercial", _TRANSFORMERS, f"{HUB}owkin/phikon",
        "https://github.com/owkin/HistoSSLscaling", um_per_px=0.5, **IMAGENET,
    ),
    "phikon-v2": _not_timm(
        "hf-hub:owkin/phikon-v2", 1024, "Owkin, non-commercial", _TRANSFORMERS, f"{HUB}owkin/phikon-v2",
        um_per_px=0.5, **IMAGENET,
    ),
    "hibou-l": _not_timm(
        "hf-hub:histai/hibou-L", 1024, "Apache-2.0", f"{_TRANSFORMERS}, with code of its own", f"{HUB}histai/hibou-L",
        is_gated=True, um_per_px=0.5, mean=(0.7068, 0.5755, 0.722), std=(0.195, 0.2316, 0.1816),
    ),
    "conch": _not_timm(
        "hf-hub:MahmoodLab/CONCH", 512, "CC-BY-NC-ND-4.0",
        "it is the image half of a vision-language model that only its own package `conch` builds",
        f"{HUB}MahmoodLab/CONCH", is_gated=True, um_per_px=0.5,
    ),
    "ctranspath": _not_timm(
        "ctranspath", 768, "GPL-3.0", "it is a Swin transformer whose stem only an altered timm (timm_ctp) builds",
        "https://github.com/Xiyue-Wang/TransPath", um_per_px=1.0, **IMAGENET,
    ),
}  # fmt: skip

_COMPLETED = ("architecture", "layer", "pooling", "input_px", "mean", "std")


def find(entry: Mapping[str, Any]) -> str | None:
    """Which known encoder a config entry means: by ``preset``, by ``name``, or by ``slug`` where it has no name."""
    preset, name, slug = (entry.get(key) for key in ("preset", "name", "slug"))
    if preset:
        return preset
    if name:
        hub = name.replace("hf_hub:", "hf-hub:").lower()
        of_hub = (key for key, known in KNOWN.items() if hub.startswith("hf-hub:") and known.name.lower() == hub)
        return next(of_hub, None)
    return slug if slug in KNOWN else None


def completed(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A config entry with what is known of its encoder wherever it says nothing itself.

    Features that another tool made stay as they are: nothing is built for them. Raises InputError for an unknown
    preset, for an entry that names nothing, and for an encoder that timm cannot build.
    """
    entry = dict(entry)
    if entry.get("weights") == IMPORTED:
        return entry
    key = find(entry)
    where = f"config.yaml encoders '{entry.get('slug') or key or entry.get('name') or '?'}'"
    if key is None:
        if not entry.get("name"):
            raise InputError(where, "neither name nor preset is given.", f"presets are {', '.join(KNOWN)}.")
        if not entry.get("slug"):
            raise InputError(where, "slug is missing: it names the folder of the features.")
        return entry
    if key not in KNOWN:
        raise InputError(where, f"unknown preset '{key}'{nearest(key, KNOWN)}.", f"presets are {', '.join(KNOWN)}.")
    known = KNOWN[key]
    if known.obstacle:
        raise InputError(
            where, f"{key} cannot be loaded: {known.obstacle} ({known.sources[0]}).",
            "embed with its own code and bring the features in, or choose another encoder.",
        )  # fmt: skip
    entry["slug"] = entry.get("slug") or key
    entry["preset"] = key
    entry["name"] = entry.get("name") or known.name
    for field_name in _COMPLETED:
        if entry.get(field_name) is None:
            value = getattr(known, field_name)
            entry[field_name] = list(value) if isinstance(value, tuple) else value
    entry["args"] = {**known.args, **(entry.get("args") or {})}
    return entry


def departures(entry: Mapping[str, Any], size_px: int, magnifications: Sequence[float]) -> list[str]:
    """How the tiles of a run depart from what a completed entry's encoder is meant for, one sentence each."""
    known = KNOWN.get(entry.get("preset") or "")
    if known is None or known.um_per_px is None:
        return []
    remarks = []
    for magnification in magnifications:
        seen = 10 / magnification * size_px / (entry.get("input_px") or size_px)
        if not known.um_per_px / _TOLERANCE <= seen <= known.um_per_px * _TOLERANCE:
            remarks.append(
                f"encoder '{entry['slug']}' sees {seen:.3g} um/px at {magnification:g}x (tiles of {size_px} px), and is"
                f" meant for {known.um_per_px:g} ({known.sources[-1]})"
            )
    return remarks
