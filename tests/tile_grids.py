"""Grids over given masks, and the tiles of slides as the embedding reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from pipeline.contracts.slides import SlideFacts
from pipeline.contracts.tiles import TileGrid
from pipeline.rasters import Raster
from pipeline.shared_cells import groups
from pipeline.stain_transfer import BUILTIN_TARGET, StainTransfer
from pipeline.tile_stream import Reading, TileBatch, TileReader
from pipeline.tiling import TilingParams, make_grids


def grids_over(
    mask: np.ndarray,
    um_per_px: tuple[float, float],
    bounds: tuple[int, int, int, int],
    sources: Mapping[float, tuple[int, tuple[float, float]]],
    params: TilingParams,
) -> dict[float, TileGrid]:
    """Grids of `make_grids` over a slide that ends with its bounds, with `mask` [rows, columns] as its tissue."""
    scale = (bounds[0] + bounds[2]) / mask.shape[1], (bounds[1] + bounds[3]) / mask.shape[0]
    return make_grids(um_per_px, bounds, Raster(mask, scale), sources, params)


def batches(facts: SlideFacts, grids: Mapping[float, TileGrid], readers: int = 1, size: int = 8) -> Iterator[TileBatch]:
    """Tiles of all `grids`, without stain normalisation."""
    reading = Reading(facts, StainTransfer(None, BUILTIN_TARGET), groups(grids))
    with TileReader(readers=readers, batch_size=size) as reader:
        for _, batch in reader.batches([reading]):
            if isinstance(batch, Exception):
                raise batch
            if batch is not None:
                yield batch
