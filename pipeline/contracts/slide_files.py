"""Which files a slide consists of (standard library only), and where: some formats spread one slide over several.

References: https://openslide.org/formats/mirax/, https://openslide.org/formats/hamamatsu/,
https://openslide.org/formats/dicom/.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

_INDEX_BYTES = 1 << 20  # a Hamamatsu index is a few kB; never read a whole slide that bears its ending


def is_remote(path: str | Path) -> bool:
    """Is `path` an address such as ``s3://bucket/a.svs`` or ``zip://a.tif::b.zip``, and not a file of this machine?"""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+(://|::)", str(path)) is not None


def local_path(path: str) -> str:
    """`path` without ``file://``, which says nothing more than the path that follows it."""
    return re.sub(r"^(file|local)://(?=/)", "", path)


def files_of_slide(path: str | Path) -> list[Path]:
    """The file that the slide sheet names, and behind it, sorted by name, the others that belong to the slide.

    MIRAX (``.mrxs``) has a folder of the same stem. Hamamatsu's ``.vms`` and ``.vmu`` name their parts; where none of
    these exists, files of the same stem count. DICOM (``.dcm``) keeps the levels of a slide in one folder, so every
    ``.dcm`` beside it counts: give each DICOM slide a folder of its own, or a new slide changes its neighbours. Any
    other slide is one file, and no folder is read. A part that is not there is not listed.

    Raises
    ------
    OSError : a Hamamatsu index, or the folder of a DICOM file, that cannot be read
    """
    path = Path(path)
    ending = path.suffix.lower()
    if ending == ".mrxs":
        folder = path.with_suffix("")
        parts = list(folder.iterdir()) if folder.is_dir() else []
    elif ending in (".vms", ".vmu"):
        parts = _named_in(path) or [other for other in path.parent.iterdir() if other.stem == path.stem]
    elif ending == ".dcm":
        parts = [other for other in path.parent.iterdir() if other.suffix.lower() == ".dcm"]
    else:
        return [path]
    return [path, *sorted(part for part in parts if part.name != path.name and part.is_file())]


def _named_in(index: Path) -> list[Path]:
    """Files beside `index` that are the value of one of its ``key = value`` lines."""
    with open(index, "rb") as handle:
        lines = handle.read(_INDEX_BYTES).splitlines()
    values = {line.partition(b"=")[2].strip() for line in lines}
    parts = [index.with_name(os.fsdecode(value)) for value in values if _is_name(value)]
    return [part for part in parts if part.is_file()]


def _is_name(value: bytes) -> bool:
    return value not in (b"", b".", b"..") and not set(value) & set(b"/\\\0") and len(value) < 256
