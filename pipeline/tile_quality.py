"""Is a tile worth embedding? Pen, dark things, folds and blur, measured on every cell of a lattice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.artefacts import find_dark, find_folds, find_purple_ink
from pipeline.contracts.tissue import Tissue
from pipeline.focus import measure_focus, sharpness
from pipeline.outlines import fill
from pipeline.rasters import Raster
from pipeline.slide import SlideReader
from pipeline.tissue import optical_density, smoothed


@dataclass(frozen=True)
class QualityMaps:
    """What tiles are judged by, over the whole slide.

    `pen`, `dark` and `fold` are masks; `detail` and `structure` energies in grey levels squared, see `focus`.
    """

    pen: Raster
    dark: Raster
    fold: Raster
    detail: Raster
    structure: Raster

    def columns(self, x_edges: np.ndarray, y_edges: np.ndarray) -> dict[str, np.ndarray]:
        """Per cell between edges in level-0 pixels, float64 [rows, columns] each, as `TileGrid.qc` defines them."""
        shares = {name: getattr(self, name).shares(x_edges, y_edges) for name in ("pen", "dark", "fold")}
        detail, structure = (np.maximum(m.means(x_edges, y_edges), 0) for m in (self.detail, self.structure))
        return {**shares, "focus": sharpness(detail, structure)}


def measure_quality(reader: SlideReader, tissue: Tissue, rgb: np.ndarray) -> QualityMaps:
    """Measure a slide on `rgb` (uint8 [rows, columns, 3]), the thumbnail that its tissue was found on, and, for focus,
    on the stored level nearest to `focus.FOCUS_UM_PER_PX`.
    """
    height, width = rgb.shape[:2]
    scale = tissue.px_per_mask_px
    um = (tissue.um_per_px[0] * tissue.um_per_px[1]) ** 0.5
    is_tissue = fill(tissue.in_mask_px(tissue.tissue), width, height)
    density = smoothed(optical_density(rgb), um)
    focus = measure_focus(reader, Raster(is_tissue, scale))
    edges = [np.arange(count + 1) * own for count, own in zip((width, height), scale, strict=True)]
    plain = focus.plain.means(*edges) > 0.5
    ink = fill(tissue.in_mask_px(tissue.ink), width, height) | find_purple_ink(density, plain, um)
    return QualityMaps(
        pen=Raster(ink, scale),
        dark=Raster(find_dark(density, ink), scale),
        fold=Raster(find_folds(density, is_tissue & ~ink, um), scale),
        detail=focus.detail,
        structure=focus.structure,
    )
