"""Cross-modal deformable attention over the tiles of one slide (subspace specification 5.3).

Queries stand on the slide's lattice of tiles. From them a small convolution predicts, for each group of
channels, where on the lattice to look; keys and values are sampled there bilinearly. Two conventions relate
the coarse lattice of sampling points to the fine lattice of tiles:

- ``half_pixel`` (default): coarse point j rests at the centre of the window that the convolution saw, fine
position
  4 j + 1.5, whatever the lattice's size. Position differences are in units of 24.5 tiles on every slide.
- ``corner`` (reference): coarse points span the lattice from corner to corner when normalised, but are
sampled half a pixel
  off, as the released code does; position differences are relative to the lattice's size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from models.position_bias import TABULATED, Displacement, PositionBias

HALF_PIXEL, CORNER = CONVENTIONS = ("half_pixel", "corner")
GROUPS = 8
HEAD_WIDTH = 64
WINDOW, STRIDE, BORDER = 6, 4, 1
OFFSET_RANGE = 4.0
UNIT_TILES = 24.5  # half the side of the reference's 50 x 50 lattice, corner to corner
PAIRS_PER_CHUNK = 2**22  # of query and key; 12 values each are kept for the backward pass
EXACT_PAIRS_PER_CHUNK = 2**19  # some 200 values each


@dataclass(frozen=True)
class Points:
    """Where the keys of one slide were sampled.

    Attributes
    ----------
    reference : [2, rows, columns], resting place of each coarse point as (column, row), in coarse cells
    offset : [groups, 2, rows, columns], predicted displacement, in coarse cells
    valid : bool [rows, columns], False for a coarse point whose window holds no tile; its key is masked
    weights : [groups, tiles, keys], attention before dropout; None unless asked for
    """

    reference: Tensor
    offset: Tensor
    valid: Tensor
    weights: Tensor | None = None

    @property
    def place(self) -> Tensor:
        """[groups, 2, rows, columns], sampling points in coarse cells."""
        return self.reference + self.offset


class DeformableAttention(nn.Module):
    """Queries from one token per tile, keys and values sampled from another; every head sees only its own
    channels.

    Parameters
    ----------
    width : channels of the tokens, a multiple of the 8 groups; there is one head per group
    dropout : on the attention weights
    convention : "half_pixel" or "corner", see the module
    position_bias : "tabulated" or "exact", see `models.position_bias`
    """

    def __init__(
        self,
        width: int = 128,
        dropout: float = 0.1,
        convention: str = HALF_PIXEL,
        position_bias: str = TABULATED,
    ) -> None:
        super().__init__()
        assert width % GROUPS == 0 and convention in CONVENTIONS
        inner, channels = GROUPS * HEAD_WIDTH, width // GROUPS
        self.convention = convention
        self.query = nn.Parameter(_uniform(inner, channels))
        self.offset_window = nn.Conv2d(HEAD_WIDTH, HEAD_WIDTH, WINDOW, STRIDE, BORDER, groups=HEAD_WIDTH)
        self.offset_point = nn.Conv2d(HEAD_WIDTH, 2, 1, bias=False)
        self.key = nn.Parameter(_uniform(inner, channels))
        self.value = nn.Parameter(_uniform(inner, channels))
        self.position_bias = PositionBias(position_bias)
        self.output = nn.Linear(inner, width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, queries: Tensor, sources: Tensor, cell: Tensor, keep_weights: bool = False
    ) -> tuple[Tensor, Points]:
        """Attend within one slide.

        Parameters
        ----------
        queries, sources : [tiles, width], the source of queries and that of keys and values
        cell : int64 [tiles, 2], (column, row) of each tile on the lattice, each cell at most once
        keep_weights : return the attention weights too; they are tiles x tiles / 2 numbers

        Returns
        -------
        attended : [tiles, width]
        points : where the keys were sampled, and the attention weights where asked for
        """
        width, height = self._lattice(cell)
        flat = cell[:, 1] * width + cell[:, 0]
        query = _grouped(queries, self.query)  # [groups, tiles, 64]
        points = self._points(query, flat, height, width)
        grid = self._normalised(points.place, height, width)  # [groups, rows, columns, 2]
        channels = sources.reshape(len(sources), GROUPS, -1).permute(1, 2, 0)
        field = _raster(channels, flat, height, width)
        sampled = functional.grid_sample(field, grid.to(field), padding_mode="zeros", align_corners=False)
        sampled = sampled.flatten(2).transpose(1, 2)  # [groups, keys, width / groups]
        key = sampled @ self.key.reshape(GROUPS, HEAD_WIDTH, -1).transpose(1, 2)
        value = sampled @ self.value.reshape(GROUPS, HEAD_WIDTH, -1).transpose(1, 2)
        at = Displacement.between(*self._axes(height, width, grid), self._key_positions(points.place, grid))
        heads, weights = self._attend(query, key, value, at, cell, points.valid.flatten(), keep_weights)
        return self.output(heads.transpose(0, 1).flatten(1)), replace(points, weights=weights)

    def _lattice(self, cell: Tensor) -> tuple[int, int]:
        """Width and height; in half-pixel convention rounded up to coarse cells, so that windows cover all tiles."""
        width, height = (int(n) + 1 for n in cell.amax(dim=0))
        if self.convention == HALF_PIXEL:
            width, height = (-(-n // STRIDE) * STRIDE for n in (width, height))
        return width, height

    def _points(self, query: Tensor, flat: Tensor, height: int, width: int) -> Points:
        field = _raster(query.transpose(1, 2), flat, height, width)
        offset = self.offset_point(functional.gelu(self.offset_window(field)))
        offset = torch.tanh(offset) * OFFSET_RANGE
        rows, columns = offset.shape[-2:]
        row, column = torch.meshgrid(
            torch.arange(rows, device=offset.device), torch.arange(columns, device=offset.device), indexing="ij"
        )
        tiles = _raster(torch.ones(1, 1, len(flat), device=flat.device), flat, height, width)
        valid = functional.max_pool2d(tiles, WINDOW, STRIDE, BORDER)[0, 0] > 0
        return Points(torch.stack([column, row]).to(offset), offset, valid)

    def _normalised(self, place: Tensor, height: int, width: int) -> Tensor:
        """Sampling points as ``grid_sample`` wants them, [groups, rows, columns, (x, y)]."""
        rows, columns = place.shape[-2:]
        if self.convention == CORNER:
            size = place.new_tensor([max(columns - 1, 1), max(rows - 1, 1)])
            scaled = 2 * place / size[:, None, None] - 1
        else:
            size = place.new_tensor([width / STRIDE, height / STRIDE])
            scaled = 2 * (place + 0.5) / size[:, None, None] - 1
        return scaled.permute(0, 2, 3, 1)

    def _axes(self, height: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Positions of the lattice's columns [width] and rows [height] in the convention's unit."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        column, row = (torch.arange(n, device=like.device, dtype=dtype) for n in (width, height))
        if self.convention == CORNER:
            return 2 * column / max(width - 1, 1) - 1, 2 * row / max(height - 1, 1) - 1
        return column / UNIT_TILES, row / UNIT_TILES

    def _key_positions(self, place: Tensor, grid: Tensor) -> Tensor:
        """Key positions [groups, keys, (x, y)] in the same unit."""
        if self.convention == CORNER:
            return grid.flatten(1, 2)
        return ((STRIDE * place + (STRIDE - 1) / 2) / UNIT_TILES).flatten(2).transpose(1, 2)

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, at: Displacement, cell: Tensor, valid: Tensor, keep: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Attention in chunks of queries, [groups, tiles, 64]; more than one are recomputed in the backward pass."""
        table = self.position_bias.table(at, GROUPS * query.shape[1] * key.shape[1])
        if table is not None:
            at = table.scaled(at)

        def chunk(query: Tensor, cell: Tensor) -> tuple[Tensor, Tensor | None]:
            scores = query @ key.transpose(1, 2) * HEAD_WIDTH**-0.5 + self.position_bias.bias(at, table, cell)
            scores = scores.masked_fill(~valid, float("-inf"))
            weights = scores.softmax(dim=-1)
            return self.dropout(weights) @ value, weights if keep else None

        pairs = EXACT_PAIRS_PER_CHUNK if table is None else PAIRS_PER_CHUNK
        rows = max(1, pairs // (GROUPS * key.shape[1]))
        if query.shape[1] <= rows:
            return chunk(query, cell)
        parts = zip(query.split(rows, dim=1), cell.split(rows), strict=True)
        heads, weights = zip(*(checkpoint(chunk, q, c, use_reentrant=False) for q, c in parts), strict=True)
        return torch.cat(heads, dim=1), torch.cat(weights, dim=1) if keep else None


def _uniform(rows: int, columns: int) -> Tensor:
    """The framework's initial weights of a convolution with `columns` inputs."""
    return torch.empty(rows, columns).uniform_(-(columns**-0.5), columns**-0.5)


def _grouped(tokens: Tensor, weight: Tensor) -> Tensor:
    """Project each group of channels by its own rows of `weight`: [tiles, width] -> [groups, tiles, 64]."""
    split = tokens.reshape(len(tokens), GROUPS, -1).transpose(0, 1)
    return split @ weight.reshape(GROUPS, HEAD_WIDTH, -1).transpose(1, 2)


def _raster(values: Tensor, flat: Tensor, height: int, width: int) -> Tensor:
    """Put [batch, channels, tiles] on the lattice, zeros where there is no tile: [batch, channels, height, width]."""
    field = values.new_zeros(*values.shape[:2], height * width)
    return field.index_copy(2, flat, values).unflatten(2, (height, width))
