"""The feature file: round trip, the attributes other tools read, same bytes, ways of being damaged."""

import os
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.contracts.errors import FormatError
from pipeline.contracts.features import (
    Bag,
    BagRecord,
    BagSource,
    BagSummary,
    read_bag,
    read_index,
    read_summary,
    verify_bag,
    write_bag,
    write_index,
)  # fmt: skip

SOURCE = BagSource(
    slide_id="s-1", encoder="tiny", encoder_name="resnet10t", weights="random", weights_digest="ab",
    magnification=20,
    size_px=224, size_level0_px=(448.4, 448.9), um_per_px=0.5, achieved_um_per_px=(0.5001, 0.4999),
    level0_um_per_px=(0.25, 0.2498), level0_magnification=40, level0_size_px=(5000, 3001), stain="vahadane",
    savetodir="features/tiny/20x", revision=1, digest="d1", slide_magnifications=(20, 10),
)  # fmt: skip


def make_bag(n: int, width: int = 7, failed: int = 2, **changes: object) -> Bag:
    rng = np.random.default_rng()
    return Bag(
        features=rng.normal(size=(n, width)).astype(np.float32),
        coords=rng.integers(0, 2**40, (n, 2)),
        cell=rng.integers(0, 1000, (n, 2)).astype(np.int32),
        parent=rng.integers(-1, 50, n),
        tissue_fraction=rng.random(n).astype(np.float32),
        failed_cells=rng.integers(0, 9, (failed, 2)).astype(np.int32),
        source=replace(SOURCE, **changes),
    )


@pytest.mark.parametrize(("n", "failed"), [(0, 1), (1, 0), (255, 3), (700, 2)])
def test_round_trip(tmp_path: Path, n: int, failed: int) -> None:
    bag = make_bag(n, failed=failed, slide_magnifications=(20.0, 2.5)[:failed])
    write_bag(tmp_path / "a" / "s-1.h5", bag)
    found = read_bag(tmp_path / "a" / "s-1.h5")
    for name in ("features", "coords", "cell", "parent", "tissue_fraction", "failed_cells"):
        np.testing.assert_array_equal(getattr(found, name), getattr(bag, name), err_msg=name)
    assert found.features.dtype == np.float32 and found.coords.dtype == np.int64
    assert found.source == bag.source
    assert read_summary(tmp_path / "a" / "s-1.h5") == BagSummary(bag.source, n, failed)
    assert os.listdir(tmp_path / "a") == ["s-1.h5"]


def test_layout_that_other_tools_read(tmp_path: Path) -> None:
    """The names and types are typed out on purpose: this is the contract, not the code's constants."""
    write_bag(tmp_path / "s.h5", make_bag(600))
    with h5py.File(tmp_path / "s.h5") as file:
        features, coords = file["features"], file["coords"]
        assert features.dtype == np.float32 and 256 <= features.chunks[0] <= 512
        assert dict(features.attrs) == {"name": "s-1", "savetodir": "features/tiny/20x", "encoder": "tiny"}
        whole = {key: coords.attrs[key] for key in (
            "patch_size", "patch_size_level0", "level0_magnification", "target_magnification", "overlap",
            "level0_width", "level0_height")}  # fmt: skip
        assert whole == {
            "patch_size": 224, "patch_size_level0": 449, "level0_magnification": 40,
            "target_magnification": 20,
            "overlap": 0, "level0_width": 5000, "level0_height": 3001,
        }  # fmt: skip
        assert all(np.issubdtype(type(value), np.integer) for value in whole.values())
        assert coords.attrs["name"] == "s-1" and coords.attrs["savetodir"] == "features/tiny/20x"
        assert coords.attrs["um_per_px"] == 0.5 and tuple(coords.attrs["achieved_um_per_px"]) == (
            0.5001,
            0.4999,
        )
        assert {"tissue_fraction", "parent", "failed_cells"} <= set(file)


def test_fractional_magnification_is_kept(tmp_path: Path) -> None:
    write_bag(tmp_path / "s.h5", make_bag(3, magnification=2.5))
    with h5py.File(tmp_path / "s.h5") as file:
        assert file["coords"].attrs["target_magnification"] == 2.5
    assert read_bag(tmp_path / "s.h5").source.magnification == 2.5


def test_same_bag_same_bytes(tmp_path: Path) -> None:
    bag = make_bag(300)
    write_bag(tmp_path / "one" / "s.h5", bag)
    write_bag(tmp_path / "another" / "s.h5", bag)
    assert (tmp_path / "one" / "s.h5").read_bytes() == (tmp_path / "another" / "s.h5").read_bytes()


def test_half_precision_on_disk_reads_as_single(tmp_path: Path) -> None:
    bag = make_bag(5)
    write_bag(tmp_path / "s.h5", bag, dtype="float16")
    with h5py.File(tmp_path / "s.h5") as file:
        assert file["features"].dtype == np.float16
    found = read_bag(tmp_path / "s.h5").features
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, bag.features, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_values_that_the_file_cannot_hold_leave_no_file(tmp_path: Path, value: float) -> None:
    bag = make_bag(4)
    bag.features[2, 1] = value
    with pytest.raises(ValueError, match="finite"), np.errstate(over="ignore"):
        write_bag(tmp_path / "s.h5", bag, dtype="float16")
    assert not list(tmp_path.iterdir())


def test_arrays_of_other_lengths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"parent has shape \(3,\), expected \(4,\)"):
        write_bag(tmp_path / "s.h5", replace(make_bag(4), parent=np.zeros(3, np.int64)))


def test_verify_wants_the_same_digest_and_an_intact_file(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    assert verify_bag(path, "d1") is None
    write_bag(path, make_bag(700, width=40))
    assert verify_bag(path, "d1") == BagSummary(SOURCE, 700, 2)
    assert verify_bag(path, "d2") is None
    whole = path.read_bytes()
    for length in np.random.default_rng().integers(0, len(whole) - 1, 20):
        path.write_bytes(whole[:length])
        assert verify_bag(path, "d1") is None, f"cut to {length} of {len(whole)} bytes"
        with pytest.raises(FormatError, match="Fix"):
            read_bag(path)


def test_one_flipped_byte_among_the_features_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    bag = make_bag(700, width=40)
    write_bag(path, bag)
    whole = bytearray(path.read_bytes())
    place = whole.find(bag.features[300].tobytes())
    assert place > 0
    whole[place + 3] ^= 1
    path.write_bytes(whole)
    assert verify_bag(path, "d1") is None


def test_features_changed_to_nan_behind_our_back(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    write_bag(path, make_bag(700))
    with h5py.File(path, "r+") as file:
        file["features"][650, 2] = np.nan
    assert verify_bag(path, "d1") is None


def test_unknown_version_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    write_bag(path, make_bag(3))
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = 99
    with pytest.raises(FormatError, match="99"):
        read_bag(path)
    with h5py.File(path, "w") as file:
        file["features"] = np.zeros((3, 4))
    with pytest.raises(FormatError, match="features"):
        read_bag(path)
    assert verify_bag(path, "d1") is None


def test_index_round_trip_is_sorted_and_relocatable(tmp_path: Path) -> None:
    folder = tmp_path / "features" / "tiny"
    records = [
        BagRecord(slide, case, mag, folder / f"{mag:g}x" / f"{slide}.h5", 3, 10 / mag, "d", "random")
        for slide, case, mag in [("b", "c1", 10.0), ("a", "c2", 2.5), ("b", "c1", 20.0)]
    ]
    write_index(folder / "index.tsv", records)
    assert read_index(folder / "index.tsv") == [records[1], records[2], records[0]]
    assert str(tmp_path) not in (folder / "index.tsv").read_text()
    (tmp_path / "moved").mkdir()
    (folder / "index.tsv").rename(tmp_path / "moved" / "index.tsv")
    assert read_index(tmp_path / "moved" / "index.tsv")[1].path == tmp_path / "moved" / "20x" / "b.h5"


def test_empty_index(tmp_path: Path) -> None:
    write_index(tmp_path / "index.tsv", [])
    assert read_index(tmp_path / "index.tsv") == []
