"""Task losses: the specification's vectors, hand-worked cases, gradients against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.batch import Targets
from models.losses import Objective, cross_entropy, fit_class_weights, interval_likelihood

LOGITS = torch.tensor([[0.2, -0.5, 0.1, 0.4], [-1, 0.3, 0.8, -0.2], [0, 0, 0, 0]], dtype=torch.float64)
INTERVAL, EVENT = torch.tensor([0, 2, 3]), torch.tensor([1, 0, 1])


def mean(pair):
    return pair[0] / pair[1]


def test_survival_vectors():
    each = [
        float(mean(interval_likelihood(LOGITS[k : k + 1], INTERVAL[k : k + 1], EVENT[k : k + 1]))) for k in range(3)
    ]
    assert each == pytest.approx([0.5981389, 2.3387175, 2.7725887], abs=1e-7)
    assert float(mean(interval_likelihood(LOGITS, INTERVAL, EVENT))) == pytest.approx(1.9031483, abs=1e-7)
    assert float(mean(interval_likelihood(LOGITS, INTERVAL, EVENT, alpha=0.15))) == pytest.approx(1.7862126, abs=1e-7)


def test_all_censored_and_one_interval():
    logits = torch.tensor([[0.3], [-2.0]])
    loss = mean(interval_likelihood(logits, torch.tensor([0, 0]), torch.tensor([0, 0])))
    torch.testing.assert_close(loss, -torch.log(1 - torch.sigmoid(logits)).mean())


def test_impossible_probabilities_are_clamped():
    logits = torch.tensor([[300.0, 300.0], [-300.0, -300.0]], requires_grad=True)
    top, _ = interval_likelihood(logits, torch.tensor([1, 1]), torch.tensor([1, 1]))
    assert float(top.detach()) == pytest.approx(2 * -np.log(1e-7), rel=1e-5)
    top.backward()
    assert torch.isfinite(logits.grad).all()


def numeric_gradient(function, x, step=1e-6):
    gradient = torch.zeros_like(x)
    for i in range(x.numel()):
        ends = []
        for sign in (1, -1):
            moved = x.clone()
            moved.view(-1)[i] += sign * step
            ends.append(float(function(moved)))
        gradient.view(-1)[i] = (ends[0] - ends[1]) / (2 * step)
    return gradient


@pytest.mark.parametrize(("kind", "smoothing"), [("survival", 0), ("classification", 0), ("classification", 0.1)])
def test_gradients_against_finite_differences(kind, smoothing):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    targets = Targets(label=torch.tensor([0, 2, 1, 1, 0]))
    weights = torch.tensor([1.0, 2.5, 4.0])
    if kind == "survival":
        targets = Targets(interval=torch.tensor([0, 2, 1, 1, 0]), event=torch.tensor([1, 0, 1, 0, 0]))
    objective = Objective(kind, weights if kind == "classification" else None, smoothing)
    variable = logits.clone().requires_grad_()
    mean(objective(variable, targets)).backward()
    expected = numeric_gradient(lambda x: mean(objective(x, targets)), logits)
    torch.testing.assert_close(variable.grad, expected, rtol=1e-6, atol=1e-8)


def test_cross_entropy_is_the_weighted_mean_over_any_batches():
    generator = torch.Generator().manual_seed(1)
    logits, label = torch.randn(9, 4, generator=generator), torch.randint(0, 4, (9,), generator=generator)
    weight = torch.tensor([1.0, 4.15, 2.93, 2.43])
    parts = [cross_entropy(logits[s], label[s], weight) for s in (slice(0, 2), slice(2, 9))]
    total = sum(p[0] for p in parts) / sum(p[1] for p in parts)
    torch.testing.assert_close(total, torch.nn.functional.cross_entropy(logits, label, weight))


def test_label_smoothing_by_hand():
    """Specification of MIRROR, section 10: 0.9 (-ln p_y) + 0.1 times the mean over classes."""
    logits, label = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 0.5]]), torch.tensor([0, 2])
    nlog = -logits.log_softmax(dim=1)
    expected = [0.9 * row[y] + 0.1 * row.mean() for row, y in zip(nlog, label, strict=True)]
    weight = torch.tensor([1.0, 2.0, 3.0])
    top, bottom = Objective("classification", weight, 0.1)(logits, Targets(label=label))
    torch.testing.assert_close(top / bottom, (1 * expected[0] + 3 * expected[1]) / 4)


def test_class_weights_are_largest_count_over_count():
    codes = np.repeat([0, 1, 2, 3], [1195, 288, 409, 495])
    np.testing.assert_allclose(fit_class_weights(codes, 4), [1.0, 4.15, 2.92, 2.41], atol=0.01)
    assert fit_class_weights(np.array([0, 0, 2]), 4).tolist() == [1.0, 0.0, 2.0, 0.0]
