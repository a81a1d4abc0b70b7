"""How much of the variance a site explains, against closed forms and other libraries."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pipeline.report.batch_effects import (
    Components,
    association,
    batch_table,
    chance,
    explained,
    overall,
    principal_components,
)


@pytest.fixture
def draw():
    return np.random.default_rng()


def test_components_are_those_of_the_covariance(draw):
    values = draw.normal(3, draw.uniform(0.5, 3, 9), (21, 9))
    found = principal_components(values)
    shares = np.linalg.eigvalsh(np.cov(values.T))[::-1]
    np.testing.assert_allclose(found.shares, shares / shares.sum(), rtol=1e-9)
    np.testing.assert_allclose(found.scores.var(axis=0, ddof=1), shares, rtol=1e-9)
    assert principal_components(np.ones((5, 4))) is None
    assert principal_components(np.ones((1, 4))) is None


def test_explained_is_the_adjusted_share_of_an_analysis_of_variance(draw):
    scores = draw.normal(0, 1, (30, 3))
    levels = ["a"] * 8 + ["b"] * 12 + ["c"] * 10
    scores[:8, 0] += 5
    scores -= scores.mean(axis=0)
    found = explained(Components(scores, np.array([0.5, 0.2, 0.1])), levels)
    for k in range(3):
        f = stats.f_oneway(scores[:8, k], scores[8:20, k], scores[20:, k]).statistic
        epsilon = 2 * (f - 1) / (2 * f + 27)  # with 3 levels and 30 cases
        np.testing.assert_allclose(found[k], max(0, epsilon), rtol=1e-9)
    assert found[0] > 0.2


def test_a_planted_site_is_found_and_a_random_one_is_not(draw):
    site = np.repeat(["x", "y", "z"], 14)
    values = draw.normal(0, 1, (42, 50)) + (site == "x")[:, None] * draw.normal(0, 1, 50)
    components = principal_components(values)
    random = list(draw.permutation(site))
    assert overall(components, site) > 0.15 and chance(components, site) <= 0.01
    assert overall(components, random) < 0.15
    rows = batch_table(components, {"label": random, "site": list(site), "one": ["w"] * 42})
    assert [(row["factor"], row["levels"], row["cases"]) for row in rows] == [("label", 3, 42), ("site", 3, 42)]
    assert rows[0]["with_label"] is None and rows[1]["with_label"] < 0.6
    assert rows[1]["silhouette"] > rows[0]["silhouette"]


def test_single_cases_and_unknown_levels_are_left_out_of_their_factor(draw):
    components = principal_components(draw.normal(0, 1, (10, 6)))
    sites = ["a", "a", "a", "a", "b", "b", "b", "lonely", "", ""]
    (row,) = batch_table(components, {"site": sites})
    assert (row["levels"], row["cases"]) == (2, 7)


def test_association_is_one_for_equal_factors_and_near_zero_for_independent_ones(draw):
    one = list("ab" * 50)
    assert association(one, one) == pytest.approx(1.0)
    assert association(one, list("aabb" * 25)) == 0.0
    assert association(one, ["x"] * 100) == 0.0
