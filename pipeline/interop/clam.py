"""The layout of CLAM, both ways.

===========================  ======================================================================================
``h5_files/{slide}.h5``      ``features`` float32 [N, D], ``coords`` int32 [N, 2] in level-0 pixels; no attributes
``pt_files/{slide}.pt``      float32 tensor [N, D]; what training reads
``dataset.csv``              case_id, slide_id and the columns of the clinical sheet
``patches/{slide}.h5``       (read only, where it is there) ``coords`` with patch_size and downsample (x, y) of the
                             level that was read
===========================  ======================================================================================

It stores neither um/px nor a magnification: both come from the slides or their sheet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from pipeline.contracts.errors import InputError, SlideError
from pipeline.contracts.features import Bag, BagSource
from pipeline.contracts.files import whole_file
from pipeline.interop.csv_tables import write_csv
from pipeline.interop.exporting import CohortTables, ExportRow
from pipeline.interop.foreign import ForeignBag, number, pair, read_arrays
from pipeline.interop.tensors import write_tensor


class Clam:
    """See the module. A `Layout`."""

    name = "clam"
    keeps_magnifications_apart = False

    def paths(self, source: BagSource) -> tuple[str, ...]:
        return f"h5_files/{source.slide_id}.h5", f"pt_files/{source.slide_id}.pt"

    def write(self, bag: Bag, folder: Path) -> None:
        arrays, tensor = (folder / path for path in self.paths(bag.source))
        with whole_file(arrays) as part, h5py.File(part, "w") as file:
            file.create_dataset("features", data=bag.features.astype(np.float32), track_times=False)
            file.create_dataset("coords", data=bag.coords.astype(np.int32), track_times=False)
        write_tensor(tensor, bag.features)

    def write_tables(self, exported: Sequence[ExportRow], folder: Path, tables: CohortTables) -> list[str]:
        known = tables.cases.rows if tables.cases else {}
        columns = [c for c in tables.cases.columns if c not in ("case_id", "slide_id")] if tables.cases else []
        rows = ([r.case_id, r.slide_id, *(known.get(r.case_id, {}).get(c, "") for c in columns)] for r in exported)
        write_csv(folder / "dataset.csv", ["case_id", "slide_id", *columns], rows)
        return []


def find_bags(folder: Path, magnification: float) -> dict[float, dict[str, Path]]:
    """Feature files by slide name, all of one magnification. Raises InputError where there is none."""
    files = {path.stem: path for path in sorted((folder / "h5_files").glob("*.h5"))}
    if not files:
        raise InputError(
            str(folder), "no file in its h5_files.",
            "name the folder that holds h5_files; pt_files alone have no coordinates and cannot be imported.",
        )  # fmt: skip
    return {magnification: files}


@dataclass(frozen=True)
class ClamReader:
    """Reads feature files of one run.

    `patches` is the folder of its coordinate files, which say how large a patch is; without them `size_px` and
    `size_level0_px` must be given for all slides.
    """

    patches: Path | None = None
    size_px: int | None = None
    size_level0_px: float | None = None

    def __call__(self, path: Path) -> ForeignBag:
        """Raises SlideError for a damaged file and where nothing says how large its patches are."""
        features, coords, _ = read_arrays(path)
        size, level0 = self._size(path.stem)
        return ForeignBag(features, coords, size_px=size, size_level0_px=level0)

    def _size(self, stem: str) -> tuple[int, tuple[float, float]]:
        if self.size_px and self.size_level0_px:
            return self.size_px, (self.size_level0_px, self.size_level0_px)
        path = self.patches / f"{stem}.h5" if self.patches else None
        try:
            if path is None:
                raise FileNotFoundError("no folder of patches")
            with h5py.File(path, "r") as file:
                attributes = dict(file["coords"].attrs)
        except (OSError, KeyError, RuntimeError) as error:
            raise SlideError(
                f"nothing says how large its patches are ({error}). Fix: --patches FOLDER with CLAM's coordinate files,"
                " or --size-px and --size-level0-px"
            ) from error
        size = number(attributes, "patch_size")
        x, y = pair(attributes, "downsample") or (number(attributes, "downsample"),) * 2
        if not (size and x and y):
            raise SlideError(f"{path}: coords lack patch_size or downsample. Fix: --size-px and --size-level0-px")
        return int(size), (size * x, size * y)
