"""Slides, encoders, reading, encoding and writing overlap, in bounded memory, and no slide touches another."""

from __future__ import annotations

import gc
import threading
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline import tile_stream
from pipeline.batches import Lack
from pipeline.contracts import layout
from pipeline.contracts.batches import BatchRow, read_batch
from pipeline.contracts.encoders import write_facts
from pipeline.contracts.errors import InputError, MachineError, SlideError
from pipeline.contracts.features import BagWriter, read_bag
from pipeline.contracts.timings import read_timings
from pipeline.embedding import EmbeddingJob, EmbeddingParams, EmbeddingStage, embed_batch
from pipeline.embedding_pass import embed_all
from pipeline.prefetch import Prefetch
from pipeline.progress import Progress
from pipeline.slide import SlideReader
from pipeline.stain import StainParams
from pipeline.stain_transfer import StainTransfer
from pipeline.writing_thread import WritingThread
from tests.unit.pipeline.embedding_cohort import (
    FACTS,
    StubDevice,
    StubEncoder,
    StubJob,
    StubStage,
    make_cohort,
    run_batch,
    stub_of,
    stub_stage,
)  # fmt: skip


class OtherEncoder(StubEncoder):
    """Tells the encoders of a pass apart by width and value."""

    def encode(self, tiles: np.ndarray) -> np.ndarray:
        self.sizes.append(len(tiles))
        return np.concatenate([tiles.reshape(len(tiles), -1).max(axis=1, keepdims=True)] * 2, axis=1).astype(np.float32)


def two_stages(results: Path, stain: str = "none", **params: object) -> list[StubStage]:
    """Stages of one job, for encoders `tiny` and `other`."""
    write_facts(layout.encoder_facts(results, "other"), replace(FACTS, slug="other", width=2))
    job = StubJob(results, StainParams(method=stain), EmbeddingParams(**{"batch_size": 8, **params}), 2)
    first, second = stub_of(job, "tiny"), stub_of(job, "other")
    object.__setattr__(second, "stub", OtherEncoder())
    return [first, second]


def embed(stages: list[EmbeddingStage], rows: dict[str, BatchRow], folder: Path) -> list[list[BatchRow]]:
    return embed_batch(stages, rows, [folder / f"{stage.spec.slug}.tsv" for stage in stages])


def bag_files(results: Path) -> dict[Path, bytes]:
    return {path.relative_to(results): path.read_bytes() for path in (results / "features").rglob("*.h5")}


def n_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    reads: list[int] = []
    read = SlideReader.read_windows
    monkeypatch.setattr(SlideReader, "read_windows", lambda self, *args: (reads.append(1), read(self, *args))[1])
    return reads


# --- several encoders in one pass ---------------------------------------------------------------------------------


def test_encoders_share_one_pass_and_get_what_each_would_get_alone(tmp_path, monkeypatch):
    rows = make_cohort(tmp_path / "together", slides=2, seed=3, stain="vahadane")
    make_cohort(tmp_path / "alone", slides=2, seed=3, stain="vahadane")
    reads = n_reads(monkeypatch)
    done = embed(two_stages(tmp_path / "together", "vahadane"), rows, tmp_path)
    shared, reads[:] = len(reads), []
    assert [[row.status for row in of_one] for of_one in done] == [["ok", "ok"]] * 2
    for stage in two_stages(tmp_path / "alone", "vahadane"):
        embed([stage], rows, tmp_path)
    assert len(reads) == 2 * shared
    assert bag_files(tmp_path / "together") == bag_files(tmp_path / "alone")
    assert len(bag_files(tmp_path / "alone")) == 2 * 2 * 2
    assert {row.digest for row in done[0]} & {row.digest for row in done[1]} == set()


def test_an_added_encoder_leaves_the_files_of_the_others(tmp_path):
    rows = make_cohort(tmp_path, slides=2)
    tiny, other = two_stages(tmp_path)
    embed([tiny], rows, tmp_path)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "features/tiny").rglob("*.h5")}
    n_before = len(tiny.stub.sizes)
    embed([tiny, other], rows, tmp_path)
    assert len(tiny.stub.sizes) == n_before and other.stub.sizes
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "features/tiny").rglob("*.h5")} == times
    assert [row.seconds for row in read_batch(tmp_path / "tiny.tsv").values()] == [0, 0]


def test_each_encoder_gets_only_the_magnifications_that_it_lacks(tmp_path):
    rows = make_cohort(tmp_path, seed=1)
    stages = two_stages(tmp_path)
    embed(stages, rows, tmp_path)
    wanted = bag_files(tmp_path)
    Path(stages[0].path("s0", 10)).unlink()
    Path(stages[1].path("s0", 20)).unlink()
    again = two_stages(tmp_path)
    embed(again, rows, tmp_path)
    assert bag_files(tmp_path) == wanted
    lengths = {m: len(read_bag(stages[0].path("s0", m)).features) for m in (20, 10)}
    assert [sum(stage.stub.sizes) for stage in again] == [lengths[10], lengths[20]]


def test_one_encoders_fault_is_not_the_others(tmp_path):
    rows = make_cohort(tmp_path, slides=2)
    tiny, other = two_stages(tmp_path)
    tiny.stub.encode = lambda tiles: np.full((len(tiles), 6), np.nan, np.float32)
    done = embed([tiny, other], rows, tmp_path)
    assert [[row.status for row in of_one] for of_one in done] == [["failed", "failed"], ["ok", "ok"]]
    assert "not finite" in done[0][0].reason and not list((tmp_path / "features/tiny").rglob("*.h5"))
    assert not list((tmp_path / "features").rglob(".*"))


# --- overlap ------------------------------------------------------------------------------------------------------


def test_the_next_slide_is_read_while_one_is_encoded(tmp_path, monkeypatch):
    rows = make_cohort(tmp_path, slides=2, columns=8, rows=8)
    of_second, waited = threading.Event(), []
    read = SlideReader.read_windows

    def read_windows(self, windows):
        if self.path.endswith("s1.png"):
            of_second.set()
        return read(self, windows)

    monkeypatch.setattr(SlideReader, "read_windows", read_windows)
    stage = stub_stage(tmp_path)
    encode, last = stage.stub.encode, 8 + 2 - 1  # batches of slide s0: 61 tiles at 20x and 16 at 10x

    def encode_last_of_first(tiles):
        if len(stage.stub.sizes) == last:
            waited.append(of_second.wait(20))
        return encode(tiles)

    stage.stub.encode = encode_last_of_first
    run_batch(stage, rows, tmp_path / "batch.tsv")
    assert waited == [True], "the second slide was not read while the first was encoded"


def test_encoding_goes_on_while_files_are_written(tmp_path, monkeypatch):
    rows = make_cohort(tmp_path, slides=2)
    second_slide, waited = threading.Event(), []
    finish = BagWriter.finish

    def finish_late(self, *args, **kwargs):
        if not waited:
            waited.append(second_slide.wait(20))
        finish(self, *args, **kwargs)

    monkeypatch.setattr(BagWriter, "finish", finish_late)
    stage = stub_stage(tmp_path)
    n_first = 2 + 1 + 1  # batches of slide s0: 21 tiles at 20x and 6 at 10x
    encode = stage.stub.encode
    stage.stub.encode = lambda tiles: (second_slide.set() if len(stage.stub.sizes) >= n_first else None, encode(tiles))[
        1
    ]
    run_batch(stage, rows, tmp_path / "batch.tsv")
    assert waited == [True], "the encoder waited for the files of the slide before"


@pytest.mark.parametrize("encoder_seconds", [0, 0.003])
def test_memory_is_bounded_by_the_settings_and_not_by_the_slide(tmp_path, monkeypatch, encoder_seconds):
    """Counts the batches of pixels that are alive, whoever holds them."""
    most = []
    for columns in (6, 14):
        alive: weakref.WeakSet = weakref.WeakSet()
        peak = [0]
        room = tile_stream._room

        def counted(count, size_px, alive=alive, peak=peak, room=room):
            class Pixels(np.ndarray):
                __hash__ = object.__hash__

            memory = room(count, size_px).view(Pixels)
            alive.add(memory)
            peak[0] = max(peak[0], len(alive))
            return memory

        monkeypatch.setattr(tile_stream, "_room", counted)
        results = tmp_path / str(columns)
        rows = make_cohort(results, slides=4, columns=columns, rows=columns)
        run_batch(stub_stage(results, ahead=2, batch_size=4, seconds=encoder_seconds), rows, results / "batch.tsv")
        monkeypatch.undo()
        gc.collect()
        assert not alive
        most.append(peak[0])
    row_of_10x = -(-14 // 2 // 4) + 1  # batches of the coarser magnification that a row of cells touches
    assert max(most) <= (2 + 1) + 1 + 2 * row_of_10x, most


# --- faults -------------------------------------------------------------------------------------------------------


def test_slides_that_fail_anywhere_leave_the_others_alone(tmp_path, monkeypatch):
    rows = make_cohort(tmp_path, slides=6)
    wanted_paths = {f"features/tiny/{m}x/s{i}.h5" for m in (20, 10) for i in (0, 5)}
    (tmp_path / "s1.png").write_bytes(b"no image")  # at opening
    Path(layout.tiles(tmp_path, "s2")).write_bytes(b"no file")  # at planning
    Path(layout.stain_fit(tmp_path, "s3")).unlink()
    read = SlideReader.read

    def read_or_fail(self, *region):
        if self.path.endswith("s4.png"):
            raise SlideError("region cannot be decoded")
        return read(self, *region)

    monkeypatch.setattr(SlideReader, "read", read_or_fail)
    done = run_batch(stub_stage(tmp_path), rows, tmp_path / "batch.tsv")
    assert [row.status for row in done] == ["ok", "failed", "failed", "failed", "failed", "ok"]
    assert [row.slide_id for row in done] == list(rows)
    assert "may fail" in done[4].reason
    assert {path.as_posix() for path in bag_files(tmp_path)} == wanted_paths
    assert not list((tmp_path / "features").rglob(".*"))


def test_a_lost_device_stops_the_job_and_leaves_whole_files(tmp_path):
    rows = make_cohort(tmp_path, slides=4)
    stage = stub_stage(tmp_path)
    encode = stage.stub.encode

    def lose(tiles):
        if len(stage.stub.sizes) == 6:
            raise RuntimeError("CUDA error: out of memory")
        return encode(tiles)

    stage.stub.encode = lose
    with pytest.raises(MachineError, match=r"encoder tiny: CUDA error.*rerun"):
        run_batch(stage, rows, tmp_path / "batch.tsv")
    assert not (tmp_path / "batch.tsv").exists() and not list((tmp_path / "features").rglob(".*"))
    n_whole = len(bag_files(tmp_path))
    done = run_batch(stub_stage(tmp_path), rows, tmp_path / "batch.tsv")
    assert 2 <= n_whole < 8 and [row.status for row in done] == ["ok"] * 4


def test_a_full_disk_while_writing_stops_the_job(tmp_path, monkeypatch):
    rows = make_cohort(tmp_path, slides=3)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(BagWriter, "append", full)
    with pytest.raises(MachineError, match="No space left"):
        run_batch(stub_stage(tmp_path), rows, tmp_path / "batch.tsv")
    assert not bag_files(tmp_path) and not list((tmp_path / "features").rglob(".*"))


def test_nothing_to_do_is_no_pass(tmp_path):
    stage = stub_stage(tmp_path, threads=1) if make_cohort(tmp_path, slides=0) == {} else None
    assert run_batch(stage, {}, tmp_path / "batch.tsv") == []
    assert list(embed_all([stage], iter(()), [])) == []


# --- the path of a device that takes tiles ------------------------------------------------------------------------


def test_on_the_device_the_stain_is_normalised_in_the_encoders_batch(tmp_path, monkeypatch):
    """A device with buffers of its own, here the CPU: the same rows as with normalising in the reader threads."""
    from pipeline.device import Device

    class DeviceJob(EmbeddingJob):
        device = property(lambda self: device)

    sources: dict[str, list] = {"host": [], "device": []}

    class Recorded(StainTransfer):
        def __init__(self, source, *args):
            sources[folder].append(source)
            super().__init__(source, *args)

    monkeypatch.setattr("pipeline.embedding_pass.StainTransfer", Recorded)
    device = Device("cpu", stages_tiles=True)
    assert str(device) == "cpu"
    features = []
    for folder, job_class in (("host", StubJob), ("device", DeviceJob)):
        results = tmp_path / folder
        rows = make_cohort(results, slides=2, seed=7, stain="vahadane")
        job = job_class(results, StainParams(method="vahadane"), EmbeddingParams(batch_size=8), 2)
        stage = stub_of(job, "tiny")
        if job_class is DeviceJob:
            object.__setattr__(stage, "stub", TorchStub())
        run_batch(stage, rows, results / "batch.tsv")
        features.append([read_bag(stage.path(f"s{i}", m)).features for i in range(2) for m in (20, 10)])
    assert all(len(bag) for bag in features[0])
    for host, other in zip(*features, strict=True):
        assert np.abs(host - other).max() < 1, "grey levels"
    assert any(sources["host"]) and not any(sources["device"]), "also normalised by the readers"


class TorchStub:
    """Means and spreads as `StubEncoder`, from tensors."""

    def __call__(self, tiles):
        import torch

        assert tiles.dtype == torch.uint8
        pixels = tiles.reshape(len(tiles), -1, 3).float()
        return torch.cat([pixels.mean(dim=1), pixels.std(dim=1, correction=0)], dim=1)


def test_buffers_take_turns_and_grow(monkeypatch):
    from pipeline.device import Device

    rng = np.random.default_rng()
    device, plain = Device("cpu", stages_tiles=True), Device("cpu")
    batches = [rng.integers(0, 256, (n, 6, 5, 3), dtype=np.uint8) for n in (2, 5, 1, 5, 7)]
    sent = [device.send(batch) for batch in batches]
    for batch, tensor in zip(batches, sent, strict=True):
        np.testing.assert_array_equal(tensor.numpy(), batch)
        np.testing.assert_array_equal(device.fetch(tensor.float()).array(), batch.astype(np.float32))
        np.testing.assert_array_equal(plain.send(batch).numpy(), batch)
    with pytest.raises(InputError, match=r"embedding\.device: torch sees no GPU"):
        Device("cuda")


# --- its parts ----------------------------------------------------------------------------------------------------


def test_timings_of_a_slide(tmp_path):
    rows = make_cohort(tmp_path, slides=1, stain="vahadane")
    run_batch(stub_stage(tmp_path, "vahadane", seconds=0.02), rows, tmp_path / "batch.tsv")
    path = layout.slide_timings(tmp_path, "tiny", "s0")
    timings = read_timings(path)
    tiles = sum(len(read_bag(path).features) for path in (tmp_path / "features").rglob("*.h5"))
    assert timings.tiles == tiles and timings.device == "stub" and timings.slide_id == "s0"
    assert timings.encode >= 0.02 * 4 and timings.wall >= timings.encode
    assert timings.read > 0 and timings.normalise > 0 and timings.write > 0
    before = Path(path).stat().st_mtime_ns
    run_batch(stub_stage(tmp_path, "vahadane"), rows, tmp_path / "batch.tsv")
    assert Path(path).stat().st_mtime_ns == before, "a finished slide has no new timings"


def test_progress_names_speed_and_time_left():
    now = [0.0]
    progress = Progress("features", [True] * 8 + [False], lambda: now[0])  # the last was lost by an earlier stage
    now[0] = 10.0
    progress.add_tiles(500)
    assert str(progress) == "features: 0 of 9 slides, 500 tiles, 50.0 tiles/s"
    now[0] = 100.0
    progress.finish_slide(3)  # two were finished before
    assert str(progress) == "features: 3 of 9 slides, 500 tiles, 5.0 tiles/s, about 8 min left"
    progress.finish_slide(8)
    assert "left" not in str(progress)


def test_progress_is_logged_at_the_end_of_a_slide(tmp_path, caplog):
    caplog.set_level("INFO")
    rows = make_cohort(tmp_path, slides=2)
    run_batch(stub_stage(tmp_path), rows, tmp_path / "batch.tsv")
    lines = [record.message for record in caplog.records if "tiles/s" in record.message]
    assert len(lines) == 2 and "1 of 2 slides" in lines[0] and "left" in lines[0]


def test_prefetch_is_bounded_and_raises_in_place():
    made = []

    def items():
        for k in range(9):
            made.append(k)
            yield k
        raise SlideError("no more")

    with Prefetch(items(), depth=1) as prefetch:
        assert next(prefetch) == 0
        seen = [0]
        with pytest.raises(SlideError, match="no more"):
            for item in prefetch:
                seen.append(item)
                assert len(made) <= len(seen) + 2
    assert seen == list(range(9)) and list(prefetch) == []
    with Prefetch(iter([1, 2, 3])) as abandoned:
        assert next(abandoned) == 1


def test_the_writer_keeps_order_and_hands_errors_on():
    done = []
    with WritingThread(most=2) as writing:
        for k in range(20):
            writing.submit(done.append, k)
    assert done == list(range(20))
    with pytest.raises(ZeroDivisionError), WritingThread() as writing:
        writing.submit(lambda: 1 / 0)


def test_a_reading_ends_once(tmp_path):
    rows = make_cohort(tmp_path, slides=2)
    lacks = [Lack(slide_id, {0: "d"}, k) for k, slide_id in enumerate(rows, 1)]
    made = list(embed_all([stub_stage(tmp_path)], iter(lacks), [True, True]))
    assert [(m.slide_id, m.stage, m.outcome) for m in made] == [("s0", 0, ""), ("s1", 0, "")]


def test_a_stub_device_is_the_hosts_memory():
    tiles = np.zeros((1, 2, 2, 3), np.uint8)
    assert StubDevice().send(tiles) is tiles
