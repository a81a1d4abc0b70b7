"""Can this slide be used? Its facts on record, or a reason why not, before any compute is spent on it."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.contracts import layout
from pipeline.contracts.batches import BatchRow
from pipeline.contracts.cohort import Slide
from pipeline.contracts.errors import FormatError, SlideError
from pipeline.contracts.files import digest_of, file_identity
from pipeline.contracts.revisions import REVISIONS
from pipeline.contracts.slide_files import files_of_slide, is_remote
from pipeline.contracts.slides import SlideFacts, read_slide_facts, write_slide_facts, write_unusable
from pipeline.remote_files import remote_file, remote_identity
from pipeline.slide import SlideReader, open_slide
from pipeline.tiff_directories import Damaged, check_image, read_directories

MAX_AREA_MM2 = 40_000.0  #: 20 x 20 cm: whole-mount sections are smaller
_PLAIN_VENDORS = ("aperio", "generic-tiff")  # whose images are the slide itself, not parts to be joined
_PROBE_PX = 64  # side of the regions that are read on trial


def check_slide(slide: Slide, digest: str = "") -> SlideFacts:
    """Open a slide, look for missing bytes, read its corners and centre on every level.

    Raises
    ------
    SlideError : missing, empty, truncated or unreadable file, or no sane um per pixel; names the path and the
        fix
    """
    images = check_directories(slide.path)
    with open_slide(slide.path, slide.um_per_px) as reader:
        _check_extent(reader)
        _check_finest(reader, images)
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


def check_directories(path: str | Path) -> list[tuple[int, int]]:
    """Look through the directories of a TIFF; nothing is asked of other formats and of files that are not there.

    A half-copied TIFF opens and reads well until the first tile that is not there, so every tile's place is compared
    with the size of the file. Returns (width, height) of its images.

    Raises
    ------
    SlideError : a directory that is cut off or absurd, or an image some of whose bytes are missing
    """
    try:
        with _opened(path) as (handle, size):
            found = read_directories(handle, size)
            for directory in found:
                check_image(directory, size)
    except Damaged as damage:
        raise SlideError(
            f"{path}: the file is truncated or damaged: {damage}. Fix: copy it again from its source, or exclude the"
            " slide in slides.tsv."
        ) from None
    return [directory.size for directory in found]


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[BinaryIO, int]]:
    """A file and its size; an empty one where there is none, which `open_slide` tells better."""
    if is_remote(path):
        with remote_file(str(path)) as file:
            yield file.handle, file.size
    elif Path(path).is_file():
        with open(path, "rb") as handle:
            yield handle, os.fstat(handle.fileno()).st_size
    else:
        yield io.BytesIO(), 0


def _check_extent(reader: SlideReader) -> None:
    """Refuse what no glass slide can be: its thumbnails would not fit into memory either."""
    width, height = (side * um / 1000 for side, um in zip(reader.dimensions, reader.um_per_px, strict=True))
    if width * height > MAX_AREA_MM2:
        raise SlideError(
            f"{reader.path}: {width:.0f} x {height:.0f} mm is larger than any glass slide. Fix: copy the file again, or"
            " give the right um_per_px for this slide in slides.tsv."
        )


def _check_finest(reader: SlideReader, images: list[tuple[int, int]]) -> None:
    """Refuse a slide whose finest image is passed over: um per pixel would be that of another one."""
    width, height = reader.dimensions
    finer = [size for size in images if size[0] > width and size[1] > height]
    if finer and reader.vendor in _PLAIN_VENDORS:
        raise SlideError(
            f"{reader.path}: its image of {max(finer)[0]} x {max(finer)[1]} px cannot be read, only smaller ones."
            " Fix: copy the file again from its source, or convert it to a pyramidal TIFF."
        )


def probe(reader: SlideReader) -> None:
    """Read the corners and the centre of every level. Raises SlideError where one cannot be decoded."""
    for index, level in enumerate(reader.levels):
        right, bottom = max(level.width - _PROBE_PX, 0), max(level.height - _PROBE_PX, 0)
        for x, y in {(0, 0), (right, 0), (0, bottom), (right, bottom), (right // 2, bottom // 2)}:
            reader.read(index, x, y, min(_PROBE_PX, level.width), min(_PROBE_PX, level.height))


def slide_identity(path: str | Path) -> dict[str, Any]:
    """Identity of a slide's file, with name, size and time of each other file that belongs to the slide.

    Raises OSError for a file that is not there, SlideError for a remote one.
    """
    if is_remote(path):
        return remote_identity(str(path))
    file, *parts = files_of_slide(path)
    if not stat.S_ISREG(os.stat(file).st_mode):
        raise OSError(errno.EINVAL, "is a folder or device, not a file")
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
        except (OSError, SlideError) as error:
            # The reason must not lie beside facts of a file that has gone.
            self._path(slide.slide_id).unlink(missing_ok=True)
            if isinstance(error, SlideError):
                raise
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
        except MemoryError as error:
            reason = (
                f"{slide.path}: opening it takes more memory than any slide needs ({error}). Fix: copy the file again."
            )
            self.refuse(slide_id, reason, digest)
            raise SlideError(reason) from error
        except SlideError as error:
            self.refuse(slide_id, str(error), digest)
            raise
        write_slide_facts(self._path(slide_id), facts)
        return "; ".join(facts.warnings)

    def refuse(self, slide_id: str, reason: str, digest: str = "") -> None:
        """Record why a slide cannot be used, also one that took down the process that looked at it."""
        write_unusable(self._path(slide_id), slide_id, self._slides[slide_id].path, reason, digest)

    def _path(self, slide_id: str) -> Path:
        return Path(layout.slide_facts(self._results, slide_id))
