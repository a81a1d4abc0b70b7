"""The step benchmark: both forms are the same maths, and a measurement has its figures."""

from __future__ import annotations

import pytest
import torch

from benchmarks.model_steps import DIRECT, OURS, TABULATED, build, measured_apart, one_case


@pytest.mark.parametrize("name", TABULATED)
def test_both_forms_give_the_same_logits(monkeypatch, name):
    monkeypatch.setattr("models.deformable.EXACT_PAIRS_PER_CHUNK", 2**19)  # build changes them; this brings them back
    monkeypatch.setattr("models.density_peaks.DISTANCES_PER_CHUNK", 9_000_000)
    torch.manual_seed(1)
    with torch.no_grad():
        models = [build(name, form, 500).eval() for form in (OURS, DIRECT)]
        batch = one_case(500, models[0].magnifications)
        ours, direct = (model(batch).logits for model in models)
    assert not torch.equal(ours, direct)
    torch.testing.assert_close(ours, direct, rtol=0, atol=1e-5)


def test_a_measurement_in_its_own_process():
    figures = measured_apart("subspace", OURS, 12)
    assert figures["seconds"] > 0 and figures["MiB"] >= 0
