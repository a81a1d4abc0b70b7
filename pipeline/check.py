"""Can this slide be used? Its facts on record, or a reason why not, before any compute is spent on it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tifffile

from pipeline.contracts import layout
from pipeline.contracts.batches import BatchRow
from pipeline.contracts.cohort import Slide
from pipeline.contracts.errors import FormatError, SlideError
from pipeline.contracts.files import digest_of, file_identity
from pipeline.contracts.revisions import REVISIONS
from pipeline.contracts.slide_files import files_of_slide
from pipeline.contracts.slides import SlideFacts, read_slide_facts, write_slide_facts, write_unusable
from pipeline.slide import SlideReader, open_slide

_PROBE_PX = 64  # side of the regions that are read on trial


def check_slide(slide: Slide, digest: str = "") -> SlideFacts:
    """Open a slide, look for missing bytes, read its corners and centre on every level.

    Raises
    ------
    SlideError : missing, empty, truncated or unreadable file, or no sane um per pixel; names the path and the
        fix
    """
    missing = missing_bytes(slide.path)
    if missing:
        raise SlideError(
            f"{slide.path}: the file is truncated: {missing}. Fix: copy it again from its source, or exclude the"
            " slide in slides.tsv."
        )
    with open_slide(slide.path, slide.um_per_px) as reader:
        probe(reader)
        return SlideFacts(
            slide_id=slide.slide_id,
            path=slide.path,
            identity=slide_identity(slide.path),
            vendor=reader.vendor,
            backend=reader.backend,
            backend_reason=reader.backend_reason,
            dimensions=reader.dimensions,
            levels=tuple((v.width, v.height, v.downsample_x, v.downsample_y) for v in reader.levels),
            um_per_px=reader.um_per_px,
            um_per_px_source=reader.um_per_px_source,
            um_per_px_override=slide.um_per_px,
            objective=reader.objective,
            bounds=reader.bounds,
            background=reader.background,
            warnings=reader.warnings,
            digest=digest,
        )


def missing_bytes(path: str | Path) -> str:
    """What a TIFF refers to beyond its own end, or an empty string; other formats are left to the trial
    reading.

    A half-copied TIFF opens and reads well until the first tile that is not there, so every tile's place is
    compared with the size of the file.
    """
    path = Path(path)
    if not path.is_file() or path.stat().st_size == 0:
        return ""
    size = path.stat().st_size
    try:
        with tifffile.TiffFile(path) as tiff:
            pages = list(tiff.pages)
            beyond = _next_directory(tiff)
            if not pages or beyond > size:
                return f"image {len(pages)} is described at byte {beyond}, the file has {size}"
            for index, page in enumerate(pages):
                for part in (page, *(page.pages or ())):
                    ends = zip(part.dataoffsets, part.databytecounts, strict=False)
                    last = max((offset + count for offset, count in ends if count), default=0)
                    if last > size:
                        return f"image {index} needs {last} bytes, the file has {size}"
    except Exception as error:  # whatever a damaged directory makes the parser raise
        return f"its directory cannot be read ({error})" if _looks_like_tiff(path) else ""
    return ""


def _next_directory(tiff: tifffile.TiffFile) -> int:
    """Where the last directory that could be read says that the next one lies; 0 at the end of the chain."""
    handle = tiff.filehandle
    handle.seek(tiff.pages.next_page_offset or 0)
    pointer = handle.read(tiff.tiff.offsetsize)
    return int.from_bytes(pointer, "little" if tiff.byteorder == "<" else "big")


def _looks_like_tiff(path: Path) -> bool:
    with open(path, "rb") as handle:
        return handle.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def probe(reader: SlideReader) -> None:
    """Read the corners and the centre of every level. Raises SlideError where one cannot be decoded."""
    for index, level in enumerate(reader.levels):
        right, bottom = max(level.width - _PROBE_PX, 0), max(level.height - _PROBE_PX, 0)
        for x, y in {(0, 0), (right, 0), (0, bottom), (right, bottom), (right // 2, bottom // 2)}:
            reader.read(index, x, y, min(_PROBE_PX, level.width), min(_PROBE_PX, level.height))


def slide_identity(path: str | Path) -> dict[str, Any]:
    """Identity of a slide's file, with name, size and time of each other file that belongs to the slide.

    Raises OSError for a file that is not there.
    """
    file, *parts = files_of_slide(path)
    identity = file_identity(file)
    if parts:
        identity["parts"] = [[part.name, part.stat().st_size, part.stat().st_mtime_ns] for part in parts]
    return identity


class CheckStage:
    """Stage `check`: a row of the slide sheet -> results/slides/{id}.json."""

    name = "check"

    def __init__(self, slides: Mapping[str, Slide], results: str | Path) -> None:
        self._slides = slides
        self._results = Path(results)

    def digest(self, upstream: BatchRow) -> str:
        """Digest of the file's identity and the sheet's um/px. Raises SlideError for a file that is not there."""
        slide = self._slides[upstream.slide_id]
        try:
            identity = slide_identity(slide.path)
        except OSError as error:
            # The reason must not lie beside facts of a file that has gone.
            self._path(slide.slide_id).unlink(missing_ok=True)
            raise SlideError(
                f"{slide.path}: {error.strerror or error}. Fix: correct its path in slides.tsv, or exclude the slide."
            ) from error
        return digest_of(self.name, REVISIONS[self.name], identity, slide.um_per_px)

    def find(self, slide_id: str, digest: str) -> str | None:
        try:
            facts = read_slide_facts(self._path(slide_id))
        except (FileNotFoundError, FormatError, SlideError):
            return None  # an unusable slide is tried again: its disk may have been at fault
        if facts.digest != digest or facts.path != self._slides[slide_id].path:
            return None
        return "; ".join(facts.warnings)

    def make(self, slide_id: str, digest: str) -> str:
        slide = self._slides[slide_id]
        try:
            facts = check_slide(slide, digest)
        except SlideError as error:
            write_unusable(self._path(slide_id), slide_id, slide.path, str(error), digest)
            raise
        write_slide_facts(self._path(slide_id), facts)
        return "; ".join(facts.warnings)

    def _path(self, slide_id: str) -> Path:
        return Path(layout.slide_facts(self._results, slide_id))
