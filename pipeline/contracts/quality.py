"""quality/{slide_id}.json: what the list of slide pages says of one slide (standard library only)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.contracts.errors import FormatError
from pipeline.contracts.files import read_json, write_json

KIND = "slide quality"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class SlideQuality:
    """One row of the list; None where it is not known. Written after the slide's page.

    `um_per_px` is the mean of both axes at level 0; `tiles` maps a magnification (``20x``) to its tiles; `excluded` and
    `unreadable` count cells of all magnifications; `angle` is between the stains, degrees; `seconds` the work on the
    slide in all stages; `has_thumbnail` says whether a picture lies beside the page.
    """

    slide_id: str
    case_id: str
    status: str
    stage: str
    reason: str
    um_per_px: float | None
    tissue_mm2: float | None
    ink_mm2: float | None
    tiles: dict[str, int]
    excluded: int
    unreadable: int
    stain: str
    angle: float | None
    seconds: float
    has_thumbnail: bool
    digest: str


def write_quality(path: str | Path, quality: SlideQuality) -> None:
    write_json(path, KIND, FORMAT_VERSION, asdict(quality))


def read_quality(path: str | Path) -> SlideQuality:
    """Raises FileNotFoundError for a slide without a page, FormatError for a damaged file."""
    body = read_json(path, KIND, FORMAT_VERSION)
    try:
        return SlideQuality(**{key: body[key] for key in SlideQuality.__dataclass_fields__})
    except KeyError as error:
        raise FormatError(f"{path}: {error} is missing. Fix: delete it and rerun describe_slides.") from error
