"""encoders/{slug}.json: what an encoder is, with the digest of its weights, so that no job loads it to know.

Beside it lie the weights themselves, as ``{slug}.safetensors``: what compute jobs load, without any network.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.contracts.errors import FormatError
from pipeline.contracts.files import read_json, write_json
from pipeline.contracts.revisions import REVISIONS

KIND = "encoder"
FORMAT_VERSION = 2
IMPORTED = "imported"  #: weights of an encoder whose bags another tool made; nothing is prepared for it


@dataclass(frozen=True)
class EncoderFacts:
    """An encoder as its weights were fetched.

    Attributes
    ----------
    slug, name : folder of its features; the timm or hf-hub name
    title : the name with what must not be overlooked, such as random weights
    weights : pretrained, file or random
    weights_digest : SHA-256 of every tensor with its name, type and shape
    file_digest : SHA-256 of the weights file, empty unless `weights` is file
    layer : the layer that the network is cut after, empty for its own output
    width : features per tile
    input_px : side that tiles are resized to, None for tiles as they are
    mean, std : per channel (red, green, blue), of pixels in 0-1
    pooling : how tokens become features, empty for the network's own way
    architecture, args, config : what timm builds the network from, without its weights and without a network
    """

    slug: str
    name: str
    title: str
    weights: str
    weights_digest: str
    file_digest: str
    layer: str
    width: int
    input_px: int | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pooling: str = ""
    architecture: str = ""
    args: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


def write_facts(path: str | Path, facts: EncoderFacts) -> None:
    write_json(path, KIND, FORMAT_VERSION, {"revision": REVISIONS["features"], **asdict(facts)})


def read_facts(path: str | Path) -> EncoderFacts:
    """Raises FileNotFoundError for an encoder without fetched weights, FormatError for a damaged file."""
    body = read_json(path, KIND, FORMAT_VERSION)
    try:
        known = {key: body[key] for key in EncoderFacts.__dataclass_fields__}
    except KeyError as error:
        raise FormatError(f"{path}: {error} is missing. Fix: delete it and rerun fetch_weights.") from error
    return EncoderFacts(**{**known, "mean": tuple(known["mean"]), "std": tuple(known["std"])})
