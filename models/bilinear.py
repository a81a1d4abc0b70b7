"""Slides and genes multiplied: gated Kronecker product of two embeddings.

Source: Pathomic Fusion (Chen et al. 2022, equations 3 to 5); subspace specification 11.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from models.abmil import AbmilConfig, TilePool, TilePooling
from models.batch import Batch, Outputs, Sizes
from models.layers import SNN_WIDTHS, SelfNormalisingNetwork, full_precision
from models.params import check_choice, check_range

ATTENTION, MEAN = POOLINGS = ("attention", "mean")
LAYER, BATCH = NORMALISATIONS = ("layer", "batch")


@dataclass(frozen=True)
class BilinearConfig(AbmilConfig):
    """The slide half as in `abmil`.

    Attributes
    ----------
    embedding : width of the embeddings that are multiplied
    pooling : "attention", or "mean" of the tiles as in a variant of the released code
    gene_dropout, fusion_dropout : of the gene network and of the fusion layers
    normalisation : in the fusion layers, "layer", or "batch" as published. Batch statistics make a case's training
        step depend on the others of its batch; a batch of one case is normalised by the running statistics
    """

    embedding: int = SNN_WIDTHS[-1]
    pooling: str = ATTENTION
    gene_dropout: float = 0.1
    fusion_dropout: float = 0.1
    normalisation: str = LAYER

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("embedding", self.embedding, 1, 1024, integer=True)
        check_choice("pooling", self.pooling, POOLINGS)
        check_range("gene_dropout", self.gene_dropout, 0, 0.9)
        check_range("fusion_dropout", self.fusion_dropout, 0, 0.9)
        check_choice("normalisation", self.normalisation, NORMALISATIONS)


class TileMean(nn.Module):
    """Mean of the tiles of each sample: [samples, tiles, width] and mask to [samples, width]."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.width = features

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        return features.masked_fill(~mask[..., None], 0.0).sum(dim=1) / mask.sum(dim=1, keepdim=True)


class Gated(nn.Module):
    """One modality, each channel weighed by a gate that has seen both: [samples, width] to [samples, reduced]."""

    def __init__(self, width: int, reduced: int, dropout: float) -> None:
        super().__init__()
        self.content = nn.Linear(width, reduced)
        self.gate = nn.Bilinear(width, width, reduced)
        self.out = nn.Linear(reduced, reduced)
        self.dropout = nn.Dropout(dropout)

    def forward(self, own: Tensor, slide: Tensor, gene: Tensor) -> Tensor:
        gate = self.gate(full_precision(slide), full_precision(gene))  # autocast knows no bilinear layer on a CPU
        weighed = torch.sigmoid(gate) * torch.relu(self.content(own))
        return self.dropout(torch.relu(self.out(weighed)))


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation that takes a single sample too, by the running statistics."""

    def forward(self, values: Tensor) -> Tensor:
        if len(values) > 1:
            return super().forward(values)
        return nn.functional.batch_norm(values, self.running_mean, self.running_var, self.weight, self.bias)


class Bilinear(TilePooling):
    """Head on two layers over the outer product of [slide ; 1] and [gene ; 1]; reference mode is per slide."""

    name = "bilinear"
    needs = frozenset({"slides", "genes"})
    gene_groups = ("all",)
    Config = BilinearConfig
    defaults: ClassVar = {"epochs": 30, "batch_size": 8, "lr": 2e-4, "weight_decay": 0.01, "patience": 10}
    reference_params: ClassVar = {
        "width": 0, "gated": False, "dropout": 0.0, "normalisation": BATCH, "fixed_length": 2500,
    }  # fmt: skip

    def __init__(self, config: BilinearConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config = config
        width, dropout = config.embedding, config.fusion_dropout
        attention = config.pooling == ATTENTION
        self.pool = TilePool(sizes.features, config) if attention else TileMean(sizes.features)
        self.embed = nn.Linear(self.pool.width, width)
        self.genes = SelfNormalisingNetwork(sizes.genes["all"], (*SNN_WIDTHS[:-1], width), config.gene_dropout)
        self.gated_slide = Gated(width, width, dropout)
        self.gated_gene = Gated(width, width, dropout)
        norm = BatchNorm if config.normalisation == BATCH else nn.LayerNorm
        self.fusion = nn.Sequential(
            nn.Dropout(dropout),
            *(nn.Linear((width + 1) ** 2, width), norm(width), nn.ReLU(), nn.Dropout(dropout)),
            *(nn.Linear(width, width), norm(width), nn.ReLU(), nn.Dropout(dropout)),
        )
        self.head = nn.Linear(width, sizes.outputs)
        for part in (self.gated_slide, self.gated_gene, self.fusion):
            for layer in part.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
                    nn.init.zeros_(layer.bias)

    def forward(self, batch: Batch) -> Outputs:
        assert batch.features is not None and batch.mask is not None
        slide = torch.relu(self.embed(self.pool(batch.features, batch.mask)))
        gene = self.genes(batch.genes["all"])
        one = slide.new_ones(len(batch), 1)
        by_slide = torch.cat([self.gated_slide(slide, slide, gene), one], dim=1)
        by_gene = torch.cat([self.gated_gene(gene, slide, gene), one], dim=1)
        product = by_slide[:, :, None] * by_gene[:, None, :]
        return Outputs(self.head(self.fusion(product.flatten(1))))
