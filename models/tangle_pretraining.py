"""Contrastive pre-training in the manner of TANGLE: the slide of a case must find the RNA of that case in the batch.

Source: Transcriptomics-guided Slide Representation Learning in Computational Pathology (Jaume et al., CVPR 2024), whose
idea this follows, not its code: attention pooling of the tiles, a perceptron on the genes, symmetric InfoNCE of their
cosines at a fixed temperature (0.1, as in the MIRROR specification, section 8). No label is read. `models.tangle` uses
the slide encoder, and then needs no RNA. There is no reference mode: no specification or golden value of the released
code is at hand that it could be held to (its gene encoder, its further losses, its sampling of tiles and its schedule).

A batch of one cannot be wrong: its loss is 0. Every tile of a case counts, padding never does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn.functional import normalize

from models.abmil import AbmilConfig, TilePool
from models.batch import Batch, Outputs, Sizes
from models.layers import full_precision
from models.mirror_losses import info_nce
from models.model import Model
from models.params import check_range

ENCODER_PARAMS = ("width", "hidden", "dropout")


@dataclass(frozen=True)
class PoolConfig:
    """What pre-training and classifier must agree on.

    Attributes
    ----------
    width : of the slide embedding
    hidden : width of the attention network
    dropout : after the projection of tiles, and inside the attention network
    """

    width: int = 512
    hidden: int = 256
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_range("width", self.width, 1, 8192, integer=True)
        check_range("hidden", self.hidden, 1, 8192, integer=True)
        check_range("dropout", self.dropout, 0, 0.9)

    @property
    def pool(self) -> AbmilConfig:
        return AbmilConfig(self.width, self.hidden, gated=True, dropout=self.dropout)


@dataclass(frozen=True)
class TanglePretrainingConfig(PoolConfig):
    """Hyper-parameters of pre-training; the others are those of `PoolConfig`.

    Attributes
    ----------
    temperature : of the cosines
    gather : contrast against the samples of all processes of a `torch.distributed` group
    """

    temperature: float = 0.1
    gather: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("temperature", self.temperature, 1e-3, 100)


class TanglePretraining(Model):
    """A slide encoder, a gene encoder, and the contrast between them."""

    name = "tangle-pretraining"
    needs = frozenset({"slides", "genes"})
    gene_groups = ("all",)
    Config = TanglePretrainingConfig
    shared_params = ENCODER_PARAMS
    defaults: ClassVar = {"epochs": 100, "batch_size": 64, "lr": 1e-4, "weight_decay": 1e-4, "patience": 0}

    def __init__(self, config: TanglePretrainingConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.slide = TilePool(sizes.features, config.pool)
        self.rna = nn.Sequential(
            nn.Linear(sizes.genes["all"], width), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(width, width)
        )

    def forward(self, batch: Batch) -> Outputs:
        assert batch.features is not None and batch.mask is not None
        slides, rna = self.slide(batch.features, batch.mask), self.rna(batch.genes["all"])
        pair = normalize(full_precision(slides), dim=1), normalize(full_precision(rna), dim=1)
        with torch.autocast(slides.device.type, enabled=False):
            loss = info_nce(*pair, 1 / self.config.temperature, self.config.gather)
        found = (pair[0] @ pair[1].T).argmax(dim=1) == torch.arange(len(batch), device=slides.device)
        return Outputs(slides.new_zeros(len(batch), 0), {"contrast": loss}, logged={"retrieved": found.float().mean()})
