"""From slide files to feature bags with the real stages and an encoder without torch.

Run as a script it does one stage after the other on what a folder lists:
``python -m tests.bad_slides.stages FOLDER [STAGE]``; see `lay_out`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.batches import Stage, run_batch
from pipeline.check import CheckStage
from pipeline.contracts import layout
from pipeline.contracts.batches import OK, BatchRow, read_batch
from pipeline.contracts.cohort import Slide
from pipeline.contracts.encoders import write_facts
from pipeline.guard import Limits, Watch, guarded
from pipeline.stain import StainParams, StainStage
from pipeline.tiling import TilingParams, TilingStage
from pipeline.tissue import TissueParams, TissueStage
from tests.bad_slides.sound import TILE
from tests.unit.pipeline.embedding_cohort import FACTS, stub_stage

LIMITS = Limits(seconds=20, memory_bytes=2 * 2**30)
STAGES = ("check", "tissue", "tiles", "stain", "features")


def lay_out(folder: Path, slides: Sequence[Slide]) -> Path:
    """Write what the stages need; results go to ``folder/results``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_facts(layout.encoder_facts(folder / "results", "tiny"), FACTS)
    (folder / "slides.json").write_text(json.dumps([vars(slide) for slide in slides]))
    return folder


def index(folder: Path, stage: str) -> dict[str, BatchRow]:
    return read_batch(folder / f"{stage}.tsv")


def run(
    folder: Path, stages: Sequence[str] = STAGES, pause: float = 0, guard: bool = True, stain: str = "macenko"
) -> None:
    """Bring the slides of a folder through `stages`; `pause` seconds before each batch of tiles is encoded."""
    slides = [Slide(**row) for row in json.loads((folder / "slides.json").read_text())]
    for name in stages:
        print(f"stage {name}", flush=True)
        before = STAGES[STAGES.index(name) - 1]
        rows = {s.slide_id: BatchRow(s.slide_id, s.case_id, OK, "sheet") for s in slides}
        upstream = rows if name == "check" else index(folder, before)
        work = _work(folder, name, slides, upstream, pause, stain)
        guarded(work, LIMITS) if guard else work(Watch({}, alone=False))


def _work(
    folder: Path, name: str, slides: Sequence[Slide], upstream: dict[str, BatchRow], pause: float, stain: str
) -> Callable[[Watch], None]:
    def work(watch: Watch) -> None:
        stage = watch.stage(_stage(folder / "results", name, slides, pause, stain))
        run_batch(stage, upstream, folder / f"{name}.tsv", watch.threads(2 if name == "check" else 1))

    return work


def _stage(results: Path, name: str, slides: Sequence[Slide], pause: float, stain: str) -> Stage:
    if name == "check":
        return CheckStage({slide.slide_id: slide for slide in slides}, results)
    if name == "tissue":
        return TissueStage(results, TissueParams(um_per_px=2.0))
    if name == "tiles":
        return TilingStage(results, TilingParams(size_px=TILE, magnifications=(20, 10)))
    if name == "stain":
        return StainStage(results, StainParams(method=stain, pixels=2000, fields=4))
    return stub_stage(results, stain, threads=1, seconds=pause, max_failed_fraction=0.25)


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2:] or STAGES)
