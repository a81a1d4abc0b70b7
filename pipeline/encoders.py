"""Patch encoders as the configuration names them, and preparing one; torch is imported only when one is loaded."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from pipeline.contracts.cohort import check_id
from pipeline.contracts.encoders import EncoderFacts, write_facts
from pipeline.contracts.errors import InputError, nearest
from pipeline.contracts.features import WEIGHTS

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncoderSpec:
    """One entry of section ``encoders`` of the configuration.

    `name` is any timm name (``resnet50.tv_in1k``) or ``hf-hub:owner/model``. `weights`: ``pretrained`` from
    the network or its cache, ``file`` at `path` (a state dict), or ``random`` from `seed`, for trials only.
    `layer` cuts the network after one of its stages and averages over the map. `input_px` resizes tiles; by
    default only networks with a fixed input size resize.
    """

    slug: str
    name: str
    weights: str = "pretrained"
    path: str | None = None
    seed: int = 0
    layer: str | None = None
    input_px: int | None = None

    def __post_init__(self) -> None:
        where = f"config.yaml encoders (slug '{self.slug}')"
        check_id(self.slug, where, "slug")
        if self.weights not in WEIGHTS:
            problem = f"weights '{self.weights}' is none of {', '.join(WEIGHTS)}{nearest(self.weights, WEIGHTS)}."
            raise InputError(where, problem)
        if (self.weights == "file") != bool(self.path):
            raise InputError(where, "path and weights: file go together.", "give both, or neither.")
        if self.input_px is not None and self.input_px < 16:
            raise InputError(where, f"input_px {self.input_px} is below 16.")

    @property
    def where(self) -> str:
        return f"encoder '{self.slug}' ({self.name})"


def write_encoder_facts(spec: EncoderSpec, out_json: str | Path) -> EncoderFacts:
    """Prepare an encoder: fetch or make its weights once and write ``encoders/{slug}.json``.

    Raises InputError for a name or layer that does not exist and for weights that cannot be had or do not fit.
    """
    from pipeline.encoder_network import load_encoder

    facts = load_encoder(spec).facts
    if facts.weights == "random":
        logger.warning("%s has RANDOM weights: its features carry no learnt content.", spec.where)
    write_facts(out_json, facts)
    return facts
