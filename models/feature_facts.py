"""What a model's feature bags were made with: bags of another encoder or tile size may well have the same width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.contracts.errors import InputError
from pipeline.contracts.features import BagSource

#: fact -> what users call it; all must be the same in training and in prediction
NAMES = {
    "encoder_name": "the encoder",
    "weights_digest": "the digest of the encoder's weights",
    "size_px": "the tile size in px",
    "normalised": "stain normalisation",
}


def facts_of(source: BagSource) -> dict[str, Any]:
    """The facts of one bag. Which method normalised a slide may differ between slides, whether any did may not."""
    facts = {key: getattr(source, key) for key in ("encoder_name", "weights_digest", "size_px")}
    return {**facts, "normalised": "off" if source.stain == "none" else "on"}


def check_same(trained: Mapping[str, Any], found: Mapping[str, Any], where: str) -> None:
    """Raise InputError where bags differ from those of training in what decides the meaning of their features."""
    for key, name in NAMES.items():
        if key in trained and trained[key] != found[key]:
            raise InputError(
                where,
                f"{name} is '{found[key]}', but it was '{trained[key]}' in training.",
                "make the features with the settings and the weights of the training run.",
            )
