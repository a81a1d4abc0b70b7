"""Patch encoders as the configuration names them, and fetching their weights; torch is imported only for that."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.contracts.cohort import check_id
from pipeline.contracts.encoders import EncoderFacts, write_facts
from pipeline.contracts.errors import InputError
from pipeline.contracts.features import WEIGHTS
from pipeline.contracts.settings import require_choice

logger = logging.getLogger(__name__)

POOLINGS = ("class", "mean", "class_mean")
_HUB = ("hf-hub:", "hf_hub:")


@dataclass(frozen=True)
class EncoderSpec:
    """One entry of section ``encoders`` of the configuration, completed by `encoder_table.completed`.

    `name` is any timm name (``resnet50.tv_in1k``) or ``hf-hub:owner/model``; `args` go to ``timm.create_model``.
    `weights`: ``pretrained`` from the network or its cache, ``file`` at `path` (a state dict), or ``random`` from
    `seed`, for trials only; the last two build `architecture` where `name` is on the hub. `layer` cuts the network
    after one of its stages and averages over the map. `pooling` of a transformer's tokens: ``class``, ``mean`` (of the
    patches) or ``class_mean`` (one after the other); by default the network's own. `input_px` resizes tiles; by default
    only networks with a fixed input size resize. `mean` and `std` replace the network's own.
    """

    slug: str
    name: str
    preset: str | None = None
    architecture: str | None = None
    weights: str = "pretrained"
    path: str | None = None
    seed: int = 0
    layer: str | None = None
    pooling: str | None = None
    input_px: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    args: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"config.yaml encoders (slug '{self.slug}')"
        check_id(self.slug, where, "slug")
        require_choice(f"encoders (slug '{self.slug}') weights", self.weights, WEIGHTS)
        if self.pooling is not None:
            require_choice(f"encoders (slug '{self.slug}') pooling", self.pooling, POOLINGS)
        if (self.weights == "file") != bool(self.path):
            raise InputError(where, "path and weights: file go together.", "give both, or neither.")
        if self.layer and self.pooling:
            raise InputError(where, "a layer's map is always averaged: pooling does not go with it.", "give one.")
        if self.input_px is not None and self.input_px < 16:
            raise InputError(where, f"input_px {self.input_px} is below 16.")

    @property
    def where(self) -> str:
        return f"encoder '{self.slug}' ({self.name})"

    @property
    def hub_id(self) -> str:
        """``owner/model`` on the Hugging Face hub, empty for the names of timm."""
        return self.name.partition(":")[2] if self.name.startswith(_HUB) else ""

    @property
    def built_from(self) -> str:
        """The name that timm builds: without pretrained weights, nothing needs to be asked of the hub."""
        return self.name if self.weights == "pretrained" else self.architecture or self.name


def fetch_weights(spec: EncoderSpec, out_facts: str | Path, out_weights: str | Path) -> EncoderFacts:
    """Fetch or make the weights of an encoder, once and where the network is, and leave them for the compute jobs.

    Raises InputError for a name or layer that does not exist and for weights that cannot be had or do not fit.
    """
    from pipeline.encoder_weights import described, fetched, save_weights

    network, args = fetched(spec)
    facts = described(spec, network, args)
    if facts.weights == "random":
        logger.warning("%s has RANDOM weights: its features carry no learnt content.", spec.where)
    save_weights(out_weights, network)
    write_facts(out_facts, facts)
    return facts
