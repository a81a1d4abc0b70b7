"""The step benchmark: both forms are the same maths, and a measurement has its figures."""

from __future__ import annotations

import torch

from benchmarks.model_steps import DIRECT, OURS, build, measured_apart, one_case


def test_both_forms_give_the_same_logits(monkeypatch):
    monkeypatch.setattr("models.deformable.EXACT_PAIRS_PER_CHUNK", 2**19)  # build changes it; this brings it back
    batch = one_case(500)
    with torch.no_grad():
        ours, direct = (build("subspace", form).eval()(batch).logits for form in (OURS, DIRECT))
    assert not torch.equal(ours, direct)
    torch.testing.assert_close(ours, direct, rtol=0, atol=1e-5)


def test_a_measurement_in_its_own_process():
    figures = measured_apart("subspace", OURS, 12)
    assert figures["seconds"] > 0 and figures["MiB"] >= 0
