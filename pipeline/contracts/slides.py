"""slides/{slide_id}.json: what is known of a slide file, or why it cannot be used."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.contracts.errors import FormatError, SlideError
from pipeline.contracts.files import read_json, write_json
from pipeline.contracts.revisions import REVISIONS

KIND = "slide facts"
FORMAT_VERSION = 2


@dataclass(frozen=True)
class SlideFacts:
    """A usable slide file.

    `dimensions` are (width, height) in level-0 pixels; `levels` are (width, height, downsample x, downsample
    y) from the finest. `um_per_px` is (x, y) at level 0 and `um_per_px_source` where it came from: sheet,
    vendor, TIFF tags or text. `um_per_px_override` is the sheet's value or None; with it the file opens as it
    was checked. `bounds` are (x, y, width, height) of the scanned area in level-0 pixels. `background` is the
    colour (R, G, B) put where the file holds no pixels. `warnings` are remarks that do not stop
    the slide. `backend` names what decodes the pixels (jpeg-tiles: this code, from the file's own tiles), and
    `backend_reason` says why it is not that one.
    """

    slide_id: str
    path: str
    identity: dict[str, Any]
    vendor: str
    backend: str
    dimensions: tuple[int, int]
    levels: tuple[tuple[int, int, float, float], ...]
    um_per_px: tuple[float, float]
    um_per_px_source: str
    um_per_px_override: float | None
    objective: float | None
    bounds: tuple[int, int, int, int]
    background: tuple[int, int, int]
    warnings: tuple[str, ...] = ()
    backend_reason: str = ""
    digest: str = ""


def write_slide_facts(path: str | Path, facts: SlideFacts) -> None:
    write_json(path, KIND, FORMAT_VERSION, {"usable": True, "revision": REVISIONS["check"], **asdict(facts)})


def write_unusable(path: str | Path, slide_id: str, slide_path: str, reason: str, digest: str) -> None:
    """Record why a slide cannot be used, in place of any earlier facts."""
    content = {"usable": False, "slide_id": slide_id, "path": slide_path, "reason": reason, "digest": digest}
    write_json(path, KIND, FORMAT_VERSION, {"revision": REVISIONS["check"], **content})


def read_slide_facts(path: str | Path) -> SlideFacts:
    """Read a slide's facts.

    Raises
    ------
    FileNotFoundError : the slide has not been checked
    FormatError : damaged, or of an unknown format version
    SlideError : the check found the slide unusable; the text is its reason
    """
    body = read_json(path, KIND, FORMAT_VERSION)
    try:
        if not body["usable"]:
            raise SlideError(body["reason"])
        return SlideFacts(
            slide_id=body["slide_id"],
            path=body["path"],
            identity=body["identity"],
            vendor=body["vendor"],
            backend=body["backend"],
            dimensions=(int(body["dimensions"][0]), int(body["dimensions"][1])),
            levels=tuple((int(w), int(h), float(dx), float(dy)) for w, h, dx, dy in body["levels"]),
            um_per_px=(float(body["um_per_px"][0]), float(body["um_per_px"][1])),
            um_per_px_source=body["um_per_px_source"],
            um_per_px_override=body["um_per_px_override"],
            objective=body["objective"],
            bounds=_four(body["bounds"]),
            background=_three(body["background"]),
            warnings=tuple(body["warnings"]),
            backend_reason=body["backend_reason"],
            digest=body["digest"],
        )
    except (KeyError, TypeError, IndexError) as error:
        raise FormatError(f"{path}: field {error} is missing or wrong. Fix: delete it and rerun the check.") from error


def _four(values: list[int]) -> tuple[int, int, int, int]:
    a, b, c, d = values
    return int(a), int(b), int(c), int(d)


def _three(values: list[int]) -> tuple[int, int, int]:
    a, b, c = values
    return int(a), int(b), int(c)
