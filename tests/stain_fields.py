"""H&E fields for tests: made from known stains, or real ones where they lie beside this checkout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.contracts import layout
from pipeline.contracts.batches import BatchRow
from pipeline.contracts.slides import SlideFacts, write_slide_facts
from pipeline.contracts.stains import StainColours, colours_from
from pipeline.contracts.tiles import TileGrid, TileSet, write_tiles
from pipeline.stain_transfer import BUILTIN_TARGET
from tests.slide_files import real_file

H, E = np.array(BUILTIN_TARGET.matrix)
REAL = ["glioma_TCGA-06-0174_GBM.png", "glioma_TCGA-HT-7470_LGG.png", "histolab_high_nuclei.png",
        "histolab_tcga_lung.png", "tiatoolbox_target.png", "torchstain_source.png",
        "torchstain_target.png"]  # fmt: skip


def real_field(name: str) -> np.ndarray:
    with Image.open(real_file(f"he-patches/{name}")) as image:
        return np.asarray(image.convert("RGB"))


def degrees(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.degrees(np.arccos(np.clip((np.asarray(a) * np.asarray(b)).sum(axis=1), -1, 1)))


def random_matrix(rng: np.random.Generator, spread: float = 0.08) -> np.ndarray:
    """Stains near H&E, haematoxylin first, at least 12 degrees apart, and not of the colours of ink."""
    while True:
        rows = np.abs(np.stack([[0.64, 0.70, 0.31], E]) + rng.normal(0, spread, (2, 3)))
        rows /= np.sqrt((rows**2).sum(axis=1, keepdims=True))
        not_ink = (rows[:, 0] < 1.15 * rows[:, 1]).all() and (rows[:, 2] < 0.9 * rows[:, 1]).all()
        if degrees(rows[:1], rows[1:])[0] > 12 and rows[0, 0] > rows[1, 0] + 0.1 and not_ink:
            return rows


def render(
    rng: np.random.Generator, matrix: np.ndarray, white: np.ndarray, size: tuple[int, int] = (200, 300)
) -> np.ndarray:
    """A field of nuclei (mostly haematoxylin), stroma (mostly eosin), some of both, and glass; uint8."""
    kind = rng.choice(4, size=size, p=[0.3, 0.45, 0.15, 0.1])
    strong, weak = rng.gamma(12, 0.1, size), rng.gamma(2, 0.02, size)
    first = np.choose(kind, [strong, weak, strong * 0.7, 0 * weak])
    second = np.choose(kind, [weak, strong * 0.8, strong * 0.5, 0 * weak])
    od = first[..., None] * matrix[0] + second[..., None] * matrix[1]
    return np.clip(np.rint(white * np.exp(-od) + rng.normal(0, 0.5, (*size, 3))), 0, 255).astype(np.uint8)


def colours(rng: np.random.Generator, white: float = 255) -> StainColours:
    return colours_from(random_matrix(rng), rng.uniform(1, 2, 2), np.full(3, white))


UPSTREAM = BatchRow("s1", "c1", "ok", "tiles", digest="tiles-digest")


def make_slide(results: Path, rng: np.random.Generator, matrix: np.ndarray, n_tiles: int = 12) -> None:
    """One slide s1: a PNG field at 0.4 um/px with tiles of 64 px at 0.5 um/px."""
    field = render(rng, matrix, np.array([240.0, 243, 238]), (60, 84)).repeat(5, axis=0).repeat(5, axis=1)
    Image.fromarray(field).save(results / "s1.png")
    write_slide_facts(
        layout.slide_facts(results, "s1"),
        SlideFacts(
            slide_id="s1", path=str(results / "s1.png"), identity={}, vendor="field", backend="pillow",
            dimensions=(420, 300), levels=((420, 300, 1.0, 1.0),),
            um_per_px=(0.4, 0.4), um_per_px_source="sheet",
            um_per_px_override=0.4, objective=None, bounds=(0, 0, 420, 300), background=(255, 255, 255),
        ),
    )  # fmt: skip
    cell = np.array([(c, r) for r in range(3) for c in range(5)], np.int32)[:n_tiles]
    pitch = np.array([80.0, 80.0])
    ones = np.ones(len(cell), np.float32)
    grid = TileGrid(
        cell=cell, coords=np.rint(cell * pitch).astype(np.int64), origin=np.zeros(2), pitch=pitch, size_px=64,
        um_per_px=0.5, achieved_um_per_px=(0.5, 0.5), source_level=0, source_um_per_px=(0.4, 0.4),
        tissue_fraction=ones, inside_fraction=ones, parent=np.full(len(cell), -1),
    )  # fmt: skip
    write_tiles(
        layout.tiles(results, "s1"),
        TileSet("s1", {20: grid}, {}, (420, 300), (0.4, 0.4), digest="tiles-digest"),
    )
