"""The mean of a tile and of those that touch it on its slide's lattice: context at a cost linear in tiles."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

STEPS = [(column, row) for column in (-1, 0, 1) for row in (-1, 0, 1) if (column, row) != (0, 0)]


@dataclass(frozen=True)
class Neighbourhood:
    """Which tiles touch, by side or corner: a tile's up to eight neighbours, found by sorting the cells.

    Attributes
    ----------
    neighbour : int64 [8, tiles], row of the neighbour in each direction; the tile itself where there is none
    there : [8, tiles, 1], 1 where there is a neighbour, else 0
    """

    neighbour: Tensor
    there: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, slide: Tensor, cell: Tensor) -> Neighbourhood:
        """From int64 [tiles], a number for each slide, and int64 [tiles, 2], (column, row), each cell at most once.

        Only differences of cells count: a slide whose cells are all shifted alike has the same neighbours.
        """
        if not len(cell):
            return cls(cell.new_zeros(8, 0), torch.zeros(8, 0, 1, device=cell.device))
        column, row = (cell - cell.amin(dim=0) + 1).unbind(dim=1)  # a free border, so that edges do not wrap around
        width, height = int(column.amax()) + 2, int(row.amax()) + 2
        key = (slide * height + row) * width + column
        ordered, order = key.sort()
        wanted = key + key.new_tensor([step_row * width + step_column for step_column, step_row in STEPS])[:, None]
        at = torch.searchsorted(ordered, wanted).clamp(max=len(key) - 1)
        there = ordered[at] == wanted
        itself = torch.arange(len(key), device=key.device)
        return cls(torch.where(there, order[at], itself), there[..., None].to(torch.float32))

    def mean(self, tokens: Tensor) -> Tensor:
        """[tiles, width] to the same: the mean of each tile and its neighbours."""
        there = self.there.to(tokens)
        total = tokens
        for rows, known in zip(self.neighbour, there, strict=True):
            total = total + tokens[rows] * known
        return total / (1 + there.sum(dim=0))
