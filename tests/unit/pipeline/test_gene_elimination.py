"""Recursive elimination on inner products keeps what scikit-learn's RFECV keeps, and sees the cases it is given."""

import numpy as np
import pytest

from pipeline.contracts.errors import InputError
from pipeline.genes.elimination import eliminate, survival_classes
from pipeline.genes.squared_hinge import Machines


def data(n_cases, n_genes, n_classes, seed=None):
    draw = np.random.default_rng(seed)
    codes = draw.permutation(np.arange(n_cases) % n_classes)
    values = draw.normal(4, 1, (n_cases, n_genes))
    values[:, :5] += codes[:, None] * draw.normal(0, 0.6, 5)
    return values, codes, [f"class{code}" for code in codes]


@pytest.mark.parametrize(("n_cases", "n_genes", "n_classes"), [(40, 53, 2), (40, 90, 4), (80, 21, 2)])
def test_the_selection_is_that_of_sklearn_solved_to_the_end(n_cases, n_genes, n_classes):
    """Inner folds hold out 8 or 16 cases each: scikit-learn compares sums of accuracies to the last bit, and only such
    accuracies add up without rounding, so that equal ones are found equal. Fixed data: about once in 75 draws two genes
    have weights that LIBLINEAR's last digits put the other way round."""
    from sklearn.feature_selection import RFECV
    from sklearn.svm import LinearSVC

    values, codes, labels = data(n_cases, n_genes, n_classes, seed=n_genes)
    found = eliminate(values, labels, 0.05, 5, "here")
    svm = LinearSVC(C=1, loss="squared_hinge", tol=1e-10, max_iter=1_000_000, random_state=42)
    plain = RFECV(svm, step=0.05, cv=5, scoring="accuracy").fit(values, codes)
    np.testing.assert_array_equal(found.sizes[::-1], plain.cv_results_["n_features"])
    np.testing.assert_allclose(found.scores[::-1], plain.cv_results_["mean_test_score"], atol=1e-12)
    np.testing.assert_array_equal(found.kept, np.flatnonzero(plain.support_))


def test_inner_folds_never_part_a_patient():
    """Against scikit-learn with the same groups, on fixed data."""
    from sklearn.feature_selection import RFECV
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.svm import LinearSVC

    values, codes, labels = data(44, 30, 2, seed=3)
    patients = [f"p{k // 2 if k < 30 else k}" for k in range(44)]
    found = eliminate(values, labels, 0.1, 4, "here", patients)
    svm = LinearSVC(C=1, loss="squared_hinge", tol=1e-10, max_iter=1_000_000, random_state=42)
    plain = RFECV(svm, step=0.1, cv=StratifiedGroupKFold(4), scoring="accuracy").fit(values, codes, groups=patients)
    np.testing.assert_allclose(found.scores[::-1], plain.cv_results_["mean_test_score"], atol=1e-12)
    np.testing.assert_array_equal(found.kept, np.flatnonzero(plain.support_))
    assert found.scores != eliminate(values, labels, 0.1, 4, "here").scores
    with pytest.raises(InputError, match="a: 2, b: 4"):
        eliminate(values[:8], list("aaaabbbb"), 0.1, 4, "here", ["p", "p", "q", "q", "r", "s", "t", "u"])


@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_machine_stands_at_the_optimum(n_classes):
    values, codes, _ = data(31, 120, n_classes)
    kernel = values @ values.T
    machines = Machines(codes, penalty=0.7)
    weak = machines.fit(kernel[:, :] * 0.5)  # a fit to other numbers: the next starts from its margins
    beta = machines.fit(kernel)
    assert not np.allclose(weak, beta)
    for k in range(beta.shape[1]):
        weights, intercept = values.T @ beta[:, k], beta[:, k].sum()
        signs = machines.signs[:, k]
        slack = np.maximum(0, 1 - signs * (values @ weights + intercept))
        np.testing.assert_allclose(weights, values.T @ (2 * 0.7 * slack * signs), atol=1e-8)  # the gradient is 0
        np.testing.assert_allclose(intercept, (2 * 0.7 * slack * signs).sum(), atol=1e-8)
    np.testing.assert_array_equal(machines.predict(kernel, beta), codes)  # more genes than cases: separable


def test_of_equally_good_sizes_the_smallest_and_of_equal_genes_the_first():
    labels = ["a", "b"] * 10
    values = np.where(np.array(labels) == "a", 1.0, -1.0)[:, None] * np.ones(9)
    found = eliminate(values, labels, 0.3, 4, "here")
    assert found.sizes == (9, 7, 5, 3, 1)
    assert found.scores == (1.0,) * 5
    assert list(found.kept) == [0]


def test_classes_that_inner_folds_cannot_share_are_refused():
    values = np.zeros((9, 4))
    with pytest.raises(InputError, match=r"a: 6, b: 3.*genes.rfe_folds"):
        eliminate(values, ["a"] * 6 + ["b"] * 3, 0.05, 5, "here")
    with pytest.raises(InputError, match="there are none"):
        eliminate(values[:0], [], 0.05, 5, "here")


def test_survival_becomes_early_death_or_known_survival():
    outcomes = {"a": (1, 1), "b": (2, 1), "c": (3, 1), "d": (9, 0), "e": (1.5, 0), "f": (2, 0)}
    assert survival_classes(outcomes) == {"a": "early", "b": "early", "c": "late", "d": "late", "f": "late"}
    assert survival_classes({"a": (1, 0)}) == {}
