"""Genes look among the tiles: co-attention of a few gene tokens over all tiles, then a transformer for each side.

Source: MCAT (Chen et al. 2021); subspace specification 11.6. The published method's gene tokens are six functional
families: give such lists (``genes.families``) and cut by them. Without lists ours are pieces of the gene list, six by
default, four in reference mode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from models.batch import Batch, Outputs, Sizes
from models.layers import AttentionPool
from models.model import Model
from models.params import check_choice, check_range
from models.registry import FAMILIES
from pipeline.contracts.errors import InputError

EQUAL, REFERENCE = "equal", "reference"
CUTS = (EQUAL, REFERENCE, FAMILIES)
HEADS = 8
TOKEN = "token_"  #: before the number of a gene token, in names of attention maps


@dataclass(frozen=True)
class McatConfig:
    """The width counts as published.

    Attributes
    ----------
    width : of all tokens, a multiple of 8
    dropout : everywhere but in the co-attention
    pieces : gene tokens, from pieces of the gene list in its order
    cut : "equal" pieces, or the "reference": all but the last of 100 genes in 431; or a token for each of the fold's
        gene "families" (functional sets, pathways), whose number `pieces` then is not asked for
    fixed_length : None takes every tile of a case; a number resamples each slide, as one sample, to so many tiles
    """

    width: int = 256
    dropout: float = 0.25
    pieces: int = 6
    cut: str = EQUAL
    fixed_length: int | None = None

    def __post_init__(self) -> None:
        check_range("width", self.width, 8, 8192, integer=True)
        check_choice("width", self.width, (self.width // HEADS * HEADS,))
        check_range("dropout", self.dropout, 0, 0.9)
        check_range("pieces", self.pieces, 1, 1000, integer=True)
        check_choice("cut", self.cut, CUTS)
        if self.fixed_length is not None:
            check_range("fixed_length", self.fixed_length, 1, 100_000, integer=True)


class GeneTokens(nn.Module):
    """Pieces or families of genes, each through two self-normalising layers.

    From [samples, genes] to [samples, tokens, width]. There are never more pieces than genes; a gene may be in
    several families, or in none.

    Raises InputError for a cut by families where the fold has none.
    """

    def __init__(self, sizes: Sizes, pieces: int, cut: str, width: int, dropout: float) -> None:
        super().__init__()
        groups = sizes.families if cut == FAMILIES else cut_genes(sizes.genes["all"], pieces, cut)
        if not groups:
            raise InputError(
                "config.yaml experiments params.cut",
                "it is 'families', but no gene family was selected with the genes.",
                "name a GMT file in genes.families, or use builtin there.",
            )
        self.pieces = nn.ModuleList(
            nn.Sequential(
                *(nn.Linear(len(columns), width), nn.ELU(), nn.AlphaDropout(dropout)),
                *(nn.Linear(width, width), nn.ELU(), nn.AlphaDropout(dropout)),
            )
            for columns in groups
        )
        self.lengths = [len(columns) for columns in groups]
        columns = torch.tensor([column for group in groups for column in group])
        self.register_buffer("columns", columns, persistent=False)  # the checkpoint has them in the sizes

    def forward(self, genes: Tensor) -> Tensor:
        parts = genes[:, self.columns].split(self.lengths, dim=1)
        return torch.stack([piece(part) for piece, part in zip(self.pieces, parts, strict=True)], dim=1)


def cut_genes(genes: int, pieces: int, cut: str) -> list[list[int]]:
    """Columns of each piece of the gene list."""
    pieces = min(pieces, genes)
    size = max(1, genes * 100 // 431) if cut == REFERENCE else 0
    if size and size * (pieces - 1) < genes:
        sizes = [*[size] * (pieces - 1), genes - size * (pieces - 1)]
    else:
        sizes = [genes // pieces + (k < genes % pieces) for k in range(pieces)]
    ends = [sum(sizes[: k + 1]) for k in range(pieces)]
    return [list(range(end - size, end)) for end, size in zip(ends, sizes, strict=True)]


class Side(nn.Module):
    """Two transformer layers over the tokens of one side and a gated attention pool: to [samples, width]."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, HEADS, 2 * width, dropout, batch_first=True) for _ in range(2)
        )
        self.pool = AttentionPool(width, width, gated=True, dropout=dropout)
        self.out = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout))

    def forward(self, tokens: Tensor) -> Tensor:
        for layer in self.layers:
            tokens = layer(tokens)
        return self.out(self.pool(tokens, tokens.new_ones(tokens.shape[:2], dtype=torch.bool)))


def fusion(width: int) -> nn.Sequential:
    """Two layers on a pair of embeddings: [samples, 2 width] to [samples, width]."""
    return nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())


def token_maps(weights: Tensor) -> dict[str, Tensor]:
    """A map of each gene token, ``token_1`` the first: from [samples, tokens, tiles] to [samples, tiles] each."""
    return {f"{TOKEN}{number}": each for number, each in enumerate(weights.unbind(dim=1), start=1)}


class Mcat(Model):
    """Head on [slide ; gene]; reference mode is per slide. The gene tokens' co-attention is the only map over tiles."""

    name = "mcat"
    needs = frozenset({"slides", "genes"})
    gene_groups = ("all",)
    Config = McatConfig
    defaults: ClassVar = {"epochs": 20, "batch_size": 8, "lr": 2e-4, "weight_decay": 1e-5, "patience": 10}
    reference_params: ClassVar = {"pieces": 4, "cut": REFERENCE, "fixed_length": 2500}

    def __init__(self, config: McatConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.project = nn.Sequential(nn.Linear(sizes.features, width), nn.ReLU(), nn.Dropout(config.dropout))
        self.tokens = GeneTokens(sizes, config.pieces, config.cut, width, config.dropout)
        self.attention = nn.MultiheadAttention(width, 1, batch_first=True)
        self.slide = Side(width, config.dropout)
        self.gene = Side(width, config.dropout)
        self.fusion = fusion(width)
        self.head = nn.Linear(width, sizes.outputs)

    def forward(self, batch: Batch) -> Outputs:
        assert batch.features is not None and batch.mask is not None
        tiles, genes = self.project(batch.features), self.tokens(batch.genes["all"])
        seen, _ = self.attention(genes, tiles, tiles, key_padding_mask=~batch.mask, need_weights=False)
        fused = self.fusion(torch.cat([self.slide(seen), self.gene(genes)], dim=1))
        return Outputs(self.head(fused), hidden={"co-attended": seen, "fused": fused})

    @torch.no_grad()
    def attention_maps(self, batch: Batch) -> dict[str, Tensor]:
        """What each gene token co-attends to."""
        assert batch.features is not None and batch.mask is not None
        tiles, genes = self.project(batch.features), self.tokens(batch.genes["all"])
        _, weights = self.attention(genes, tiles, tiles, key_padding_mask=~batch.mask)
        return token_maps(weights)
