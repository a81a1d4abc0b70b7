"""Intervals, risk, Breslow and the C-index against other packages, hand-worked cases and the specification."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lifelines.utils import concordance_index
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.metrics import concordance_index_censored
from sksurv.util import Surv

from models.survival import (
    Intervals,
    NoComparablePairError,
    breslow,
    comparable,
    concordance,
    fit_intervals,
    risk_of_survival,
    survival_of_hazards,
)


class TestIntervals:
    def test_edges_are_quartiles_of_event_times(self):
        time = np.array([10.0, 20, 30, 40, 50, 999])
        event = np.array([1, 1, 1, 1, 1, 0])
        intervals = fit_intervals(time, event, 4)
        assert intervals.edges == (20.0, 30.0, 40.0)
        assert intervals.ends == (20.0, 30.0, 40.0, 999.0)
        assert intervals.of(np.array([0, 19.9, 20, 35, 40, 1e9])).tolist() == [0, 0, 1, 2, 3, 3]

    def test_censored_times_do_not_move_edges(self):
        rng = np.random.default_rng(0)
        time, event = rng.exponential(100, 60), (np.arange(60) % 3 == 0).astype(int)
        other = np.where(event == 1, time, rng.exponential(5000, 60))
        assert fit_intervals(time, event, 5).edges == fit_intervals(other, event, 5).edges

    @pytest.mark.parametrize(("events", "expected"), [(1, 1), (2, 2), (3, 3), (4, 4), (9, 4)])
    def test_few_events_give_fewer_intervals(self, events, expected):
        time = np.arange(1.0, 21)
        assert len(fit_intervals(time, (np.arange(20) < events).astype(int), 4)) == expected

    def test_every_interval_holds_an_event_even_with_ties(self):
        rng = np.random.default_rng(1)
        for _ in range(200):
            time = rng.integers(0, 6, size=int(rng.integers(1, 15))).astype(float)
            event = rng.integers(0, 2, size=len(time))
            event[0] = 1
            intervals = fit_intervals(time, event, 4)
            assert np.all(np.diff(intervals.edges) > 0)
            assert set(intervals.of(time[event == 1])) == set(range(len(intervals)))

    def test_no_inner_edge(self):
        one = Intervals((), 50.0)
        assert len(one) == 1 and one.ends == (50.0,) and one.of(np.array([1.0, 99.0])).tolist() == [0, 0]


def test_specification_vector():
    logits = torch.tensor([[0.2, -0.5, 0.1, 0.4], [-1, 0.3, 0.8, -0.2], [0, 0, 0, 0]])
    survival = survival_of_hazards(logits)
    expected = [[0.4502, 0.2802, 0.1331, 0.0534], [0.7311, 0.3111, 0.0965, 0.0530], [0.5, 0.25, 0.125, 0.0625]]
    torch.testing.assert_close(survival, torch.tensor(expected), rtol=0, atol=6e-5)
    torch.testing.assert_close(risk_of_survival(survival), torch.tensor([-0.9169, -1.1916, -0.9375]), rtol=0, atol=6e-5)


def test_survival_of_extreme_logits_is_finite():
    survival = survival_of_hazards(torch.tensor([[200.0, -200.0], [-200.0, 200.0]]))
    assert torch.isfinite(survival).all() and (survival[:, 1] <= survival[:, 0]).all()


class TestConcordance:
    def test_specification_vector(self):
        risk, days, censor = (0.9, 0.8, 0.3, 0.5, 0.5, 0.1), (2, 3, 5, 5, 7, 9), np.array([0, 1, 0, 0, 0, 1])
        assert concordance(np.array(risk), np.array(days), 1 - censor) == 0.85
        assert comparable(np.array(days), 1 - censor).sum() == 10
        with pytest.raises(NoComparablePairError):
            concordance(np.array([1.0, 2, 3]), np.array([1, 2, 3]), 1 - np.array([1, 1, 0]))

    @pytest.mark.parametrize(
        ("risk", "time", "event", "expected"),
        [
            ([3, 2, 1], [1, 2, 3], [1, 1, 1], 1.0),
            ([1, 2, 3], [1, 2, 3], [1, 1, 1], 0.0),
            ([1, 1, 1], [1, 2, 3], [1, 1, 1], 0.5),
            ([2, 1], [5, 5], [1, 0], 1.0),  # equal times, only the first has the event
            ([1, 1 + 1e-9], [1, 2], [1, 0], 0.5),  # almost equal risks
            ([9, 1, 5], [2, 2, 3], [1, 1, 0], 0.5),  # equal times with two events are no pair
        ],
    )
    def test_by_hand(self, risk, time, event, expected):
        assert concordance(np.array(risk, float), np.array(time, float), np.array(event)) == expected

    @pytest.mark.parametrize("case", [([1.0], [1.0], [1]), ([1.0, 2], [3.0, 3], [1, 1]), ([], [], [])])
    def test_nothing_to_compare(self, case):
        with pytest.raises(NoComparablePairError):
            concordance(*(np.array(values) for values in case))

    def test_against_other_packages(self):
        rng = np.random.default_rng(2)
        for _ in range(20):
            n = int(rng.integers(5, 60))
            time, event = rng.integers(1, 30, n).astype(float), rng.integers(0, 2, n)
            event[time.argmin()], risk = 1, np.round(rng.normal(size=n), 1)
            ours = concordance(risk, time, event)
            theirs = concordance_index_censored(event == 1, time, risk)[0]
            assert ours == pytest.approx(theirs, abs=1e-12)

    def test_against_lifelines_without_tied_times(self):
        rng = np.random.default_rng(3)
        time, event, risk = rng.permutation(40).astype(float), rng.integers(0, 2, 40), rng.normal(size=40)
        assert concordance(risk, time, event) == pytest.approx(concordance_index(time, -risk, event), abs=1e-12)


def test_breslow_against_scikit_survival():
    rng = np.random.default_rng(4)
    x, time, event = rng.normal(size=(50, 2)), rng.integers(1, 15, 50).astype(float), rng.integers(0, 2, 50)
    model = CoxPHSurvivalAnalysis(ties="breslow").fit(x, Surv.from_arrays(event == 1, time))
    times, hazard = breslow(x @ model.coef_, time, event)
    np.testing.assert_allclose(hazard, model.cum_baseline_hazard_(times), rtol=1e-10)
