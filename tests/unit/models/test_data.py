"""Bags, expression and labels as batches: places, masks, groups, resampling, what is lacking."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.data import Cohort, Collator, Sample, array_digest, fixed_length_rows, samples_of, targets_of
from models.survival import Intervals
from pipeline.contracts.errors import FormatError, InputError
from pipeline.contracts.features import read_bag
from pipeline.contracts.genes import read_genes
from pipeline.contracts.tasks import Labels, read_labels
from tests.toy_cohort import GRADE, SURVIVAL, SYMBOLS, WIDTH, make_toy

BOTH = frozenset({"slides", "genes"})


@pytest.fixture
def opened(tmp_path):
    toy = make_toy(n=8)
    del toy.rna["C02"]
    toy.slides = {slide: value for slide, value in toy.slides.items() if value[0] not in ("C02", "C05")}
    inputs = toy.write(tmp_path)
    return toy, inputs, Cohort(inputs.features_index, None, inputs.expression)


def test_lacking_names_every_modality(opened):
    _, _, cohort = opened
    assert cohort.lacking("C00", BOTH) == ""
    assert cohort.lacking("C02", BOTH) == "no usable slide at 10x and no RNA"
    assert cohort.lacking("C05", BOTH) == "no usable slide at 10x"
    assert cohort.lacking("C05", {"genes"}) == ""


def test_batch_holds_every_slide_of_a_case_in_place(opened):
    toy, inputs, cohort = opened
    selection = read_genes(inputs.genes_path(0))
    batch = Collator(cohort, BOTH, selection, ("tme", "tumour"))([Sample("C01"), Sample("C00")])
    slides = [sid for sid, value in sorted(toy.slides.items()) if value[0] == "C00"]
    assert len(slides) == 2
    at = 0
    for number, slide_id in enumerate(slides):
        _, features, cell = toy.slides[slide_id]
        rows = slice(at, at + len(features))
        np.testing.assert_array_equal(batch.features[1, rows], features.astype(np.float32))
        np.testing.assert_array_equal(batch.cell[1, rows], cell - cell.min(axis=0))
        np.testing.assert_array_equal(batch.coords[1, rows], cell * 448)
        assert (batch.slide[1, rows] == number).all() and batch.mask[1, rows].all()
        at += len(features)
    short = len(toy.slides["C01-S0"][1])
    assert batch.mask[0].sum() == short and not batch.mask[0, short:].any()
    assert (batch.slide[0, short:] == -1).all() and not batch.features[0, short:].any()
    assert batch.case_ids == ("C01", "C00") and batch.has_slides.all() and batch.has_genes.all()
    values = (toy.rna["C00"].astype(np.float32) - selection.mean) / selection.std
    np.testing.assert_allclose(batch.genes["tumour"][1], values[:5], rtol=1e-5)
    np.testing.assert_allclose(batch.genes["tme"][1], values[5:9], rtol=1e-5)
    assert set(batch.genes) == {"tumour", "tme"}


def test_a_model_without_slides_loads_none(opened):
    _, inputs, cohort = opened
    batch = Collator(cohort, {"genes"}, read_genes(inputs.genes_path(0)), ("all",))([Sample("C05"), Sample("C00")])
    assert batch.features is None and batch.mask is None and batch.genes["all"].shape == (2, len(SYMBOLS))
    assert not batch.has_slides.any()


def test_cache_or_not_gives_the_same(opened):
    _, inputs, cohort = opened
    frugal = Cohort(inputs.features_index, 10, inputs.expression, cache_bytes=0)
    for _ in range(2):
        one, other = (Collator(c, {"slides"})([Sample("C00"), Sample("C03")]) for c in (cohort, frugal))
        assert torch.equal(one.features, other.features)
    assert not frugal._cache and cohort._cache


def test_a_magnification_without_bags_leaves_every_case_lacking(opened):
    _, inputs, _ = opened
    cohort = Cohort(inputs.features_index, 20)
    assert cohort.lacking("any case", {"slides"}) == "no usable slide at 20x"


@pytest.mark.parametrize(
    ("tiles", "first", "last"),
    [
        (3000, [0, 1, 2, 4, 5, 6, 7, 8], [2996, 2998, 2999]),
        (3750, [0, 2, 3, 4, 6, 8, 9, 10], []),
        (5000, [0, 2, 4, 6], []),
    ],
)
def test_thinning_vectors_of_the_specification(tiles, first, last):
    rows = fixed_length_rows(tiles, 2500)
    assert rows[: len(first)].tolist() == first
    assert not last or rows[-len(last) :].tolist() == last


def test_repeating_vector_of_the_specification():
    counts = np.bincount(fixed_length_rows(900, 2500))
    assert (counts[:700] == 3).all() and (counts[700:] == 2).all() and len(counts) == 900
    assert fixed_length_rows(1, 5).tolist() == [0] * 5
    assert fixed_length_rows(4, 4).tolist() == [0, 1, 2, 3]


def test_reference_samples_are_slides_sorted_by_column_then_row(opened):
    toy, _, cohort = opened
    samples = samples_of(cohort, ["C00", "C01"], per_slide=True)
    assert samples == [Sample("C00", "C00-S0"), Sample("C00", "C00-S1"), Sample("C01", "C01-S0")]
    batch = Collator(cohort, {"slides"}, fixed_length=16)(samples)
    assert batch.features.shape == (3, 16, WIDTH) and batch.mask.all() and (batch.slide == 0).all()
    _, features, cell = toy.slides["C00-S1"]
    order = sorted(range(len(cell)), key=lambda k: (cell[k, 0], cell[k, 1]))
    expected = features[[order[k % len(order)] for k in range(16)]]
    np.testing.assert_array_equal(batch.features[1], expected.astype(np.float32))


def test_targets_use_the_folds_classes_and_intervals(opened):
    _, inputs, _ = opened
    labels = read_labels(inputs.cases, GRADE)
    assert targets_of(["C02", "C00"], labels, classes=("G4", "G2")).label.tolist() == [0, 1]
    outcome = read_labels(inputs.cases, SURVIVAL)
    targets = targets_of(["C01", "C00"], outcome, intervals=Intervals((outcome.time["C01"],), 1e4))
    assert targets.event.tolist() == [0, 1]
    assert targets.interval.tolist() == [1, int(outcome.time["C00"] >= outcome.time["C01"])]


def test_array_digest_sees_shape_dtype_and_content():
    a = np.arange(6.0)
    assert array_digest(a) == array_digest(a.copy()[::1])
    assert len({array_digest(v) for v in (a, a.reshape(2, 3), a.astype(np.float32), a + 1)}) == 4


class TestPair:
    """Two magnifications of each slide, the finer linked to the coarser."""

    @pytest.fixture
    def inputs(self, tmp_path):
        return make_toy(n=8, pair=True).write(tmp_path)

    def test_every_tile_lies_in_its_parent(self, inputs):
        cohort = Cohort(inputs.features_index, magnifications=2)
        assert cohort.magnification == (20, 10)
        batch = Collator(cohort, {"slides"})([Sample("C01"), Sample("C00")])
        coarser = batch.coarser
        assert batch.case_ids == coarser.case_ids and coarser.coarser is None and not coarser.has_genes.any()
        alone = Collator(Cohort(inputs.features_index, 10), {"slides"})([Sample("C01"), Sample("C00")])
        for name in ("features", "mask", "slide", "cell", "coords"):
            assert torch.equal(getattr(coarser, name), getattr(alone, name)), name
        assert (batch.parent[batch.mask] >= 0).all() and (batch.parent[~batch.mask] == -1).all()
        row = torch.arange(2)[:, None].expand_as(batch.parent)[batch.mask]
        parents = batch.parent[batch.mask]
        assert batch.slide.max() == 1 and torch.equal(batch.slide[batch.mask], coarser.slide[row, parents])
        assert torch.equal(batch.coords[batch.mask] // 896, coarser.coords[row, parents] // 448)

    def test_a_slide_without_one_of_them_is_not_usable(self, inputs):
        index = inputs.features_index
        kept = [line for line in index.read_text().splitlines() if not ("C03-S0" in line and "10x" in line)]
        index.write_text("\n".join(kept) + "\n")
        cohort = Cohort(index, (20, 10))
        assert cohort.lacking("C03", {"slides"}) == "no usable slide at 20x and 10x" and not cohort.lacking(
            "C01", {"slides"}
        )
        digests = cohort.slide_digests("C00")
        assert [len(row) for row in digests] == [3, 3] and len({tuple(row) for row in digests}) == 2

    def test_one_magnification_is_not_two(self, tmp_path):
        with pytest.raises(InputError, match="the model reads 2 magnifications, here is 10x"):
            Cohort(make_toy(n=4).write(tmp_path).features_index, magnifications=2)

    def test_links_that_skip_a_magnification_are_refused(self, inputs, monkeypatch):
        real = read_bag

        def between(path):
            bag = real(path)
            return replace(bag, source=replace(bag.source, slide_magnifications=(20.0, 15.0, 10.0)))

        monkeypatch.setattr("models.data.read_bag", between)
        with pytest.raises(InputError, match="the tiles of 20x lie in those of 15x, not of 10x"):
            Collator(Cohort(inputs.features_index, (20, 10)), {"slides"})([Sample("C01")])

    def test_links_to_tiles_that_are_not_there_are_refused(self, inputs, monkeypatch):
        monkeypatch.setattr(
            "models.data.read_bag", lambda path: replace(read_bag(path), parent=read_bag(path).parent + 9)
        )
        with pytest.raises(FormatError, match="names parents that"):
            Collator(Cohort(inputs.features_index, (20, 10)), {"slides"})([Sample("C01")])

    def test_reference_samples_have_equal_lengths_and_no_links(self, inputs):
        batch = Collator(Cohort(inputs.features_index, (20, 10)), {"slides"}, fixed_length=16)(
            [Sample("C00", "C00-S1")]
        )
        assert batch.features.shape == batch.coarser.features.shape == (1, 16, WIDTH)
        assert (batch.parent == -1).all() and batch.mask.all()

    def test_moving_a_batch_moves_both(self, inputs):
        batch = Collator(Cohort(inputs.features_index, (20, 10)), {"slides"})([Sample("C01")])
        moved = replace(batch, lesson={"a": torch.zeros(1)}).to(torch.device("meta"))
        assert moved.coarser.features.is_meta and moved.parent.is_meta and moved.lesson["a"].is_meta


def test_targets_say_which_samples_share_a_patient():
    labels = Labels(SURVIVAL, time={"a": 1.0, "b": 2.0, "c": 3.0}, event={"a": 1, "b": 0, "c": 1})
    intervals = Intervals((1.5,), 3.0)
    assert targets_of(["c", "a"], labels, intervals=intervals).patient is None
    shared = replace(labels, patient={"a": "p", "c": "p"})
    assert targets_of(["c", "b", "a"], shared, intervals=intervals).patient.tolist() == [1, 0, 1]
