"""features/{encoder}/_timings/{slide_id}.json: where the time of embedding a slide went (standard library only).

Unlike every other artefact it differs from run to run, and nothing is skipped or made again because of it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.contracts.errors import FormatError
from pipeline.contracts.files import read_json, write_json

KIND = "slide timings"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class SlideTimings:
    """Seconds of the last pass over a slide for one encoder.

    `read` and `normalise` add up over all reader threads and serve every encoder of the pass; where the device
    normalises the stain, that time is part of `encode`. `encode` and `write` are this encoder's alone; `encode` is what
    the host waits for. All of them overlap, so `wall`, from the first batch to the finished files, is less than their
    sum. `tiles` are those of this pass, which may lack magnifications that were finished before. `device` is cpu or the
    name of the GPU.
    """

    slide_id: str
    encoder: str
    read: float
    normalise: float
    encode: float
    write: float
    wall: float
    tiles: int
    device: str


def write_timings(path: str | Path, timings: SlideTimings) -> None:
    seconds = {key: round(value, 4) for key, value in asdict(timings).items() if isinstance(value, float)}
    write_json(path, KIND, FORMAT_VERSION, {**asdict(timings), **seconds})


def read_timings(path: str | Path) -> SlideTimings:
    """Raises FileNotFoundError for a slide that this encoder has not embedded, FormatError for a damaged file."""
    body = read_json(path, KIND, FORMAT_VERSION)
    try:
        return SlideTimings(**{key: body[key] for key in SlideTimings.__dataclass_fields__})
    except KeyError as error:
        raise FormatError(f"{path}: {error} is missing. Fix: delete it.") from error
