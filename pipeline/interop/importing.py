"""Bring feature files of another tool into ours: resolution checked, tiles laid on cells, provenance recorded.

The folder that an import writes holds ``{mag}x/{slide_id}.h5`` (our feature files), ``index.tsv`` and `TABLE`, a row
per slide and magnification with what became of it. The configuration names it as the `path` of an encoder with
``weights: imported``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np

from pipeline.contracts.cohort import Slide, check_id
from pipeline.contracts.encoders import IMPORTED
from pipeline.contracts.errors import InputError, SlideError
from pipeline.contracts.features import Bag, BagRecord, BagSource, read_summary, write_bag, write_index
from pipeline.contracts.files import bytes_digest, digest_of, write_table
from pipeline.contracts.revisions import REVISIONS
from pipeline.interop.foreign import ForeignBag
from pipeline.interop.lattice import TOLERANCE_PX, Lattice, find_lattice, parent_rows

TABLE = "import.tsv"  #: marks the folder as an import of ours
OK, REFUSED, ABSENT, EXCLUDED, UNKNOWN = "imported", "refused", "absent", "excluded", "not in the sheet"
NOMINAL = "nominal magnification"


@dataclass(frozen=True)
class ImportParams:
    """How an import is done.

    `encoder` becomes the folder's and the bags' encoder, `tool` who made the files. A slide whose tiles are more than
    the share `tolerance` off the um/px that the magnification asks for is refused. `off_lattice` is as in
    `find_lattice`. `dtype` is that of the stored features.
    """

    encoder: str
    tool: str
    tolerance: float = 0.05
    off_lattice: str = "refuse"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_id(self.encoder, "--encoder", "encoder")
        if not 0 < self.tolerance <= 0.5:
            raise InputError("--tolerance", f"{self.tolerance} is not above 0 and at most 0.5.", "0.05 means 5 %.")


@dataclass(frozen=True)
class ImportRow:
    """What became of one file. `um_per_px` is what its tiles have; `source` where the slide's um/px came from."""

    slide_id: str
    case_id: str
    magnification: str
    status: str
    reason: str = ""
    n_tiles: int = 0
    um_per_px: float | None = None
    source: str = ""
    file: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class Scale:
    """um/px of a slide at level 0 (x, y), where it came from, and the slide's size where it is known."""

    um_per_px: tuple[float, float]
    source: str
    size_px: tuple[int, int] | None = None


def import_bags(
    found: Mapping[float, Mapping[str, Path]],
    read: Callable[[Path], ForeignBag],
    slides: Sequence[Slide] | None,
    folder: Path,
    params: ImportParams,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
) -> list[ImportRow]:
    """Import files by magnification and slide name.

    Parameters
    ----------
    found : files by magnification, finest first, and name
    read : reads one of them; raises SlideError for a file that cannot be used
    slides : the slide sheet, whose ids, um/px and files are used; None where there is none
    folder : where the import is written

    Raises
    ------
    InputError : `folder` holds files that no import wrote (unless `overwrite`), or names that are no ids
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / TABLE).exists() and not overwrite:
        raise InputError(
            f"--out {folder}", f"holds files and no {TABLE}: it is not an import of ours.",
            "name a new folder, or say --overwrite.",
        )  # fmt: skip
    known = _by_name(slides, {name for files in found.values() for name in files})
    rows: list[ImportRow] = []
    for number, (slide, name) in enumerate(known, start=1):
        files = {magnification: paths[name] for magnification, paths in found.items() if name in paths}
        made = _import_slide(slide, files, found, read, folder, params)
        rows += made
        said = ", ".join(f"{row.magnification}x {row.status}{f' ({row.reason})' if row.reason else ''}" for row in made)
        say(f"{number} of {len(known)}: {slide.slide_id} {said}")
    listed = {name for _, name in known}
    for magnification, files in found.items():
        rows += [
            ImportRow(
                name, "", f"{magnification:g}", UNKNOWN, "no row of the slide sheet has this name", file=str(path)
            )
            for name, path in files.items()
            if name not in listed
        ]
    _write_lists(rows, folder)
    return rows


def _by_name(slides: Sequence[Slide] | None, names: set[str]) -> list[tuple[Slide, str]]:
    """Each slide with the name of its feature files: its id, or its file's stem where that tells it apart."""
    if slides is None:
        return [(Slide(check_id(name, "the feature files", "slide"), "", ""), name) for name in sorted(names)]
    stems = [Path(slide.path).stem for slide in slides]
    return [
        (slide, stem if slide.slide_id not in names and stems.count(stem) == 1 else slide.slide_id)
        for slide, stem in zip(slides, stems, strict=True)
    ]


@dataclass(frozen=True)
class _Accepted:
    """A checked bag, ready to be written once all of its slide are known."""

    bag: ForeignBag
    source: BagSource
    lattice: Lattice


def _import_slide(
    slide: Slide,
    files: Mapping[float, Path],
    asked: Iterable[float],
    read: Callable[[Path], ForeignBag],
    folder: Path,
    params: ImportParams,
) -> list[ImportRow]:
    """Check all files of a slide, then write those that pass; a row per magnification, finest first."""
    accepted: dict[float, _Accepted] = {}
    rows, digests = [], []
    for magnification in sorted(asked, reverse=True):
        row = ImportRow(slide.slide_id, slide.case_id, f"{magnification:g}", ABSENT, "no such file")
        if slide.exclude:
            row = replace(row, status=EXCLUDED, reason=slide.exclude)
        elif magnification in files:
            path = files[magnification]
            row = replace(row, status=REFUSED, reason="", file=str(path), sha256=bytes_digest(path))
            try:
                row, accepted[magnification] = _check(row, slide, magnification, read(path), params)
                digests.append(row.sha256)
            except SlideError as error:
                row = replace(row, reason=str(error))
        rows.append(row)
    sources = [asdict(taken.source) for taken in accepted.values()]
    digest = digest_of("import", REVISIONS["import"], asdict(params), sources, digests)
    for magnification, taken in accepted.items():
        source = replace(taken.source, digest=digest, slide_magnifications=tuple(map(float, accepted)))
        coarser = max((m for m in accepted if m < magnification), default=None)
        bag = _bag(taken, source, accepted[coarser].lattice if coarser else None, coarser)
        write_bag(_path(folder, slide.slide_id, magnification), bag, params.dtype)
    return rows


def _path(folder: Path, slide_id: str, magnification: float) -> Path:
    return folder / f"{magnification:g}x" / f"{slide_id}.h5"


def _check(
    row: ImportRow, slide: Slide, magnification: float, bag: ForeignBag, params: ImportParams
) -> tuple[ImportRow, _Accepted]:
    """Raises SlideError with the reason to refuse a bag."""
    if bag.target_magnification is not None and abs(bag.target_magnification / magnification - 1) > 1e-6:
        raise SlideError(f"its attributes say {bag.target_magnification:g}x, its folder {magnification:g}x")
    scale, asked = slide_scale(slide, bag), 10 / magnification
    x, y = (side * um / bag.size_px for side, um in zip(bag.size_level0_px, scale.um_per_px, strict=True))
    worst = max((x, y), key=lambda value: abs(value / asked - 1))
    if abs(worst / asked - 1) > params.tolerance:
        raise SlideError(
            f"its tiles have {x:.4g} x {y:.4g} um/px (from the {scale.source}), {magnification:g}x asks for {asked:g}:"
            f" more than {params.tolerance:.3g} of it off (--tolerance)"
        )
    lattice = _lattice(bag, params)
    source = BagSource(
        slide_id=slide.slide_id,
        encoder=params.encoder,
        encoder_name=f"{bag.encoder or params.encoder} (imported from {params.tool})",
        weights=IMPORTED,
        weights_digest="",
        magnification=float(magnification),
        size_px=bag.size_px,
        size_level0_px=bag.size_level0_px,
        um_per_px=asked,
        achieved_um_per_px=(x, y),
        level0_um_per_px=scale.um_per_px,
        level0_magnification=bag.level0_magnification or round(10 / scale.um_per_px[0]),
        level0_size_px=scale.size_px or bag.level0_size_px or (0, 0),
        stain="unknown",
        savetodir=f"features/{params.encoder}/{magnification:g}x",
        revision=REVISIONS["import"],
        digest="",
    )
    remarks = []
    if scale.source == NOMINAL:
        remarks.append(f"um/px is nominal ({bag.level0_magnification}x on the objective), not measured")
    if lattice.offset_px > TOLERANCE_PX:
        remarks.append(f"nearest cells, up to {lattice.offset_px:.0f} level-0 px away")
    row = replace(
        row, status=OK, reason="; ".join(remarks), n_tiles=len(bag.features), um_per_px=worst, source=scale.source
    )
    return row, _Accepted(bag, source, lattice)


def _lattice(bag: ForeignBag, params: ImportParams) -> Lattice:
    try:
        return find_lattice(bag.coords, bag.size_level0_px, params.off_lattice)
    except SlideError as error:
        if bag.overlap:
            raise SlideError(f"its tiles overlap by {bag.overlap} px, and ours do not ({error})") from error
        raise


def slide_scale(slide: Slide, bag: ForeignBag) -> Scale:
    """um/px of a slide: by the sheet, else its file, else the exact value of the feature file, else the nominal one.

    Raises SlideError where nothing says it.
    """
    reason = "no slide sheet was given"
    if slide.um_per_px is not None:
        return Scale((slide.um_per_px, slide.um_per_px), "slide sheet")
    if slide.path:
        from pipeline.slide import open_slide  # the slide libraries, only where a slide is read

        try:
            with open_slide(slide.path) as reader:
                return Scale(reader.um_per_px, "slide file", reader.dimensions)
        except SlideError as error:
            reason = str(error)
    if bag.level0_um_per_px is not None:
        return Scale(bag.level0_um_per_px, "feature file")
    if bag.nominal_um_per_px is not None:
        return Scale((bag.nominal_um_per_px, bag.nominal_um_per_px), NOMINAL)
    raise SlideError(
        f"nothing says its um/px ({reason}). Fix: --slides with a slide sheet whose files are there, or with um_per_px"
    )


def _bag(taken: _Accepted, source: BagSource, coarse: Lattice | None, coarser: float | None) -> Bag:
    ratio = source.magnification / coarser if coarser else 1.0
    nests = abs(ratio - round(ratio)) < 1e-9
    return Bag(
        features=taken.bag.features,
        coords=taken.bag.coords,
        cell=taken.lattice.cell,
        parent=parent_rows(taken.lattice, coarse if nests else None, round(ratio)),
        tissue_fraction=np.full(len(taken.bag.features), np.nan, np.float32),
        failed_cells=np.zeros((0, 2), np.int32),
        source=source,
    )


def _write_lists(rows: Sequence[ImportRow], folder: Path) -> None:
    """The table of what became of each file, then the index of the bags."""
    records = []
    for row in (row for row in rows if row.status == OK):
        path = _path(folder, row.slide_id, float(row.magnification))
        source = read_summary(path).source
        records.append(
            BagRecord(
                row.slide_id, row.case_id, source.magnification, path, row.n_tiles, source.um_per_px, source.digest,
                source.weights,
            )
        )  # fmt: skip
    ordered = sorted(rows, key=lambda row: (row.slide_id, -float(row.magnification)))
    write_table(folder / TABLE, [field.name for field in fields(ImportRow)], map(asdict, ordered))
    write_index(folder / "index.tsv", records)
