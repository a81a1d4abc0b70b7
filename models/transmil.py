"""Slides alone: a transformer over the tiles with Nyström attention and convolutions of the tiles' map.

Source: TransMIL (Shao et al. 2021); Nyströmformer (Xiong et al. 2021, equations 10 to 14); subspace specification 11.2.

By default the convolutions see each slide's own lattice of tiles, and a sample's numbers depend on no other sample. In
reference mode the tiles are laid in a square in the order of the list, whose first tiles are repeated to fill it up,
and the iterative pseudo-inverse starts from maxima over the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.batch import Batch, Outputs, Sizes
from models.model import Model
from models.params import check_choice, check_range

HEADS = 8
INVERSE_STEPS = 6
LATTICE, SQUARE = POSITIONS = ("lattice", "square")

Places = list[tuple[slice, Tensor]]


@dataclass(frozen=True)
class TransMilConfig:
    """The width counts as published.

    Attributes
    ----------
    width : of the tokens, a multiple of 16; there are half as many landmarks
    dropout : after the attention
    positions : "lattice", the slides' own; or "square", the order of the list, with the reference's start of the
        pseudo-inverse
    fixed_length : None takes every tile of a case; a number resamples each slide, as one sample, to so many tiles
    """

    width: int = 512
    dropout: float = 0.1
    positions: str = LATTICE
    fixed_length: int | None = None

    def __post_init__(self) -> None:
        check_width(self.width)
        check_range("dropout", self.dropout, 0, 0.9)
        check_choice("positions", self.positions, POSITIONS)
        if self.fixed_length is not None:
            check_range("fixed_length", self.fixed_length, 1, 100_000, integer=True)


def check_width(width: int) -> None:
    """Raise InputError unless heads and landmarks divide the width."""
    check_range("width", width, 16, 8192, integer=True)
    check_choice("width", width, (width // 16 * 16,))


class NystromAttention(nn.Module):
    """Self-attention through landmarks, the means of consecutive tokens, plus a convolution of the values.

    Parameters
    ----------
    shared_start : start the pseudo-inverse from maxima over batch and heads, as released; else each head by itself
    """

    def __init__(self, width: int, dropout: float, shared_start: bool) -> None:
        super().__init__()
        self.landmarks = width // 2
        self.shared_start = shared_start
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.residual = nn.Conv2d(HEADS, HEADS, (33, 1), padding=(16, 0), groups=HEADS, bias=False)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, rows: Tensor | None = None, constant: Tensor | None = None) -> Tensor:
        """[samples, tokens, width] to the same, or to these `rows` of it, int64 [rows].

        The sequence is filled up with zeros at its front, unmasked. Whoever names `constant` rows, int64 [rows], takes
        no gradient through their results, which a subclass may use.
        """
        samples, count, width = tokens.shape
        tokens = functional.pad(tokens, (0, 0, -count % self.landmarks, 0))
        q, k, v = self.qkv(tokens).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        q = q * (width // HEADS) ** -0.5
        q_mean, k_mean = (x.unflatten(2, (self.landmarks, -1)).mean(dim=3) for x in (q, k))
        to_landmarks = (q @ k_mean.transpose(-1, -2)).softmax(dim=-1)
        among = (q_mean @ k_mean.transpose(-1, -2)).softmax(dim=-1)
        gathered = (q_mean @ k.transpose(-1, -2)).softmax(dim=-1) @ v
        heads = to_landmarks @ self.inverse(among).to(gathered) @ gathered + self.residual(v)
        merged = heads.transpose(1, 2).reshape(samples, -1, width)[:, -count:]
        return self.dropout(self.out(merged if rows is None else merged[:, rows]))

    def inverse(self, matrix: Tensor) -> Tensor:
        """Iterative Moore-Penrose inverse of [samples, heads, m, m], six steps."""
        with torch.autocast(matrix.device.type, enabled=False):
            matrix = matrix.float() if matrix.dtype != torch.float64 else matrix
            rows, columns = (matrix.abs().sum(dim=d).amax(dim=-1) for d in (-1, -2))
            if self.shared_start:
                rows, columns = rows.max().expand_as(rows), columns.max().expand_as(columns)
            guess = matrix.transpose(-1, -2) / (rows * columns)[..., None, None]
            one = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
            for _ in range(INVERSE_STEPS):
                product = matrix @ guess
                guess = guess @ (13 * one - product @ (15 * one - product @ (7 * one - product))) / 4
            return guess


class PositionEncoding(nn.Module):
    """Convolutions of 7, 5 and 3 tiles added to the map of the tokens (the method's PPEG)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(width, width, k, padding=k // 2, groups=width) for k in (7, 5, 3))

    def forward(self, tokens: Tensor, places: Places | None) -> Tensor:
        """[samples, tokens, width] to the same; without `places` the tokens are a square, row by row."""
        if places is None:
            side = math.isqrt(tokens.shape[1])
            return self._encoded(tokens.unflatten(1, (side, side))).flatten(1, 2)
        parts = []
        for rows, cell in places:  # one sample
            width, height = (int(n) + 1 for n in cell.amax(dim=0))
            flat = cell[:, 1] * width + cell[:, 0]
            values = tokens[:, rows]
            field = values.new_zeros(len(values), height * width, values.shape[2]).index_copy(1, flat, values)
            encoded = self._encoded(field.unflatten(1, (height, width)))
            parts.append(encoded.flatten(1, 2).index_select(1, flat))
        return torch.cat(parts, dim=1)

    def _encoded(self, field: Tensor) -> Tensor:
        """[samples, height, width, channels] to the same: the three convolutions as one, with the sum of kernels."""
        widest = self.convolutions[0]
        margins = [widest.padding[0] - c.padding[0] for c in self.convolutions]
        kernel = sum(functional.pad(c.weight, [m] * 4) for c, m in zip(self.convolutions, margins, strict=True))
        bias = sum(convolution.bias for convolution in self.convolutions)
        first = field.permute(0, 3, 1, 2)
        return field + functional.conv2d(first, kernel, bias, padding=widest.padding, groups=widest.groups).permute(
            0, 2, 3, 1
        )


class Encoder(nn.Module):
    """Class token, attention, position encoding where there is a map, attention, LayerNorm."""

    def __init__(
        self,
        width: int,
        dropout: float,
        shared_start: bool,
        has_map: bool = True,
        class_std: float = 1.0,
        attention: type[NystromAttention] = NystromAttention,
    ) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.randn(1, 1, width) * class_std)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.attentions = nn.ModuleList(attention(width, dropout, shared_start) for _ in range(2))
        self.position = PositionEncoding(width) if has_map else None
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        tokens: Tensor,
        places: Places | None = None,
        only_class: bool = False,
        constant: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Class token [samples, width] and tokens [samples, tokens, width], more of them if filled up to a square.

        With `only_class` there are no tokens: they are not computed, and the class token is the same. Tokens in
        `constant` rows, int64 [rows], may come without a gradient.
        """
        if self.position is not None and places is None:
            count = tokens.shape[1]
            side = math.isqrt(count - 1) + 1
            tokens = torch.cat([tokens, tokens[:, : side**2 - count]], dim=1)
        tokens = torch.cat([self.class_token.expand(len(tokens), -1, -1).to(tokens), tokens], dim=1)
        tokens = tokens + self.attentions[0](self.norms[0](tokens))
        if self.position is not None:
            tokens = torch.cat([tokens[:, :1], self.position(tokens[:, 1:], places)], dim=1)
        rows = torch.zeros(1, dtype=torch.int64, device=tokens.device) if only_class else None
        attended = self.attentions[1](self.norms[1](tokens), rows, None if constant is None else 1 + constant)
        tokens = self.norm((tokens[:, :1] if only_class else tokens) + attended)
        return tokens[:, 0], tokens[:, 1:]


def sequences(batch: Batch, tokens: Tensor, positions: str) -> Iterator[tuple[slice, Tensor, Places | None]]:
    """Samples whose sequences can run together: which, their tokens without padding, their places on the lattices.

    Padding would enter landmarks and maps, so samples of unequal length, or on lattices, run one by one.
    """
    assert batch.mask is not None
    if positions == SQUARE and bool(batch.mask.all()):
        yield slice(None), tokens, None
        return
    for number, mask in enumerate(batch.mask):
        places = None
        if positions == LATTICE:
            assert batch.slide is not None and batch.cell is not None
            slide, cell = batch.slide[number][mask], batch.cell[number][mask]
            lengths = torch.unique_consecutive(slide, return_counts=True)[1].tolist()
            starts = [sum(lengths[:k]) for k in range(len(lengths))]
            rows = [slice(start, start + length) for start, length in zip(starts, lengths, strict=True)]
            places = [(r, cell[r]) for r in rows]
        yield slice(number, number + 1), tokens[number][mask][None], places


class TransMil(Model):
    """Projection of the tiles, encoder, linear head on the class token. Reference mode is per slide."""

    name = "transmil"
    needs = frozenset({"slides"})
    Config = TransMilConfig
    defaults: ClassVar = {"epochs": 30, "batch_size": 8, "lr": 2e-4, "weight_decay": 1e-5, "patience": 10}
    reference_params: ClassVar = {"positions": SQUARE, "fixed_length": 2500}

    def __init__(self, config: TransMilConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config = config
        self.project = nn.Linear(sizes.features, config.width)
        self.encoder = Encoder(config.width, config.dropout, config.positions == SQUARE)
        self.head = nn.Linear(config.width, sizes.outputs)

    def forward(self, batch: Batch) -> Outputs:
        assert batch.features is not None
        tokens = torch.relu(self.project(batch.features))
        parts = [self.encoder(t, places)[0] for _, t, places in sequences(batch, tokens, self.config.positions)]
        return Outputs(self.head(torch.cat(parts)))
