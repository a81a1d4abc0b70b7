"""A small finished run, as the embedding leaves it: two slides of one case, one of another, and one that is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.contracts import layout
from pipeline.contracts.batches import FAILED, OK, BatchRow, write_batch
from pipeline.contracts.features import Bag, BagRecord, BagSource, write_bag, write_index

SLUG = "enc"
SIZE_PX = 224
LEVEL0_UM = (0.2525, 0.2510)  # unequal axes, and not 0.25
SLIDES = {"c1-a": "c1", "c1-b": "c1", "c2-vs": "c2"}  # the last loses letters where endings are stripped carelessly
LOST = BatchRow("c3-a", "c3", FAILED, "check", "truncated: 3 of 9 bytes")


def pitch(magnification: float) -> tuple[float, float]:
    um = 10 / magnification
    return SIZE_PX * um / LEVEL0_UM[0], SIZE_PX * um / LEVEL0_UM[1]


def make_bag(rng: np.random.Generator, slide_id: str, magnification: float, parent_of: np.ndarray | None) -> Bag:
    """Cells in a window of unequal sides, away from the origin; the coarse bag lacks the parent of some tiles."""
    if parent_of is None:  # the coarsest
        cell = np.array([(c, r) for r in range(5, 9) for c in range(2, 5)], np.int32)
        cell = cell[np.sort(rng.permutation(len(cell))[:10])]
        parent = np.full(len(cell), -1, np.int64)
    else:
        cell = np.array([(c, r) for r in range(10, 18) for c in range(4, 10)], np.int32)
        cell = cell[np.sort(rng.permutation(len(cell))[:29])]
        rows = {tuple(c): i for i, c in enumerate((parent_of).tolist())}
        parent = np.array([rows.get((int(c) // 2, int(r) // 2), -1) for c, r in cell], np.int64)
    n, (px, py) = len(cell), pitch(magnification)
    um = 10 / magnification
    source = BagSource(
        slide_id=slide_id, encoder=SLUG, encoder_name="net.v1", weights="random", weights_digest="w",
        magnification=float(magnification), size_px=SIZE_PX, size_level0_px=(px, py), um_per_px=um,
        achieved_um_per_px=(um, um), level0_um_per_px=LEVEL0_UM, level0_magnification=40,
        level0_size_px=(40_000, 30_000), stain="none", savetodir=f"features/{SLUG}/{magnification:g}x", revision=1,
        digest=f"digest of {slide_id}", slide_magnifications=(20.0, 10.0),
    )  # fmt: skip
    return Bag(
        features=rng.normal(size=(n, 7)).astype(np.float32),
        coords=np.rint(cell * np.array([px, py])).astype(np.int64),
        cell=cell,
        parent=parent,
        tissue_fraction=rng.random(n).astype(np.float32),
        failed_cells=np.zeros((0, 2), np.int32),
        source=source,
    )


def make_run(results: Path, seed: int | None = None) -> dict[tuple[str, float], Bag]:
    """Write bags, their index and their batch; bags by slide and magnification."""
    rng = np.random.default_rng(seed)
    bags, records = {}, []
    for slide_id, case_id in SLIDES.items():
        coarse = make_bag(rng, slide_id, 10, None)
        for bag in (coarse, make_bag(rng, slide_id, 20, coarse.cell)):
            magnification = bag.source.magnification
            path = Path(layout.features(results, SLUG, magnification, slide_id))
            write_bag(path, bag)
            bags[slide_id, magnification] = bag
            records.append(
                BagRecord(
                    slide_id, case_id, magnification, path, len(bag.features), 10 / magnification, bag.source.digest,
                    "random",
                )
            )  # fmt: skip
    write_index(layout.features_index(results, SLUG), records)
    rows = [BatchRow(s, c, OK, "features", digest=f"digest of {s}") for s, c in SLIDES.items()]
    write_batch(layout.batch_index(results, f"features/{SLUG}", "b"), [*rows, LOST])
    return bags
