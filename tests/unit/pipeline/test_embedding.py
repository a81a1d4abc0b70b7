"""Embedding: the right pixels in the right rows, failures recorded, nothing half written, nothing done twice."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.bag_index import collect_bags
from pipeline.contracts import layout
from pipeline.contracts.batches import BatchRow
from pipeline.contracts.encoders import write_facts
from pipeline.contracts.errors import FormatError, InputError, SlideError
from pipeline.contracts.features import Bag, read_bag, read_index, write_bag, write_index
from pipeline.contracts.slides import read_slide_facts
from pipeline.contracts.stains import read_stain
from pipeline.contracts.tiles import TileGrid, TileSet, read_tiles, write_tiles
from pipeline.embedding import EmbeddingJob, EmbeddingParams, EmbeddingStage
from pipeline.encoders import EncoderSpec, fetch_weights
from pipeline.slide import SlideReader, open_slide
from pipeline.stain import StainParams
from pipeline.stain_transfer import apply
from tests.unit.pipeline.embedding_cohort import (
    FACTS,
    UM_PER_PX,
    StubEncoder,
    make,
    make_cohort,
    run_batch,
    stub_stage,
)  # fmt: skip

REPOSITORY = Path(__file__).resolve().parents[3]


def bag_path(results: Path, magnification: float, slide_id: str = "s0") -> Path:
    return Path(layout.features(results, "tiny", magnification, slide_id))


def bags(results: Path, slide_id: str = "s0") -> tuple[Bag, Bag]:
    return read_bag(bag_path(results, 20, slide_id)), read_bag(bag_path(results, 10, slide_id))


def tile_set(results: Path, slide_id: str = "s0") -> TileSet:
    return read_tiles(layout.tiles(results, slide_id))


def centres(grid: TileGrid, cells: np.ndarray) -> np.ndarray:
    """Centres (x, y) of cells in level-0 pixels."""
    return grid.origin + (np.asarray(cells) + 0.5) * grid.pitch


def damage(monkeypatch: pytest.MonkeyPatch, points: np.ndarray) -> None:
    """Make every region with one of `points` (level-0 pixels) unreadable, as a damaged spot of the file would."""
    read = SlideReader.read

    def read_or_fail(self: SlideReader, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        if ((points >= (x, y)) & (points < (x + width, y + height))).all(axis=1).any():
            raise SlideError(f"{self.path}: region at {x} {y} cannot be decoded")
        return read(self, level, x, y, width, height)

    monkeypatch.setattr(SlideReader, "read", read_or_fail)


@pytest.mark.parametrize("stain", ["none", "vahadane"])
def test_each_row_holds_the_features_of_its_own_tile(tmp_path: Path, stain: str) -> None:
    make_cohort(tmp_path, stain=stain)
    stub_stage(tmp_path, stain).make("s0", "d")
    tiles, colours = tile_set(tmp_path), read_stain(layout.stain_fit(tmp_path, "s0")).colours
    with open_slide(tmp_path / "s0.png", UM_PER_PX) as slide:
        for magnification, grid in tiles.magnifications.items():
            bag = read_bag(bag_path(tmp_path, magnification))
            fields = [
                slide.read_field(float(x), float(y), grid.um_per_px, grid.size_px)
                for x, y in grid.origin + grid.cell * grid.pitch
            ]
            pixels = np.stack([field if stain == "none" else apply(field, colours) for field in fields])
            np.testing.assert_allclose(bag.features, StubEncoder().encode(pixels), rtol=1e-5)
            for column in ("cell", "coords", "tissue_fraction"):
                np.testing.assert_array_equal(getattr(bag, column), getattr(grid, column))
            np.testing.assert_array_equal(bag.parent, grid.parent)


def test_what_a_bag_says_of_itself(tmp_path: Path) -> None:
    make_cohort(tmp_path, stain="vahadane")
    stub_stage(tmp_path, "vahadane").make("s0", "digest-1")
    source = bags(tmp_path)[0].source
    assert (source.slide_id, source.encoder, source.weights, source.stain) == ("s0", "tiny", "random", "vahadane")
    assert source.savetodir == "features/tiny/20x" and source.digest == "digest-1"
    assert source.um_per_px == 0.5 and source.size_level0_px == (20.0, 20.0)
    assert source.level0_magnification == 25 and source.level0_size_px == tile_set(tmp_path).dimensions
    assert source.slide_magnifications == (20.0, 10.0)
    for path in tmp_path.rglob("*.h5"):
        assert str(tmp_path).encode() not in path.read_bytes(), "a machine's own path in the file"


def test_batches_have_fixed_sizes_and_never_cross_slides(tmp_path: Path) -> None:
    rows = make_cohort(tmp_path, slides=2)
    stage = stub_stage(tmp_path, batch_size=8)
    run_batch(stage, rows, tmp_path / "batch.tsv")
    wanted = []
    for slide_id in rows:
        sizes = []
        for grid in tile_set(tmp_path, slide_id).magnifications.values():
            sizes += [8] * (len(grid) // 8) + [len(grid) % 8] * (len(grid) % 8 > 0)
        wanted.append(sorted(sizes))
    first = len(wanted[0])
    assert [sorted(stage.stub.sizes[:first]), sorted(stage.stub.sizes[first:])] == wanted


def test_same_bytes_for_any_number_of_readers(tmp_path: Path) -> None:
    contents = []
    for threads, ahead in ((1, 1), (3, 5)):
        folder = tmp_path / f"{threads}"
        make_cohort(folder, slides=2, seed=5, stain="vahadane")
        for slide_id in ("s0", "s1"):
            stub_stage(folder, "vahadane", threads=threads, ahead=ahead).make(slide_id, "d")
        contents.append({p.relative_to(folder): p.read_bytes() for p in (folder / "features").rglob("*.h5")})
    assert contents[0] == contents[1] and len(contents[0]) == 4


def test_with_a_network(tmp_path: Path) -> None:
    """Through timm and torch: finite, the same again, and the plain network's answer for a batch."""
    rows = make_cohort(tmp_path)
    spec = EncoderSpec("tiny", "test_resnet.r160_in1k", weights="random")
    fetch_weights(spec, layout.encoder_facts(tmp_path, "tiny"), layout.encoder_weights(tmp_path, "tiny"))
    params = EmbeddingParams(batch_size=8, device="cpu")
    stage = EmbeddingStage(EmbeddingJob(tmp_path, StainParams(method="none"), params), spec)
    done = run_batch(stage, rows, tmp_path / "batch.tsv")
    assert [(row.status, row.reason) for row in done] == [("ok", "")]
    fine, _ = bags(tmp_path)
    assert fine.features.shape == (len(fine.coords), 96) and "RANDOM" in fine.source.encoder_name
    grid = tile_set(tmp_path).magnifications[20]
    with open_slide(tmp_path / "s0.png", UM_PER_PX) as slide:
        corners = grid.upper_left[8:16]
        pixels = np.stack([slide.read_field(float(x), float(y), 0.5, grid.size_px) for x, y in corners])
    np.testing.assert_array_equal(fine.features[8:16], stage.encoder.encode(pixels))
    before = bag_path(tmp_path, 20).read_bytes()
    bag_path(tmp_path, 20).unlink()
    make(stage, "s0", done[0].digest)
    assert bag_path(tmp_path, 20).read_bytes() == before


# --- tiles that cannot be read ------------------------------------------------------------------------------------


def test_unreadable_tiles_have_no_row_and_are_no_parents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_cohort(tmp_path, columns=10, rows=8)
    tiles = tile_set(tmp_path)
    fine, coarse = tiles.magnifications[20], tiles.magnifications[10]
    kept = {tuple(cell) for cell in fine.cell}
    lacking = next((c, r) for r in range(8) for c in range(10) if (c, r) not in kept)  # a part of coarser tiles alone
    spots = np.concatenate([fine.cell[[0, 17, -1]], [lacking]])
    damage(monkeypatch, centres(fine, spots))
    broken = {
        20: {row for row, cell in enumerate(fine.cell) if (cell == spots).all(axis=1).any()},
        10: {row for row, cell in enumerate(coarse.cell) if (cell == spots // 2).all(axis=1).any()},
    }
    stage = stub_stage(tmp_path, max_failed_fraction=0.3)
    remark = f"tiles that could not be read at 10x: {len(broken[10])}; tiles that could not be read at 20x: 3"
    assert stage.make("s0", "d") == remark
    fine_bag, coarse_bag = bags(tmp_path)
    for bag, grid, rows in ((fine_bag, fine, broken[20]), (coarse_bag, coarse, broken[10])):
        kept = [row for row in range(len(grid)) if row not in rows]
        np.testing.assert_array_equal(bag.cell, grid.cell[kept])
        np.testing.assert_array_equal(bag.coords, grid.coords[kept])
        assert {tuple(cell) for cell in bag.failed_cells} == {tuple(grid.cell[row]) for row in rows}
    orphans = 0
    for cell, parent in zip(fine_bag.cell, fine_bag.parent, strict=True):
        if parent < 0:
            assert tuple(cell // 2) in {tuple(c) for c in coarse_bag.failed_cells}
            orphans += 1
        else:
            np.testing.assert_array_equal(coarse_bag.cell[parent], cell // 2)
    assert orphans > 0
    assert stage.find("s0", "d") == remark


@pytest.mark.parametrize(("share", "fails"), [(0.03, True), (0.2, False)])
def test_too_many_unreadable_tiles_fail_the_slide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, fails: bool
) -> None:
    rows = make_cohort(tmp_path, slides=2, columns=10, rows=8)
    grid = tile_set(tmp_path).magnifications[20]
    damage(monkeypatch, centres(grid, grid.cell[[1, 2, 3]]))  # 3.9 % of 77, at most 3 of some 25 tiles at 10x
    # slide s1 is one row of cells taller, so its own tiles are where those of s0 are
    done = run_batch(stub_stage(tmp_path, max_failed_fraction=share), rows, tmp_path / "batch.tsv")
    assert done[0].status == ("failed" if fails else "ok")
    if fails:
        assert "may fail (embedding.max_failed_fraction)" in done[0].reason and "cannot be decoded" in done[0].reason
        assert not bag_path(tmp_path, 20).exists()
    assert not list((tmp_path / "features").rglob(".*"))


def test_a_slide_that_does_not_open_fails_alone(tmp_path: Path) -> None:
    rows = make_cohort(tmp_path, slides=3)
    (tmp_path / "s1.png").write_bytes(b"no image")
    done = run_batch(stub_stage(tmp_path), rows, tmp_path / "batch.tsv")
    assert [row.status for row in done] == ["ok", "failed", "ok"] and "s1.png" in done[1].reason


def test_features_that_are_not_finite_fail_the_slide(tmp_path: Path) -> None:
    make_cohort(tmp_path)
    stage = stub_stage(tmp_path)
    stage.stub.encode = lambda tiles: np.full((len(tiles), 6), np.nan, np.float32)
    with pytest.raises(SlideError, match="not finite"):
        stage.make("s0", "d")
    assert not list((tmp_path / "features").rglob("*.h5"))


# --- reading ahead ------------------------------------------------------------------------------------------------


def test_reading_goes_on_while_the_encoder_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_cohort(tmp_path)
    n_read, second_batch = 0, threading.Event()
    read = SlideReader.read_windows

    def read_windows(self: SlideReader, *args: object) -> list[np.ndarray]:
        nonlocal n_read
        n_read += 1
        if n_read > 4:
            second_batch.set()
        return read(self, *args)

    monkeypatch.setattr(SlideReader, "read_windows", read_windows)
    stage = stub_stage(tmp_path, threads=1, batch_size=4)
    encode, waited = stage.stub.encode, []

    def encode_slowly(tiles: np.ndarray) -> np.ndarray:
        waited.append(second_batch.wait(20))
        return encode(tiles)

    stage.stub.encode = encode_slowly
    stage.make("s0", "d")
    assert all(waited), "the second batch was not read while the first was encoded"


def test_reading_ahead_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the encoder, no more than `ahead` batches and the one it works on are held."""
    make_cohort(tmp_path, columns=12, rows=12)
    reads, most = [], []
    tiles = tile_set(tmp_path)
    fine = replace(tiles.magnifications[20], parent=np.full(len(tiles.magnifications[20]), -1))
    write_tiles(layout.tiles(tmp_path, "s0"), replace(tiles, magnifications={20: fine}))
    read = SlideReader.read_windows
    monkeypatch.setattr(SlideReader, "read_windows", lambda self, *args: (reads.append(1), read(self, *args))[1])
    stage = stub_stage(tmp_path, threads=3, batch_size=4, ahead=2, seconds=0.01)
    encode = stage.stub.encode

    def count(tiles: np.ndarray) -> np.ndarray:
        features = encode(tiles)
        most.append(len(reads) - (sum(stage.stub.sizes) - len(tiles)))
        return features

    stage.stub.encode = count
    stage.make("s0", "d")
    assert 4 < max(most) <= (2 + 1) * 4


# --- finding what is finished -------------------------------------------------------------------------------------


def test_finished_slides_are_found_and_damaged_files_are_made_again(tmp_path: Path) -> None:
    rows = make_cohort(tmp_path)
    stage = stub_stage(tmp_path)
    assert stage.find("s0", "d") is None
    digest = run_batch(stage, rows, tmp_path / "batch.tsv")[0].digest
    assert stage.find("s0", digest) == "" and stage.find("s0", "other") is None
    before = {m: bag_path(tmp_path, m).read_bytes() for m in (20, 10)}
    coarse_written = bag_path(tmp_path, 10).stat().st_mtime_ns
    bag_path(tmp_path, 20).write_bytes(before[20][: len(before[20]) // 2])
    again = stub_stage(tmp_path)
    assert again.find("s0", digest) is None
    run_batch(again, rows, tmp_path / "batch.tsv")
    assert {m: bag_path(tmp_path, m).read_bytes() for m in (20, 10)} == before
    assert bag_path(tmp_path, 10).stat().st_mtime_ns == coarse_written, "a finished magnification was made again"
    third = stub_stage(tmp_path)
    run_batch(third, rows, tmp_path / "batch.tsv")
    assert third.stub.sizes == []


def only(tiles: TileSet, magnifications: tuple[float, ...]) -> TileSet:
    """The tiles of a configuration with these magnifications alone."""
    grids = {m: tiles.magnifications[m] for m in magnifications}
    last = magnifications[-1]
    grids[last] = replace(grids[last], parent=np.full(len(grids[last]), -1))
    return replace(tiles, magnifications=grids)


@pytest.mark.parametrize(
    ("before", "after", "encoded", "dtype"),
    [
        ((20,), (20, 10), 10, "float32"),
        ((10,), (20, 10), 20, "float16"),
        ((20, 10), (20,), None, "float16"),
        ((20, 10), (10,), None, "float32"),
    ],
)
def test_another_choice_of_magnifications_encodes_new_tiles_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: tuple, after: tuple, encoded: float | None, dtype: str
) -> None:
    """All files are then those of embedding with the new choice from nothing, unreadable tiles included."""
    for folder in ("fresh", "changed"):
        make_cohort(tmp_path / folder, columns=20, rows=16, seed=5, stain="vahadane")  # over one chunk of rows
    rows = {"s0": BatchRow("s0", "c0", "ok", "stain", digest="stain of other tiles")}
    old_rows = {"s0": replace(rows["s0"], digest="stain of the old tiles")}
    tiles = tile_set(tmp_path / "fresh")
    damage(monkeypatch, centres(tiles.magnifications[20], tiles.magnifications[20].cell[[3, 300]]))

    def embedded(folder: str, magnifications: tuple, upstream: dict[str, BatchRow]) -> list[int]:
        write_tiles(layout.tiles(tmp_path / folder, "s0"), only(tiles, magnifications))
        stage = stub_stage(tmp_path / folder, "vahadane", max_failed_fraction=0.5, dtype=dtype)
        (done,) = run_batch(stage, upstream, tmp_path / "batch.tsv")
        assert done.status == "ok" and done.reason.count("could not be read") == len(magnifications)
        assert {r.magnification for r in collect_bags(tmp_path / folder, "tiny", [done])} == set(magnifications)
        return stage.stub.sizes

    embedded("fresh", after, rows)
    embedded("changed", before, old_rows)
    sizes = embedded("changed", after, rows)
    assert sum(sizes) == (len(read_bag(bag_path(tmp_path / "changed", encoded)).features) if encoded else 0)
    for m in after:
        assert bag_path(tmp_path / "changed", m).read_bytes() == bag_path(tmp_path / "fresh", m).read_bytes()
    assert embedded("changed", after, rows) == []


def test_rows_are_encoded_anew_when_what_they_come_from_changes(tmp_path: Path) -> None:
    make_cohort(tmp_path, stain="vahadane")
    facts, tiles = read_slide_facts(layout.slide_facts(tmp_path, "s0")), tile_set(tmp_path)
    fit, grid = read_stain(layout.stain_fit(tmp_path, "s0")), tiles.magnifications[20]

    def digest(facts=facts, fit=fit, grid=grid, **params: object) -> str:
        return stub_stage(tmp_path, "vahadane", **params).rows_digest(grid, facts, fit)

    same = digest()
    assert same == digest(
        facts=replace(facts, path="moved.png"), fit=replace(fit, digest="fitted again", diagnostics={})
    )
    assert same == digest(grid=replace(grid, parent=grid.parent + 1, tissue_fraction=grid.tissue_fraction / 2))
    others = [
        digest(facts=replace(facts, digest="another file")), digest(facts=replace(facts, backend="openslide")),
        digest(fit=replace(fit, colours=replace(fit.colours, white=(250.0, 250.0, 250.0)))),
        digest(grid=replace(grid, cell=grid.cell[::-1])), digest(grid=replace(grid, origin=grid.origin + 1)),
        digest(grid=replace(grid, um_per_px=0.6)), digest(grid=replace(grid, size_px=32)), digest(batch_size=4),
    ]  # fmt: skip
    assert len({same, *others}) == 9


def test_a_file_with_too_few_rows_is_not_finished(tmp_path: Path) -> None:
    make_cohort(tmp_path)
    stage = stub_stage(tmp_path)
    stage.make("s0", "d")
    with h5py.File(bag_path(tmp_path, 20), "r+") as file:
        n = len(file["features"]) - 1
        file.attrs["n_tiles"] = n
        file["features"].resize(n, axis=0)
        for name in ("coords", "cell", "parent", "tissue_fraction"):
            values, attributes = file[name][:n], dict(file[name].attrs)
            del file[name]
            file.create_dataset(name, data=values)
            file[name].attrs.update(attributes)
    assert len(read_bag(bag_path(tmp_path, 20)).features) == n
    assert stage.find("s0", "d") is None


def test_a_job_that_finds_everything_never_imports_torch(tmp_path: Path) -> None:
    rows = make_cohort(tmp_path)
    stage = stub_stage(tmp_path)
    run_batch(stage, rows, tmp_path / "batch.tsv")
    code = f"""
import sys
from pipeline.contracts.batches import BatchRow
from pipeline.embedding import EmbeddingJob, EmbeddingParams, EmbeddingStage, embed_batch
from pipeline.encoders import EncoderSpec
from pipeline.stain import StainParams
job = EmbeddingJob({str(tmp_path)!r}, StainParams(method='none'), EmbeddingParams(batch_size=8))
stage = EmbeddingStage(job, EncoderSpec('tiny', 'stub', weights='random'))
upstream = {{'s0': BatchRow('s0', 'c0', 'ok', 'stain', digest='stain-0')}}
done = embed_batch([stage], upstream, [{str(tmp_path / "b.tsv")!r}])[0]
assert done[0].status == 'ok' and done[0].seconds == 0, done
assert 'torch' not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=REPOSITORY)


def test_digest_follows_what_the_features_depend_on(tmp_path: Path) -> None:
    upstream = make_cohort(tmp_path)["s0"]

    def digest(stain: str = "none", row: BatchRow = upstream, **params: object) -> str:
        return stub_stage(tmp_path, stain, **params).digest(row)

    same = digest()
    assert same == digest(threads=7) == digest(ahead=9) == digest(device="cpu")
    others = [
        digest("vahadane"), digest(batch_size=16), digest(precision="bfloat16"), digest(dtype="float16"),
        digest(row=replace(upstream, digest="another fit")),
    ]  # fmt: skip
    write_facts(layout.encoder_facts(tmp_path, "tiny"), replace(FACTS, weights_digest="other weights"))
    assert len({same, *others, digest()}) == 7


def test_an_encoder_that_cannot_be_had_stops_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, tries = make_cohort(tmp_path, slides=3), []

    def load_encoder(*_: object) -> None:
        tries.append(1)
        raise InputError("encoder 'tiny'", "its weights are gone.")

    monkeypatch.setattr("pipeline.encoder_network.load_encoder", load_encoder)
    stage = EmbeddingStage(
        EmbeddingJob(tmp_path, StainParams(method="none")), EncoderSpec("tiny", "stub", weights="random")
    )
    with pytest.raises(InputError, match="weights are gone"):
        run_batch(stage, rows, tmp_path / "batch.tsv")
    assert len(tries) == 1
    assert not (tmp_path / "batch.tsv").exists()


def test_a_wrong_target_stops_the_job(tmp_path: Path) -> None:
    make_cohort(tmp_path)
    with pytest.raises(InputError, match=r"config\.yaml stain\.target"):
        EmbeddingJob(tmp_path, StainParams(target="absent.png"))


@pytest.mark.parametrize(
    "bad", [{"precision": "float"}, {"dtype": "int8"}, {"device": "gpu"}, {"batch_size": 0}, {"max_failed_fraction": 2}]
)
def test_parameters_name_their_key(bad: dict[str, object]) -> None:
    with pytest.raises(InputError, match=f"config.yaml embedding.{next(iter(bad))}"):
        EmbeddingParams(**bad)


# --- the index ----------------------------------------------------------------------------------------------------


def test_the_index_lists_usable_slides_and_only_current_files(tmp_path: Path) -> None:
    rows = make_cohort(tmp_path, slides=3)
    done = run_batch(stub_stage(tmp_path), rows, tmp_path / "batch.tsv")
    stale = read_bag(bag_path(tmp_path, 20))  # of a magnification that the configuration had before
    write_bag(bag_path(tmp_path, 40), replace(stale, source=replace(stale.source, magnification=40.0, digest="old")))
    done[1] = replace(done[1], status="failed", reason="broken")
    records = collect_bags(tmp_path, "tiny", done)
    assert {(r.slide_id, r.case_id, r.magnification) for r in records} == {
        ("s0", "c0", 20), ("s0", "c0", 10), ("s2", "c2", 20), ("s2", "c2", 10),
    }  # fmt: skip
    assert {(r.um_per_px, r.weights) for r in records} == {(0.5, "random"), (1.0, "random")}
    write_index(layout.features_index(tmp_path, "tiny"), records)
    for record in read_index(layout.features_index(tmp_path, "tiny")):
        bag = read_bag(record.path)
        assert record.n_tiles == len(bag.features) and record.digest == bag.source.digest


def test_a_file_that_went_missing_is_not_passed_over(tmp_path: Path) -> None:
    rows = make_cohort(tmp_path)
    done = run_batch(stub_stage(tmp_path), rows, tmp_path / "batch.tsv")
    bag_path(tmp_path, 10).unlink()
    with pytest.raises(FormatError, match=r"slide 's0' are incomplete.*forcerun embed_tiles"):
        collect_bags(tmp_path, "tiny", done)
    bag_path(tmp_path, 20).unlink()
    with pytest.raises(FormatError, match="slide 's0' are incomplete"):
        collect_bags(tmp_path, "tiny", done)


# --- killed -------------------------------------------------------------------------------------------------------


def embed_in_a_process(results: Path, seconds: float) -> subprocess.Popen[str]:
    """Embed; each batch says so before its `seconds` of work."""
    command = [sys.executable, "-m", "tests.unit.pipeline.embedding_cohort", str(results), str(seconds)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)


def feature_files(results: Path) -> dict[Path, bytes]:
    found = (results / "features").rglob("*")
    files = [path for path in found if path.is_file() and (path.suffix == ".h5" or path.name.startswith("."))]
    return {path.relative_to(results): path.read_bytes() for path in files}


@pytest.mark.parametrize("trials", [1, pytest.param(5, marks=pytest.mark.full)])
def test_killed_at_any_moment_and_run_again(tmp_path: Path, trials: int) -> None:
    undisturbed = tmp_path / "undisturbed"
    make_cohort(undisturbed, slides=3, seed=11, stain="vahadane")
    process = embed_in_a_process(undisturbed, 0)
    batches = process.communicate(timeout=60)[0].count("batch")
    assert process.returncode == 0 and batches >= 6
    wanted = feature_files(undisturbed)
    assert len(wanted) == 6
    for trial in range(trials):
        results = tmp_path / f"trial{trial}"
        make_cohort(results, slides=3, seed=11, stain="vahadane")
        process = embed_in_a_process(results, 0.03)
        while not process.stdout.readline().startswith("batch"):
            pass
        for _ in range(random.randrange(batches - 1)):
            process.stdout.readline()
        time.sleep(random.uniform(0, 0.01))  # the last batch is never reached: its sleep comes first
        process.send_signal(signal.SIGKILL)
        process.wait()
        left = {path: content for path, content in feature_files(results).items() if not path.name.startswith(".")}
        for path, content in left.items():
            assert content == wanted[path], f"{path} is under its final name but not whole"
        assert len(left) < len(wanted)
        run_batch(
            stub_stage(results, "vahadane"),
            {f"s{i}": BatchRow(f"s{i}", "c", "ok", "stain", digest=f"stain-s{i}") for i in range(3)},
            results / "batch.tsv",
        )
        assert feature_files(results) == wanted
