"""Pathways and tiles look at each other: one attention over pathway and tile tokens, but never from tile to tile.

Source: SurvPath (Jaume et al., CVPR 2024, sections 3.1 to 3.4). A pathway token comes from the genes of one set
(``genes.families``: a GMT file of pathways, or builtin). Leaving out the tile-to-tile part makes time and memory grow
with pathways x tiles, and pathways may still look at everything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from models.batch import Batch, Outputs, Sizes
from models.mcat import CUTS, GeneTokens, token_maps
from models.model import Model
from models.params import check_choice, check_range
from models.registry import FAMILIES


@dataclass(frozen=True)
class SurvPathConfig:
    """The widths count as published.

    Attributes
    ----------
    width : of pathway and tile tokens
    attended : width of queries, keys and values, and so of the tokens after the attention; one head
    hidden : width of the classifier's hidden layer
    gene_dropout : of the pathway networks
    dropout : of the feed-forward layer after the attention
    pieces, cut : "families", or where no gene sets are known, pieces of the gene list (see `models.mcat`)
    """

    width: int = 256
    attended: int = 128
    hidden: int = 64
    gene_dropout: float = 0.25
    dropout: float = 0.1
    pieces: int = 6
    cut: str = FAMILIES

    def __post_init__(self) -> None:
        for key in ("width", "attended", "hidden"):
            check_range(key, getattr(self, key), 1, 8192, integer=True)
        check_range("gene_dropout", self.gene_dropout, 0, 0.9)
        check_range("dropout", self.dropout, 0, 0.9)
        check_range("pieces", self.pieces, 1, 1000, integer=True)
        check_choice("cut", self.cut, CUTS)


class PathwayAttention(nn.Module):
    """Single-head attention of which the tile-to-tile block is left out (section 3.3, equation 2).

    Pathways attend to pathways and tiles in one softmax, tiles to pathways.

    Parameters
    ----------
    pathways : [samples, pathways, width]; tiles : [samples, tiles, width]; mask : bool [samples, tiles]

    Returns
    -------
    the attended pathways and tiles; of a place without a tile, something to be masked
    """

    def __init__(self, width: int, attended: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, 3 * attended, bias=False)

    def forward(self, pathways: Tensor, tiles: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        query, key, value = self.heads(pathways)
        tile_query, tile_key, tile_value = self.heads(tiles)
        seen = torch.cat([mask.new_ones(pathways.shape[:2]), mask], dim=1)[:, None, None]
        both = torch.cat([key, tile_key], dim=2), torch.cat([value, tile_value], dim=2)
        return (
            scaled_dot_product_attention(query, *both, attn_mask=seen)[:, 0],
            scaled_dot_product_attention(tile_query, key, value)[:, 0],
        )

    def over_tiles(self, pathways: Tensor, tiles: Tensor, mask: Tensor) -> Tensor:
        """Weights of the pathways' attention among tiles alone, of sum 1: [samples, pathways, tiles]."""
        (query, _, _), (_, key, _) = self.heads(pathways), self.heads(tiles)
        scores = (query @ key.transpose(2, 3))[:, 0] * key.shape[-1] ** -0.5
        return scores.masked_fill(~mask[:, None], -torch.inf).softmax(dim=2)

    def heads(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values [samples, 1, tokens, attended]: the fused kernels want a dimension for heads."""
        return self.project(self.norm(tokens))[:, None].chunk(3, dim=-1)


class SurvPath(Model):
    """Head on the means of the attended pathways and tiles."""

    name = "survpath"
    needs = frozenset({"slides", "genes"})
    gene_groups = ("all",)
    Config = SurvPathConfig
    defaults: ClassVar = {"epochs": 30, "batch_size": 8, "lr": 5e-4, "weight_decay": 1e-3, "patience": 10}

    def __init__(self, config: SurvPathConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config = config
        width, attended = config.width, config.attended
        self.project = nn.Linear(sizes.features, width)
        self.pathways = GeneTokens(sizes, config.pieces, config.cut, width, config.gene_dropout)
        self.attention = PathwayAttention(width, attended)
        self.feed_forward = nn.Sequential(
            *(nn.LayerNorm(attended), nn.Linear(attended, attended), nn.GELU(), nn.Dropout(config.dropout)),
            *(nn.Linear(attended, attended), nn.Dropout(config.dropout), nn.LayerNorm(attended)),
        )
        self.head = nn.Sequential(
            nn.Linear(2 * attended, config.hidden), nn.ReLU(), nn.Linear(config.hidden, sizes.outputs)
        )

    def forward(self, batch: Batch) -> Outputs:
        assert batch.features is not None and batch.mask is not None
        pathways, tiles = self.pathways(batch.genes["all"]), self.project(batch.features)
        pathways, tiles = (self.feed_forward(t) for t in self.attention(pathways, tiles, batch.mask))
        tiles = tiles.masked_fill(~batch.mask[..., None], 0.0).sum(dim=1) / batch.mask.sum(dim=1, keepdim=True)
        return Outputs(self.head(torch.cat([pathways.mean(dim=1), tiles], dim=1)))

    @torch.no_grad()
    def attention_maps(self, batch: Batch) -> dict[str, Tensor]:
        """What each pathway attends to among the tiles; its attention to pathways is left out."""
        assert batch.features is not None and batch.mask is not None
        pathways, tiles = self.pathways(batch.genes["all"]), self.project(batch.features)
        return token_maps(self.attention.over_tiles(pathways, tiles, batch.mask))
