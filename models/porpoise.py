"""Slides and genes gated and multiplied: PORPOISE's multimodal fusion.

Source: Chen et al., Cancer Cell 2022 (STAR Methods: AMIL, SNN, multimodal fusion layer, elastic regularisation); the
Kronecker product with gates is that of Pathomic Fusion (see `models.bilinear`), here of reduced embeddings, with the
embeddings themselves beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from models.abmil import AbmilConfig, TilePool, TilePooling
from models.batch import Batch, Outputs, Sizes
from models.bilinear import Gated
from models.params import check_range


@dataclass(frozen=True)
class PorpoiseConfig:
    """The widths count as published.

    Attributes
    ----------
    width : of the projected tiles
    hidden : of the gated attention network
    embedding : of a modality's embedding
    reduced : of the gated embeddings that are multiplied
    fused : of the two fusion layers
    feature_dropout : of the tiles' features, before anything else
    dropout : in both networks and in the fusion layers
    l1 : weight of the summed absolute weights of gene network and fusion; with ``weight_decay`` (the squared ones) it
        is the elastic regularisation
    """

    width: int = 512
    hidden: int = 256
    embedding: int = 256
    reduced: int = 32
    fused: int = 256
    feature_dropout: float = 0.1
    dropout: float = 0.25
    l1: float = 1e-5

    def __post_init__(self) -> None:
        for key in ("width", "hidden", "embedding", "reduced", "fused"):
            check_range(key, getattr(self, key), 1, 8192, integer=True)
        check_range("feature_dropout", self.feature_dropout, 0, 0.9)
        check_range("dropout", self.dropout, 0, 0.9)
        check_range("l1", self.l1, 0, 100)


class Porpoise(TilePooling):
    """Head on two layers over [slide ; 1] x [gene ; 1], the second of which sees both embeddings too."""

    name = "porpoise"
    needs = frozenset({"slides", "genes"})
    gene_groups = ("all",)
    Config = PorpoiseConfig
    config: PorpoiseConfig
    defaults: ClassVar = {"epochs": 20, "batch_size": 8, "lr": 2e-4, "weight_decay": 1e-5, "patience": 10}

    def __init__(self, config: PorpoiseConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config = config
        width, dropout = config.embedding, config.dropout
        self.drop_features = nn.Dropout(config.feature_dropout)
        self.pool = TilePool(sizes.features, AbmilConfig(config.width, config.hidden, gated=True, dropout=dropout))
        self.embed = nn.Sequential(nn.Linear(config.width, width), nn.ReLU(), nn.Dropout(dropout))
        self.genes = nn.Sequential(
            *(nn.Linear(sizes.genes["all"], width), nn.ELU(), nn.AlphaDropout(dropout)),
            *(nn.Linear(width, width), nn.ELU(), nn.AlphaDropout(dropout)),
        )
        self.gated_slide = Gated(width, config.reduced, dropout)
        self.gated_gene = Gated(width, config.reduced, dropout)
        self.product = nn.Sequential(
            nn.Dropout(dropout), nn.Linear((config.reduced + 1) ** 2, config.fused), nn.ReLU(), nn.Dropout(dropout)
        )
        self.fusion = nn.Sequential(nn.Linear(config.fused + 2 * width, config.fused), nn.ReLU(), nn.Dropout(dropout))
        self.head = nn.Linear(config.fused, sizes.outputs)

    def forward(self, batch: Batch) -> Outputs:
        assert batch.features is not None and batch.mask is not None
        slide = self.embed(self.pool(self.drop_features(batch.features), batch.mask))
        gene = self.genes(batch.genes["all"])
        one = slide.new_ones(len(batch), 1)
        by_slide = torch.cat([self.gated_slide(slide, slide, gene), one], dim=1)
        by_gene = torch.cat([self.gated_gene(gene, slide, gene), one], dim=1)
        product = self.product((by_slide[:, :, None] * by_gene[:, None, :]).flatten(1))
        fused = self.fusion(torch.cat([product, slide, gene], dim=1))
        return Outputs(self.head(fused), {"l1": self.config.l1 * self.absolute_weights()} if self.training else {})

    def absolute_weights(self) -> Tensor:
        """Sum of the absolute parameters of the gene network and of everything that fuses."""
        parts = (self.genes, self.gated_slide, self.gated_gene, self.product, self.fusion)
        return torch.stack([p.abs().sum() for part in parts for p in part.parameters()]).sum()
