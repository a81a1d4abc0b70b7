"""The layout of TRIDENT, both ways.

Below a job folder, ``{mag}x_{size}px_{overlap}px_overlap/`` holds

====================================  =================================================================================
``features_{encoder}/{slide}.h5``     ``features`` [N, D] with attributes name, savetodir, encoder; ``coords`` [N, 2]
``patches/{slide}_patches.h5``        ``coords`` alone
attributes of every ``coords``        patch_size, patch_size_level0, level0_magnification, target_magnification,
                                      overlap, name, savetodir, and in newer files level0_width, level0_height
====================================  =================================================================================

Coordinates are level-0 pixels. It stores no um/px, only magnifications as whole numbers, and computes the patch's size
at level 0 from them; what we export carries the exact um/px beside them in attributes that it ignores.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from pipeline.contracts.errors import InputError, SlideError, nearest
from pipeline.contracts.features import Bag, BagSource, coords_attributes
from pipeline.contracts.files import whole_file
from pipeline.interop.exporting import CohortTables, ExportRow
from pipeline.interop.foreign import ForeignBag, number, pair, read_arrays

_RUN = re.compile(r"(?P<magnification>[0-9.]+)x_(?P<size>\d+)px_(?P<overlap>\d+)px_overlap")


class Trident:
    """See the module. A `Layout`."""

    name = "trident"
    keeps_magnifications_apart = True

    def paths(self, source: BagSource) -> tuple[str, ...]:
        run = f"{source.magnification:g}x_{source.size_px}px_{source.overlap}px_overlap"
        name = source.slide_id
        return f"{run}/features_{source.encoder}/{name}.h5", f"{run}/patches/{name}_patches.h5"

    def write(self, bag: Bag, folder: Path) -> None:
        features, patches = (folder / path for path in self.paths(bag.source))
        attributes = coords_attributes(bag.source)
        with whole_file(features) as part, h5py.File(part, "w") as file:
            stored = file.create_dataset("features", data=bag.features, track_times=False)
            savetodir = str(features.parent.relative_to(folder))
            stored.attrs.update({"name": bag.source.slide_id, "savetodir": savetodir, "encoder": bag.source.encoder})
            _write_coords(file, bag.coords, attributes | {"savetodir": patches.parts[-3]})
        with whole_file(patches) as part, h5py.File(part, "w") as file:
            _write_coords(file, bag.coords, attributes | {"savetodir": patches.parts[-3]})

    def write_tables(self, exported: Sequence[ExportRow], folder: Path, tables: CohortTables) -> list[str]:
        return []


def _write_coords(file: h5py.File, coords: np.ndarray, attributes: dict[str, object]) -> None:
    stored = file.create_dataset("coords", data=coords.astype(np.int64), track_times=False)
    stored.attrs.update(attributes)


def find_bags(folder: Path, encoder: str, magnifications: Sequence[float]) -> dict[float, dict[str, Path]]:
    """Feature files by magnification and slide name.

    Parameters
    ----------
    folder : the job folder
    encoder : as in ``features_{encoder}``
    magnifications : those to take, empty for all

    Raises
    ------
    InputError : no such encoder, none of these magnifications, or two runs of one magnification
    """
    found: dict[float, Path] = {}
    encoders: set[str] = set()
    for run in sorted(folder.glob("*x_*px_*px_overlap")):
        match = _RUN.fullmatch(run.name)
        if match is None:
            continue
        encoders |= {path.name.removeprefix("features_") for path in run.glob("features_*") if path.is_dir()}
        magnification = float(match["magnification"])
        if not (run / f"features_{encoder}").is_dir() or (magnifications and magnification not in magnifications):
            continue
        if magnification in found:
            raise InputError(
                str(folder), f"two runs hold features at {magnification:g}x: {found[magnification].name}, {run.name}.",
                "give the one you mean a job folder of its own (a link will do).",
            )  # fmt: skip
        found[magnification] = run
    if not found:
        known = ", ".join(sorted(encoders)) or "none"
        asked = f" at {', '.join(f'{m:g}x' for m in magnifications)}" if magnifications else ""
        raise InputError(
            str(folder), f"no features of '{encoder}'{asked}{nearest(encoder, encoders)}; encoders here: {known}.",
            "name the job folder, which holds folders like 20x_256px_0px_overlap.",
        )  # fmt: skip
    return {
        magnification: {path.stem: path for path in sorted((run / f"features_{encoder}").glob("*.h5"))}
        for magnification, run in sorted(found.items(), reverse=True)
    }


def read_bag(path: Path) -> ForeignBag:
    """Read a feature file. Raises SlideError where it is damaged or lacks the attributes that say what a tile is."""
    features, coords, attributes = read_arrays(path)
    size, level0 = number(attributes, "patch_size"), number(attributes, "level0_magnification")
    target = number(attributes, "target_magnification")
    if not (size and level0 and target):
        raise SlideError("coords lack patch_size, level0_magnification or target_magnification")
    size_level0 = number(attributes, "patch_size_level0") or size * level0 / target
    exact = pair(attributes, "level0_um_per_px")
    um = number(attributes, "um_per_px")
    dimensions = number(attributes, "level0_width"), number(attributes, "level0_height")
    return ForeignBag(
        features,
        coords,
        size_px=int(size),
        size_level0_px=(size * um / exact[0], size * um / exact[1]) if exact and um else (size_level0, size_level0),
        level0_um_per_px=exact,
        nominal_um_per_px=10 / level0,
        level0_magnification=round(level0),
        target_magnification=target,
        level0_size_px=(int(dimensions[0]), int(dimensions[1])) if dimensions[0] and dimensions[1] else None,
        overlap=int(number(attributes, "overlap") or 0),
        encoder=str(attributes.get("features.encoder", "")),
    )
