"""Continuous position bias: a small network of the log-warped displacement between a query and a key.

Evaluated directly, the network's two hidden layers hold 64 values per pair of query and key, which is most of the time
and memory of deformable attention. But the bias is a function of two numbers only, and piecewise linear in them. So by
default it is tabulated on a grid of the warped displacement and interpolated bilinearly, which is exact wherever no
unit of the network switches inside a cell of the grid. The table is a function of the weights and the place in it one
of the sampling points, so both get their gradients. The grid is refined until the root mean square of the error at the
centres of its cells is at most `ERROR_BOUND`; where a grid would have half as many knots as there are pairs, or the
finest does not suffice, the network is evaluated directly.

What that does to whole models (subspace, disentangled teacher and student) against direct evaluation: logits are within
1e-5 at initial weights, and within 1e-3 of their size on trained and on badly scaled ones, whatever the number of
tiles; so are all gradients together, and 1e-4 at initial weights. The exception is the gradient of a student in which a
tile lies just between two clusters and joins the other one, as any rounding can make it do: its logits keep the bound.

Queries stand on a lattice, so the displacement is warped once per column and once per row of it, not per pair.

Source: SwinV2 (Liu et al. 2022, equation 4) for the warp; subspace specification, 5.3 step 6 and section 14.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

TABULATED, EXACT = METHODS = ("tabulated", "exact")
KNOTS = (129, 257, 513, 1025)  # per axis, coarsest first
ERROR_BOUND = 1e-3  # root mean square over cells, beside attention scores of order 1


@dataclass(frozen=True)
class Displacement:
    """Warped displacement from each key to each column and row of the queries' lattice.

    Attributes
    ----------
    x : [groups, columns, keys]; y : [groups, rows, keys]
    """

    x: Tensor
    y: Tensor

    @classmethod
    def between(cls, columns: Tensor, rows: Tensor, keys: Tensor) -> Displacement:
        """Positions of lattice columns [columns] and rows [rows], and of keys [groups, keys, (x, y)], in one unit."""
        return cls(*(_warped(axis[:, None] - keys[:, None, :, k]) for k, axis in enumerate((columns, rows))))

    def pairs(self, cell: Tensor) -> Tensor:
        """[groups, tiles, keys, (x, y)] for queries at `cell` int64 [tiles, (column, row)]."""
        return torch.stack([self.x.index_select(1, cell[:, 0]), self.y.index_select(1, cell[:, 1])], dim=-1)


@dataclass(frozen=True)
class Table:
    """The network on a regular grid: `values` [rows, columns] over the square from `low` to `high`, each (x, y)."""

    values: Tensor
    low: Tensor
    high: Tensor

    def scaled(self, at: Displacement) -> Displacement:
        """The same displacement in the table's coordinates, -1 to 1 from its first knot to its last."""
        scale = 2 / (self.high - self.low)
        return Displacement((at.x - self.low[0]) * scale[0] - 1, (at.y - self.low[1]) * scale[1] - 1)

    def interpolated(self, at: Tensor) -> Tensor:
        """Bilinear interpolation at scaled places [groups, tiles, keys, 2]: [groups, tiles, keys]."""
        grid = at.flatten(0, 1)[None]
        values = functional.grid_sample(self.values[None, None], grid, padding_mode="border", align_corners=True)
        return values.reshape(at.shape[:-1])


class PositionBias(nn.Sequential):
    """2 -> 32 -> 32 -> 1 with ReLU between; `tabulated` or evaluated directly (`exact`)."""

    def __init__(self, method: str = TABULATED) -> None:
        assert method in METHODS
        super().__init__(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
        self.method = method

    def table(self, at: Displacement, pairs: int) -> Table | None:
        """A table that covers `at` within the bound; None where direct evaluation of so many pairs is called for."""
        grids = [knots for knots in KNOTS if self.method != EXACT and 2 * knots**2 < pairs]
        if not grids:
            return None
        axes = [axis.detach().float() for axis in (at.x, at.y)]
        low, high = torch.stack([a.amin() for a in axes]), torch.stack([a.amax() for a in axes])
        high = torch.maximum(high, low + 1e-3)
        with torch.autocast(low.device.type, enabled=False):
            for knots in grids:
                values = self(_grid(low, high, knots)).squeeze(-1)
                if self._error(values.detach(), low, high) <= ERROR_BOUND:
                    return Table(values, low, high)
        return None

    @torch.no_grad()
    def _error(self, values: Tensor, low: Tensor, high: Tensor) -> float:
        """Root mean square error of interpolation at the centres of the grid's cells."""
        half = (high - low) / (2 * (len(values) - 1))
        exact = self(_grid(low + half, high - half, len(values) - 1)).squeeze(-1)
        between = functional.avg_pool2d(values[None], 2, stride=1)[0]
        return float((between - exact).square().mean().sqrt())

    def bias(self, at: Displacement, table: Table | None, cell: Tensor) -> Tensor:
        """Bias [groups, tiles, keys] of queries at `cell`; with a table, `at` is in its coordinates."""
        return self(at.pairs(cell)).squeeze(-1) if table is None else table.interpolated(at.pairs(cell))


def _warped(displacement: Tensor) -> Tensor:
    return displacement.sign() * displacement.abs().log1p()


def _grid(low: Tensor, high: Tensor, knots: int) -> Tensor:
    """[knots (y), knots (x), (x, y)], evenly spaced from `low` to `high`."""
    steps = torch.linspace(0, 1, knots, device=low.device)
    x, y = (low[k] + steps * (high[k] - low[k]) for k in (0, 1))
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
