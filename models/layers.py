"""Small blocks that several models share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

SNN_WIDTHS = (64, 48, 32, 128)


def full_precision(values: Tensor) -> Tensor:
    """The same in float32 at least: for sums that would suffer in the types of autocast."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


class SelfNormalisingNetwork(nn.Sequential):
    """Genes to a non-negative embedding: layers of Linear, ELU, AlphaDropout, and one ReLU at the end.

    Weights start as N(0, 1 / fan_in) and biases as 0 (Klambauer et al. 2017, self-normalising networks). Subspace
    specification 5.1. Input [samples, genes], output [samples, last width].
    """

    def __init__(self, genes: int, widths: tuple[int, ...] = SNN_WIDTHS, dropout: float = 0.1) -> None:
        layers: list[nn.Module] = []
        for inner, outer in zip((genes, *widths[:-1]), widths, strict=True):
            linear = nn.Linear(inner, outer)
            nn.init.normal_(linear.weight, std=inner**-0.5)
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.ELU(), nn.AlphaDropout(dropout)]
        super().__init__(*layers, nn.ReLU())


class PairLinear(nn.Linear):
    """A linear layer of [tile ; vector of the tile's sample], the vector's half computed once per sample.

    Input tiles [tiles, `first`], vectors [samples, `second`] and the sample of each tile, int64 [tiles].
    """

    def __init__(self, first: int, second: int, width: int) -> None:
        super().__init__(first + second, width)
        self.first = first

    def forward(self, tiles: Tensor, vectors: Tensor, sample: Tensor) -> Tensor:
        of_tiles, of_vectors = self.weight.split([self.first, self.in_features - self.first], dim=1)
        shift = functional.linear(vectors, of_vectors, self.bias)
        return functional.linear(tiles, of_tiles) + shift[sample]


class AttentionPool(nn.Module):
    """Attention-weighted mean of the tiles of each sample (Ilse et al. 2018, equations 8 and 9 when gated).

    Input values [samples, tiles, width] and mask bool [samples, tiles]; output [samples, width]. Every sample needs one
    tile or more.
    """

    def __init__(self, width: int, hidden: int, gated: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.content = nn.Linear(width, hidden)
        self.gate = nn.Linear(width, hidden) if gated else None
        self.dropout = nn.Dropout(dropout)
        self.score = nn.Linear(hidden, 1)

    def weights(self, values: Tensor, mask: Tensor) -> Tensor:
        """Attention [samples, tiles]: sums to 1 over the tiles of a sample, 0 where there is no tile."""
        hidden = self.dropout(torch.tanh(self.content(values)))
        if self.gate is not None:
            hidden = hidden * self.dropout(torch.sigmoid(self.gate(values)))
        scores = self.score(hidden).squeeze(-1).masked_fill(~mask, float("-inf"))
        return scores.softmax(dim=1)

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        return torch.einsum("bn,bnd->bd", self.weights(values, mask), values)
