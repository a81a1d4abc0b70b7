"""Write the whole simulated cohort: every file whole or absent, nothing touched when it is already there."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np

from pipeline.contracts.errors import FormatError
from pipeline.contracts.files import bytes_digest, digest_of, read_json, whole_file, write_json
from workflow.simulation.cases import (
    SimulatedCase,
    SimulatedSlide,
    SimulationParams,
    list_slides,
    simulate_cases,
)
from workflow.simulation.counts import simulate_counts, table_bytes
from workflow.simulation.pyramids import pyramid_bytes
from workflow.simulation.render import render_slide
from workflow.simulation.stains import BASES
from workflow.simulation.symbols import SYMBOLS_PATH, read_symbols, signature_flags

logger = logging.getLogger(__name__)

KIND, FORMAT_VERSION = "histoweave simulated cohort", 1
REVISION = 2  #: raise when the simulation's code changes what it draws
RECORD = "simulation.json"
TRUNCATED_AT = 0.6  #: share of its bytes that the damaged slide keeps
NOTICE = """SIMULATED DATA

Everything in this folder was drawn by `python -m workflow.simulation`. No file comes from a patient, and no
result computed from it says anything about medicine. truth_*.tsv hold the hidden factors; the workflow
never reads them.
"""


def simulate_cohort(out: str | Path, params: SimulationParams, slide_root: str = "") -> bool:
    """Write ``slides.tsv``, ``cases.tsv``, ``rna.tsv.gz``, ``slides/*.tif``, the truth and a notice below
    `out`.

    Parameters
    ----------
    slide_root : what slide paths in the sheet begin with, e.g. ``data/slides``; empty for `out` itself

    Returns
    -------
    False when a cohort of the same parameters was found whole (its record lists every file's SHA-256): then
    no file is opened for writing. True when files were written; those whose bytes were right already keep
    their times.
    """
    out = Path(out)
    root = slide_root or (out / "slides").as_posix()
    wanted = digest_of(REVISION, asdict(params), root, bytes_digest(SYMBOLS_PATH))
    if _is_complete(out, wanted):
        return False
    (out / RECORD).unlink(missing_ok=True)
    files = {}
    for name, content in _draw(params, root):
        _put(out / name, content)
        files[name] = bytes_digest(out / name)
    write_json(out / RECORD, KIND, FORMAT_VERSION, {"digest": wanted, "params": asdict(params), "files": files})
    return True


def _is_complete(out: Path, digest: str) -> bool:
    try:
        record = read_json(out / RECORD, KIND, FORMAT_VERSION)
    except (FileNotFoundError, FormatError):
        return False
    return record["digest"] == digest and all(
        (out / name).is_file() and bytes_digest(out / name) == known for name, known in record["files"].items()
    )


def _put(path: Path, content: bytes) -> None:
    if path.is_file() and path.read_bytes() == content:
        return
    with whole_file(path) as part:
        part.write_bytes(content)


def _draw(params: SimulationParams, root: str) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of every file, slides one at a time."""
    cases = simulate_cases(params)
    slides = list_slides(cases)
    yield "SIMULATED.txt", NOTICE.encode()
    yield "cases.tsv", _table(_case_rows(cases))
    yield "slides.tsv", _table([_slide_row(slide, root) for slide in slides])
    yield "rna.tsv.gz", _expression(params, cases)
    yield (
        "truth_cases.tsv",
        _table([{"case_id": c.case_id, "tumour": round(c.tumour, 6), "tme": round(c.tme, 6)} for c in cases]),
    )
    yield "truth_slides.tsv", _table([_stain_row(slide, cases) for slide in slides])
    by_id = {case.case_id: case for case in cases}
    for number, slide in enumerate(slides):
        logger.info("slide %d of %d: %s (%s)", number + 1, len(slides), slide.slide_id, slide.kind)
        yield f"slides/{slide.slide_id}.tif", slide_bytes(slide, by_id[slide.case_id], params, number)


def slide_bytes(slide: SimulatedSlide, case: SimulatedCase, params: SimulationParams, number: int) -> bytes:
    """Render and encode slide `number` of the cohort. Sides differ between slides and are never equal."""
    cv2.setNumThreads(1)
    rng = np.random.default_rng([params.seed, 3, number])
    side = params.size_px if slide.um_per_px == 0.5 else round(params.size_px * 1.15)
    size = int(side * rng.uniform(1.02, 1.12)), int(side * rng.uniform(0.88, 0.98))
    image = render_slide(slide, case, size, int(rng.integers(2**31)))
    tagged = None if slide.kind == "untagged" else slide.um_per_px
    downsamples = (2, 4) if number % 2 else (4,)
    content = pyramid_bytes(image, tagged, downsamples, f"SIMULATED by histoweave, not a patient: {slide.slide_id}")
    return content[: int(len(content) * TRUNCATED_AT)] if slide.kind == "truncated" else content


def _expression(params: SimulationParams, cases: list[SimulatedCase]) -> bytes:
    symbols = read_symbols(params.genes)
    is_tumour, is_tme = signature_flags(symbols)
    tumour = np.array([case.tumour for case in cases] + [0.0])
    tme = np.array([case.tme for case in cases] + [0.0])
    counts = simulate_counts(tumour, tme, is_tumour, is_tme, params.seed)
    samples = [case.case_id for case in cases] + [f"SIM-{len(cases) + 1:03d}"]  # the last has no clinical row
    return table_bytes(symbols, samples, counts)


def _case_rows(cases: list[SimulatedCase]) -> list[dict[str, object]]:
    hidden = {"tumour", "tme"}
    return [{"cohort": "simulated", **{k: v for k, v in asdict(case).items() if k not in hidden}} for case in cases]


def _slide_row(slide: SimulatedSlide, root: str) -> dict[str, object]:
    return {
        "slide_id": slide.slide_id,
        "case_id": slide.case_id,
        "path": f"{root}/{slide.slide_id}.tif",
        "um_per_px": slide.um_per_px if slide.kind == "untagged" else "",
        "exclude": "out of focus (simulated)" if slide.kind == "blurred" else "",
    }


def _stain_row(slide: SimulatedSlide, cases: list[SimulatedCase]) -> dict[str, object]:
    site = next(case.site for case in cases if case.case_id == slide.case_id)
    row: dict[str, object] = {"slide_id": slide.slide_id, "kind": slide.kind, "um_per_px": slide.um_per_px}
    for name, vector in zip("he", BASES[site].matrix().round(6).tolist(), strict=True):
        row |= {f"{name}_{channel}": value for channel, value in zip("rgb", vector, strict=True)}
    return row


def _table(rows: list[dict[str, object]]) -> bytes:
    text = io.StringIO()
    columns = list(rows[0])
    if "case_id" in columns:
        columns.sort(key=lambda name: name not in ("slide_id", "case_id"))
    text.write("\t".join(columns) + "\n")
    for row in rows:
        text.write("\t".join(v if isinstance(v, str) else json.dumps(v) for v in (row[c] for c in columns)) + "\n")
    return text.getvalue().encode()
