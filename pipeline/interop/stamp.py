"""The layout of STAMP: ``{encoder}/{slide}.h5`` with coordinates in micrometres, and its two tables.

=====================  ==============================================================================
``feats``  [N, D]      float32
``coords``  [N, 2]     float32, upper-left corner (x, y) of each tile in micrometres
file attributes        ``unit`` um, ``tile_size_um``, ``tile_size_px``, ``extractor``, ``feat_type`` tile,
                       ``stamp_version``: the first version with these names, since newer files are refused
``slides.csv``         PATIENT, FILENAME (with ``.h5``, relative to the folder of its encoder)
``clini.csv``          PATIENT and the columns of the clinical sheet
=====================  ==============================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from pipeline.contracts.features import Bag, BagSource
from pipeline.contracts.files import whole_file
from pipeline.interop.csv_tables import write_csv
from pipeline.interop.exporting import CohortTables, ExportRow

STAMP_VERSION = "2.1.0"
CODE_HASH = "histoweave"


class Stamp:
    """See the module. A `Layout`."""

    name = "stamp"
    keeps_magnifications_apart = False

    def paths(self, source: BagSource) -> tuple[str, ...]:
        return (f"{source.encoder}/{source.slide_id}.h5",)

    def write(self, bag: Bag, folder: Path) -> None:
        source = bag.source
        um = bag.coords * np.array(source.level0_um_per_px)
        with whole_file(folder / self.paths(source)[0]) as part, h5py.File(part, "w") as file:
            file.create_dataset("coords", data=um.astype(np.float32), track_times=False)
            file.create_dataset("feats", data=bag.features, track_times=False)
            file.attrs["stamp_version"] = STAMP_VERSION
            file.attrs["extractor"] = source.encoder
            file.attrs["unit"] = "um"
            file.attrs["tile_size_um"] = source.size_px * source.um_per_px
            file.attrs["tile_size_px"] = source.size_px
            file.attrs["code_hash"] = CODE_HASH
            file.attrs["feat_type"] = "tile"

    def write_tables(self, exported: Sequence[ExportRow], folder: Path, tables: CohortTables) -> list[str]:
        write_csv(
            folder / "slides.csv", ["PATIENT", "FILENAME"], ([row.case_id, Path(row.path).name] for row in exported)
        )
        if tables.cases is None:
            return ["stamp: no clinical sheet was given, so no clini.csv"]
        columns = [column for column in tables.cases.columns if column != "case_id"]
        known = tables.cases.rows
        rows = (
            [case, *(known[case][c] for c in columns)] for case in sorted({r.case_id for r in exported} & known.keys())
        )
        write_csv(folder / "clini.csv", ["PATIENT", *columns], rows)
        return []
