"""Random batches for models: cases with slides on lattices of unequal sides, at one magnification or two, padded with
garbage where they stand side by side."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from models.batch import Batch, Sizes, Targets

WIDTH, GENES, CLINICAL, OUTPUTS = 6, {"tumour": 5, "tme": 4, "all": 12}, 3, 3
FAMILIES = [[0, 3], [5], [1, 4, 11, 0]]
GARBAGE = {"features": 1e6, "mask": 0, "slide": -1, "cell": 0, "coords": 0, "parent": -1}


def sizes_of(kind: str, features: int = WIDTH) -> Sizes:
    return Sizes(features, GENES, 0 if kind == "pretraining" else OUTPUTS, kind, CLINICAL, FAMILIES)


def make_case(rng: torch.Generator, slides: tuple[int, ...], pair: bool = False) -> Batch:
    """One case with a slide of so many tiles per entry, and everything that any model reads.

    With two magnifications these are the finer tiles, and their parents lie around.
    """
    genes = {group: torch.randn(1, n, generator=rng) for group, n in GENES.items()}
    clinical = torch.randn(1, CLINICAL, generator=rng)
    width = 9 + int(max(slides) ** 0.5)  # more places than tiles, in rows that are not square
    cells = []
    for n in slides:
        place = torch.randperm(2 * n + 60, generator=rng)[:n]
        cells.append(torch.stack([place % width, place // width], dim=1))
    fine = _tiles(rng, cells)
    if not pair:
        return replace(fine, genes=genes, clinical=clinical)
    coarse_cells, parents, start = [], [], 0
    for cell in cells:
        found, parent = torch.unique(cell // 2, dim=0, return_inverse=True)
        coarse_cells.append(found)
        parents.append(parent + start)
        start += len(found)
    coarser, parent = _tiles(rng, coarse_cells), torch.cat(parents)[None]
    lesson = {
        f"{m}_{what}": torch.randn(1, n, generator=rng)
        for m in ("coarse", "fine")
        for what, n in (("logits", OUTPUTS), ("features", 256))
    }
    yes = torch.ones(1, dtype=torch.bool)
    return replace(fine, genes=genes, clinical=clinical, coarser=coarser, parent=parent, lesson=lesson, taught=yes)


def _tiles(rng: torch.Generator, cells: list[Tensor]) -> Batch:
    cell = torch.cat(cells)[None]
    slide = torch.cat([torch.full((len(c),), number) for number, c in enumerate(cells)])[None]
    yes, mask = torch.ones(1, dtype=torch.bool), torch.ones(slide.shape, dtype=torch.bool)
    features = torch.randn(1, cell.shape[1], WIDTH, generator=rng)
    return Batch(("C",), yes, yes, features, mask, slide, cell, cell * 448)


def side_by_side(cases: list[Batch], extra: int = 3) -> Batch:
    """Cases as one batch, padded with garbage to `extra` tiles more than the longest."""
    padded: dict[str, Tensor] = {}
    for name, value in GARBAGE.items():
        parts = [getattr(case, name) for case in cases]
        if parts[0] is not None:
            longest = max(part.shape[1] for part in parts) + extra
            padded[name] = torch.cat([_lengthened(part, longest, value) for part in parts])
    first, yes = cases[0], torch.ones(len(cases), dtype=torch.bool)
    return Batch(
        tuple(map(str, range(len(cases)))),
        yes,
        yes,
        **padded,
        genes={group: torch.cat([case.genes[group] for case in cases]) for group in first.genes},
        clinical=None if first.clinical is None else torch.cat([case.clinical for case in cases]),
        coarser=None if first.coarser is None else side_by_side([case.coarser for case in cases], extra),
        lesson={name: torch.cat([case.lesson[name] for case in cases]) for name in first.lesson},
        taught=None if first.taught is None else yes,
    )


def _lengthened(values: Tensor, length: int, garbage: float) -> Tensor:
    longer = values.new_full((1, length, *values.shape[2:]), garbage)
    longer[:, : values.shape[1]] = values
    return longer


def some_targets(kind: str, cases: int) -> Targets:
    """Every class, or times with ties, events among the first and the last."""
    number = torch.arange(cases)
    if kind == "classification":
        return Targets(label=number % OUTPUTS)
    return Targets(interval=number % OUTPUTS, time=(1.0 + number // 2).double(), event=(number % 3 != 1).long())
