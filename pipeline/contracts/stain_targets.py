"""stain/_target/*.json: the stains that tiles are painted in, and where they came from (standard library only)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.contracts.errors import FormatError
from pipeline.contracts.files import read_json, write_json
from pipeline.contracts.stains import StainColours, read_colours

KIND = "stain-target"
FORMAT_VERSION = 1
IMAGES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class StainTarget:
    """The stains that tiles are painted in.

    Attributes
    ----------
    asked : ``stain.target`` of the configuration
    source : as of `target_kind`
    colours : what tiles are painted in
    slides : whose stains they are or are the median of, sorted; empty for files
    left_out : slides that were fitted and still take no part, with the reason
    basis : digest of how fits were made; a cohort's median is made anew when that changes
    """

    asked: str
    source: str
    colours: StainColours
    slides: tuple[str, ...]
    left_out: dict[str, str]
    basis: str


def target_kind(target: str, slide_ids: Collection[str]) -> str:
    """What ``stain.target`` names: builtin, cohort, slide (of the sheet), stains (JSON), image, or slide_file."""
    if target in ("builtin", "cohort"):
        return target
    if target in slide_ids:
        return "slide"
    suffix = Path(target).suffix.lower()
    return "stains" if suffix == ".json" else "image" if suffix in IMAGES else "slide_file"


def write_target(path: str | Path, target: StainTarget) -> None:
    write_json(path, KIND, FORMAT_VERSION, asdict(target))


def read_target_file(path: str | Path) -> StainTarget:
    """Raises FileNotFoundError, or FormatError for damage and unknown format versions."""
    body = read_json(path, KIND, FORMAT_VERSION)
    try:
        return StainTarget(
            asked=body["asked"],
            source=body["source"],
            colours=read_colours(body["colours"]),
            slides=tuple(body["slides"]),
            left_out=dict(body["left_out"]),
            basis=body["basis"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{path}: damaged ({error}). Fix: delete it and rerun.") from error
