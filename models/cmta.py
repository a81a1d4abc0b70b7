"""Translate each modality into the other: encoders and decoders of tiles and of genes, aligned by their class tokens.

Source: CMTA (Zhou and Chen 2023); subspace specification 11.7. Tile encoders are those of `transmil`, gene tokens those
of `mcat`; what is said there of positions, padding and pieces holds here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.batch import Batch, Outputs, Sizes
from models.mcat import CUTS, EQUAL, REFERENCE, GeneTokens, fusion
from models.model import Model
from models.params import check_choice, check_range
from models.transmil import LATTICE, POSITIONS, SQUARE, Encoder, Places, check_width, sequences

CLASS_STD = 1e-6


@dataclass(frozen=True)
class CmtaConfig:
    """The width counts as published.

    Attributes
    ----------
    width : of all tokens, a multiple of 16
    dropout : of tile projection and gene tokens
    attention_dropout : after the encoders' attention
    alignment : weight of each side's mean absolute difference of decoded and encoded class token
    pieces, cut : of the gene list, see `models.mcat`
    positions : of the tiles, see `models.transmil`
    fixed_length : None takes every tile of a case; a number resamples each slide, as one sample, to so many tiles
    """

    width: int = 256
    dropout: float = 0.25
    attention_dropout: float = 0.1
    alignment: float = 0.5
    pieces: int = 6
    cut: str = EQUAL
    positions: str = LATTICE
    fixed_length: int | None = None

    def __post_init__(self) -> None:
        check_width(self.width)
        check_range("dropout", self.dropout, 0, 0.9)
        check_range("attention_dropout", self.attention_dropout, 0, 0.9)
        check_range("alignment", self.alignment, 0, 1000)
        check_range("pieces", self.pieces, 1, 1000, integer=True)
        check_choice("cut", self.cut, CUTS)
        check_choice("positions", self.positions, POSITIONS)
        if self.fixed_length is not None:
            check_range("fixed_length", self.fixed_length, 1, 100_000, integer=True)


class Cmta(Model):
    """Head on the means of encoded and decoded class tokens of both sides; reference mode is per slide."""

    name = "cmta"
    needs = frozenset({"slides", "genes"})
    gene_groups = ("all",)
    Config = CmtaConfig
    defaults: ClassVar = {"epochs": 30, "batch_size": 8, "lr": 2e-4, "weight_decay": 1e-5, "patience": 10}
    reference_params: ClassVar = {"pieces": 4, "cut": REFERENCE, "positions": SQUARE, "fixed_length": 2500}

    def __init__(self, config: CmtaConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config = config
        width = config.width

        def encoder(has_map: bool) -> Encoder:
            return Encoder(width, config.attention_dropout, config.positions == SQUARE, has_map, CLASS_STD)

        self.project = nn.Sequential(nn.Linear(sizes.features, width), nn.ReLU(), nn.Dropout(config.dropout))
        self.tokens = GeneTokens(sizes, config.pieces, config.cut, width, config.dropout)
        self.slide_encoder, self.gene_encoder = encoder(True), encoder(False)
        self.slide_from_gene = nn.MultiheadAttention(width, 1, batch_first=True)
        self.gene_from_slide = nn.MultiheadAttention(width, 1, batch_first=True)
        self.slide_decoder, self.gene_decoder = encoder(True), encoder(False)
        self.fusion = fusion(width)
        self.head = nn.Linear(width, sizes.outputs)

    def forward(self, batch: Batch) -> Outputs:
        assert batch.features is not None
        tiles = self.project(batch.features)
        gene, genes = self.gene_encoder(self.tokens(batch.genes["all"]))
        parts = [
            self.translated(genes[rows], t, places)
            for rows, t, places in sequences(batch, tiles, self.config.positions)
        ]
        slide, slide_decoded, to_gene = (torch.cat(part) for part in zip(*parts, strict=True))
        gene_decoded, _ = self.gene_decoder(to_gene)
        hidden = {"slide": slide, "slide decoded": slide_decoded, "gene": gene, "gene decoded": gene_decoded}
        fused = self.fusion(torch.cat([slide + slide_decoded, gene + gene_decoded], dim=1) / 2)
        return Outputs(self.head(fused), self.alignment(hidden) if self.training else {}, hidden)

    def translated(self, genes: Tensor, tiles: Tensor, places: Places | None) -> tuple[Tensor, Tensor, Tensor]:
        """Class tokens of the slide [samples, width], encoded and decoded from genes, and gene tokens from tiles."""
        slide, tiles = self.slide_encoder(tiles, places)
        to_slide, _ = self.slide_from_gene(tiles, genes, genes, need_weights=False)
        to_gene, _ = self.gene_from_slide(genes, tiles, tiles, need_weights=False)
        return slide, self.slide_decoder(to_slide, places)[0], to_gene

    def alignment(self, hidden: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weighted alignment losses; the encoded class token is the fixed aim."""
        return {
            f"align_{side}": self.config.alignment
            * functional.l1_loss(hidden[f"{side} decoded"].float(), hidden[side].float().detach())
            for side in ("slide", "gene")
        }
