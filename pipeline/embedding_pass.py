"""One pass over slide after slide: reader threads, the encoders in the calling thread, a thread that writes.

Each slide is read once for all encoders that lack it. While its last batches are encoded and its files are written, the
next slide is already being looked up and read, so the device never waits between slides.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from typing import TYPE_CHECKING, Protocol

import numpy as np

from pipeline.batches import Lack, Made, caught
from pipeline.contracts import layout
from pipeline.contracts.errors import MachineError, SlideError
from pipeline.contracts.features import BagWriter, read_cells
from pipeline.contracts.slides import SlideFacts, read_slide_facts
from pipeline.contracts.stains import StainFit, read_stain
from pipeline.contracts.tiles import TileGrid, TileSet, read_tiles
from pipeline.contracts.timings import SlideTimings, write_timings
from pipeline.growing_bag import Cells, GrowingBag, carry_over
from pipeline.guard import UNWATCHED, Watch
from pipeline.prefetch import Prefetch
from pipeline.progress import Progress
from pipeline.shared_cells import groups
from pipeline.stain_transfer import BUILTIN_TARGET, StainTransfer
from pipeline.tile_stream import Reading, TileBatch, TileReader
from pipeline.writing_thread import WritingThread

if TYPE_CHECKING:
    import torch

    from pipeline.embedding import EmbeddingStage


class Arriving(Protocol):
    """Features that the device may not be done with."""

    def array(self) -> np.ndarray: ...


def embed_all(
    stages: Sequence[EmbeddingStage], lacking: Iterable[Lack], due: Sequence[bool], watch: Watch = UNWATCHED
) -> Iterator[Made]:
    """Embed the slides of `lacking` with the encoders that lack them; says in their order what became of each.

    `due` tells of each slide of the batch whether there is anything to do, for the log.
    Raises InputError and MachineError, which are no slide's own fault, and leaves only whole files then too.
    """
    job = stages[0].job
    progress = Progress("features", due)
    params = job.params
    with (
        Prefetch(_planned(stages, lacking)) as slides,
        TileReader(job.threads, params.ahead, params.batch_size) as reader,
        WritingThread() as writing,
    ):
        running = _Running(writing, progress, watch)
        may_begin = (lambda: False) if watch.alone else slides.is_ready
        try:
            for reading, batch in reader.batches(running.begun(slides), may_begin):
                if isinstance(batch, TileBatch):
                    running.encode(reading, batch)
                else:
                    running.end(reading, batch)
                yield from running.made()
            yield from running.made(wait=True)
        finally:
            running.abort()


def _planned(stages: Sequence[EmbeddingStage], lacking: Iterable[Lack]) -> Iterator[SlidePass]:
    """What is to be done for each slide: its grids, and which of its files are there already."""
    for lack in lacking:
        slide = SlidePass(lack, stages)
        slide.error = caught(f"features, slide {lack.slide_id}", slide.plan)
        yield slide


class SlidePass(Reading):
    """One slide on its way through the encoders that lack it."""

    def __init__(self, lack: Lack, stages: Sequence[EmbeddingStage]) -> None:
        self.lack, self.job = lack, stages[0].job
        self.runs: list[EncoderRun] = []
        self.error: Exception | None = None
        self.started = 0.0
        self._stages = stages
        self._repaint: object = None

    def plan(self) -> None:
        """Read everything but pixels. Raises what is wrong with the slide."""
        results, slide_id = self.job.results, self.lack.slide_id
        tiles = read_tiles(layout.tiles(results, slide_id))
        facts = read_slide_facts(layout.slide_facts(results, slide_id))
        fit = read_stain(layout.stain_fit(results, slide_id))
        if fit.requested != self.job.stain.method:
            raise SlideError(f"its stain file is of method '{fit.requested}'. Fix: rerun the stain stage (fit_stains).")
        self.runs = [EncoderRun(self, self._stages[k], k, tiles, facts, fit, d) for k, d in self.lack.digests.items()]
        wanted = {magnification for run in self.runs for magnification in run.wanted}
        # The coarsest first: the rows of a file name their parents' rows in the next coarser one.
        in_passes = [
            {m: grid for m, grid in group.items() if m in wanted} for group in reversed(groups(grids_with_tiles(tiles)))
        ]
        self.colours, self.target = fit.colours, self.job.target[0] if fit.colours else BUILTIN_TARGET
        super().__init__(facts, StainTransfer(None, BUILTIN_TARGET), in_passes)

    def begin(self) -> None:
        """Decide where the stain is normalised: on a device that takes it, else where tiles are read."""
        self.started = time.perf_counter()
        if self.colours is None or not self.passes:
            return
        if self.job.device.stages_tiles:
            from pipeline.stain_device import DeviceTransfer

            self._repaint = DeviceTransfer(self.colours, self.target, self.job.device.torch)
        else:
            self.transfer = StainTransfer(self.colours, self.target)

    def on_device(self, pixels: np.ndarray) -> torch.Tensor:
        """The tiles of a batch on the device, normalised. Uint8 [B, size_px, size_px, 3]."""
        tiles = self.job.device.send(pixels)
        return self._repaint(tiles) if self._repaint is not None else tiles  # type: ignore[operator]


class EncoderRun:
    """One slide and one encoder: the files that are not finished yet. `add`, `close` and `abort` are the writer's.

    Files whose rows are right, but not what else they say (a magnification beside them came or went), are written anew
    from their own features at the end, which reads no tile.
    """

    def __init__(
        self, slide: SlidePass, stage: EmbeddingStage, index: int, tiles: TileSet, facts: SlideFacts, fit: StainFit,
        digest: str,
    ) -> None:  # fmt: skip
        self.stage, self.index, self.digest = stage, index, digest
        self.error: Exception | None = None
        self.seconds_encoding = self.seconds_writing = 0.0
        self.n_tiles = 0
        self._slide, self._slide_id = slide, tiles.slide_id
        self._grids = grids_with_tiles(tiles)
        self._waiting = deque(reversed(groups(self._grids)))
        self._failed: dict[float, int] = {}
        self._sources = {}
        for magnification, grid in self._grids.items():
            n_failed = stage.n_failed(tiles.slide_id, magnification, grid, digest)
            if n_failed is None:
                self._sources[magnification] = source = stage.source(tiles, magnification, facts, fit, digest)
                n_failed = stage.n_failed(tiles.slide_id, magnification, grid, source.rows_digest, "rows_digest")
            if n_failed is not None:
                self._failed[magnification] = n_failed
        self._carried = frozenset(self._sources) & frozenset(self._failed)
        self.wanted = frozenset(self._sources) - self._carried
        self._left = set(self.wanted)
        self._group: dict[float, TileGrid] = {}
        self._bags: dict[float, GrowingBag] = {}
        self._files = ExitStack()
        self._coarser: Cells | None = None

    def encoded(self, tiles: torch.Tensor) -> Arriving:
        """Features of a batch. Raises MachineError when torch fails: that is never the slide's fault."""
        started = time.perf_counter()
        try:
            return self.stage.job.device.fetch(self.stage.encoder(tiles))
        except RuntimeError as error:
            raise _lost_device(self.stage, error) from error
        finally:
            self.seconds_encoding += time.perf_counter() - started

    def add(self, batch: _Rows, features: Arriving | None) -> None:
        """Write the features of a batch; a fault of the slide is kept in `error` and ends its files."""
        if self.error is None:
            self.error = caught(f"features, slide {self._slide_id}", lambda: self._add(batch, features))
            if self.error is not None:
                self._discard(self.error)

    def _add(self, batch: _Rows, features: Arriving | None) -> None:
        if not self._bags:
            self._open_group()
        arrived = None
        if features is not None:
            started = time.perf_counter()
            try:
                arrived = features.array()
            except RuntimeError as error:
                raise _lost_device(self.stage, error) from error
            finally:
                self.seconds_encoding += time.perf_counter() - started
        started = time.perf_counter()
        bag = self._bags[batch.magnification]
        bag.refuse_too_many(batch.failed, self.stage.job.params.max_failed_fraction)
        if arrived is not None:
            bag.add(batch.rows, arrived)
            self.n_tiles += len(arrived)
        if all(bag.is_complete for bag in self._bags.values()):
            self._finish_group()
        self.seconds_writing += time.perf_counter() - started

    def _open_group(self) -> None:
        """Go on to the next group with a file to write; the cells of finished ones are read from their files."""
        while True:
            self._group = self._waiting.popleft()
            if self.wanted & set(self._group):
                break
            self._coarser = read_cells(self.stage.path(self._slide_id, max(self._group)))
        for magnification in self.wanted & set(self._group):
            source, grid = self._sources[magnification], self._group[magnification]
            path = self.stage.path(self._slide_id, magnification)
            writer = self._files.enter_context(BagWriter(path, source, len(grid), self.stage.job.params.dtype))
            self._bags[magnification] = GrowingBag(grid, source, writer)

    def _finish_group(self) -> None:
        """Let the files of the group appear."""
        for magnification in reversed(self._group):
            if magnification in self._bags:
                bag = self._bags[magnification]
                bag.finish(self._coarser, self.stage.facts.width)
                self._coarser = bag.cells
                self._failed[magnification] = len(bag.cells[1])
            else:
                self._coarser = read_cells(self.stage.path(self._slide_id, magnification))
        self._left -= set(self._group)
        if not self._left:
            self._write_timings()  # before the files appear: then a killed job comes back to it
        self._bags = {}
        self._files.close()

    def _write_timings(self) -> None:
        job, slide, slug = self.stage.job, self._slide, self.stage.spec.slug
        timings = SlideTimings(
            self._slide_id, slug, slide.seconds_reading, slide.seconds_normalising, self.seconds_encoding,
            self.seconds_writing, time.perf_counter() - slide.started, self.n_tiles, str(job.device),
        )  # fmt: skip
        write_timings(layout.slide_timings(job.results, slug, self._slide_id), timings)

    def close(self, error: Exception | None) -> Made:
        """What became of the slide; `error` is what ended its reading."""
        self.error = self.error or error or (InterruptedError("not all of its tiles came") if self._bags else None)
        if self.error is None:
            self.error = caught(f"features, slide {self._slide_id}", self._carry_over)
        seconds = time.perf_counter() - self._slide.started
        if self.error is not None:
            self._discard(self.error)
            return Made(self._slide_id, self.index, self.error, self.digest, seconds)
        return Made(self._slide_id, self.index, remark(self._failed), self.digest, seconds)

    def _carry_over(self) -> None:
        """Write the files whose rows were right from the start as the slide's other files want them."""
        if not self._carried:
            return
        coarser, dtype, width = None, self.stage.job.params.dtype, self.stage.facts.width
        for magnification, grid in reversed(self._grids.items()):
            path = self.stage.path(self._slide_id, magnification)
            if magnification in self._carried:
                carry_over(path, grid, self._sources[magnification], coarser, dtype, width)
            coarser = read_cells(path)

    def _discard(self, error: BaseException) -> None:
        """Take back the files that are not whole."""
        self._bags = {}
        self._files.__exit__(type(error), error, error.__traceback__)

    def abort(self) -> None:
        if self._bags:
            self._discard(InterruptedError("the job was stopped"))


class _Rows:
    """A batch without its pixels, which must not outlive the encoding."""

    def __init__(self, batch: TileBatch) -> None:
        self.magnification, self.rows, self.failed = batch.magnification, batch.rows, batch.failed


class _Running:
    """The slides between the reader and the writer."""

    def __init__(self, writing: WritingThread, progress: Progress, watch: Watch) -> None:
        self._writing, self._progress, self._watch = writing, progress, watch
        self._open: list[SlidePass] = []
        self._ends: deque[tuple[SlidePass, list[Made] | Future[list[Made]]]] = deque()

    def begun(self, slides: Iterable[SlidePass]) -> Iterator[SlidePass]:
        """The slides that can be read; the others end here."""
        for slide in slides:
            if slide.error is not None:
                made = [Made(slide.lack.slide_id, k, slide.error, d, 0.0) for k, d in slide.lack.digests.items()]
                self._ends.append((slide, made))
                continue
            slide.begin()
            self._watch.begin(slide.lack.slide_id)
            self._open.append(slide)
            yield slide

    def encode(self, slide: SlidePass, batch: TileBatch) -> None:
        """Have a batch encoded by everyone who lacks its magnification, and written."""
        runs = [run for run in slide.runs if run.error is None and batch.magnification in run.wanted]
        if not any(run.error is None for run in slide.runs):
            slide.abandon()
            self.end(slide, None)
            return
        tiles = slide.on_device(batch.pixels) if runs and len(batch.rows) else None
        rows = _Rows(batch)
        for run in runs:
            self._writing.submit(run.add, rows, run.encoded(tiles) if tiles is not None else None)
        self._progress.add_tiles(len(batch.rows))

    def end(self, slide: SlidePass, error: Exception | None) -> None:
        error = caught(f"features, slide {slide.lack.slide_id}", lambda: _raised(error))
        self._ends.append((slide, self._writing.submit(lambda: [run.close(error) for run in slide.runs])))
        self._open.remove(slide)
        self._watch.leave(slide.lack.slide_id)

    def made(self, wait: bool = False) -> Iterator[Made]:
        """Slides that are done with, in their order."""
        while self._ends and (wait or isinstance(self._ends[0][1], list) or self._ends[0][1].done()):
            slide, end = self._ends.popleft()
            yield from end if isinstance(end, list) else end.result()
            self._progress.finish_slide(slide.lack.position)

    def abort(self) -> None:
        """Take back what is half written, after whatever the writer still has to do."""
        for slide in self._open:
            for run in slide.runs:
                self._writing.insist(run.abort)


def _raised(error: Exception | None) -> None:
    if error is not None:
        raise error


def _lost_device(stage: EmbeddingStage, error: RuntimeError) -> MachineError:
    return MachineError(f"encoder {stage.spec.slug}: {error}. Fix: free the device and rerun.")


def grids_with_tiles(tiles: TileSet) -> dict[float, TileGrid]:
    """Grids with tiles, the finest first."""
    return {magnification: grid for magnification, grid in tiles.magnifications.items() if len(grid)}


def remark(failed: Mapping[float, int]) -> str:
    return "; ".join(f"tiles that could not be read at {m:g}x: {n}" for m, n in sorted(failed.items()) if n)
