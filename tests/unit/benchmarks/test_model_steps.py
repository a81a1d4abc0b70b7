"""The step benchmark: its forms are the same maths, it takes every registered model, a measurement has its figures."""

from __future__ import annotations

import pytest
import torch

from benchmarks.model_steps import (
    DIRECT,
    DIRECTLY,
    MIRROR,
    OURS,
    PREDICTION,
    RELEASED,
    STEP,
    TABULATED,
    Series,
    apart,
    build,
    measure,
    one_case,
    predicted,
    trained,
)
from models.full_attention import FullAttention
from models.registry import MODELS, model_class
from models.transmil import NystromAttention


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """Building a form changes this process; this brings it back."""
    monkeypatch.setattr("models.deformable.EXACT_PAIRS_PER_CHUNK", 2**19)
    monkeypatch.setattr("models.density_peaks.DISTANCES_PER_CHUNK", 9_000_000)
    for attention in (FullAttention, NystromAttention):
        monkeypatch.setattr(attention, "forward", attention.forward)


@pytest.mark.parametrize("name", [*TABULATED, "mirror"])
@torch.no_grad()
def test_both_forms_give_the_same_logits(name):
    torch.manual_seed(1)
    batch = one_case(name, 500)
    ours, direct = (build(name, form, 500).eval()(batch).logits for form in (OURS, DIRECT))
    assert not torch.equal(ours, direct)
    torch.testing.assert_close(ours, direct, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_can_be_measured_and_takes_bfloat16(name):
    model, batch = build(name, OURS, 9), one_case(name, 9)
    predicted(model.eval(), batch)
    if not model.fits_itself:
        with torch.autocast("cpu", torch.bfloat16):
            trained(model.train(), batch, torch.optim.SGD(model.parameters()))
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_the_released_form_is_reference_mode():
    config = build(MIRROR, RELEASED, 12).config
    released = model_class(MIRROR).reference_params
    assert (config.attention, config.fixed_length) == (released["attention"], 12)


def test_a_measurement_in_its_own_process():
    figures = apart(measure, "subspace", OURS, STEP, 12)
    assert figures["seconds"] > 0 and figures["MiB"] >= 0


def test_what_goes_beyond_a_limit_is_said_and_not_run():
    assert set(DIRECTLY) <= set(MODELS)
    series = Series("abmil", DIRECT, PREDICTION, {"MiB": 3000.0, "seconds": 50.0})
    series.measured[10] = {"seconds": 0.5, "MiB": 100.0}
    assert series.exponent("seconds") is None and series.expected("MiB", 1000) == 0
    series.measured[20] = {"seconds": 2.0, "MiB": 400.0}
    assert series.exponent("seconds") == pytest.approx(2)
    assert series.at(60) == "not run: would need 4 GB"
    series.limits["MiB"] = 1e9
    assert series.at(110) == "not run: would take 60 s"


def test_a_step_of_mirror_costs_what_it_draws():
    series = Series(MIRROR, DIRECT, STEP, {"MiB": 1e9, "seconds": 1e9})
    series.measured = {500: {"MiB": 100.0}, 2500: {"MiB": 900.0}}
    assert series.expected("MiB", 20_000) == pytest.approx(900)
    series.measured = {10_000: {"MiB": 900.0}, 20_000: {"MiB": 800.0}}
    assert series.expected("MiB", 40_000) == 800
