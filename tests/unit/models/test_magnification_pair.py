"""Losses between magnifications and between teacher and student: by hand, by loops, by finite differences."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Bernoulli, kl_divergence

from models.distillation import feature_distance, hazard_divergence, softened_divergence
from models.magnification_pair import combined, linked_consistency, released_consistency, released_similarity


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


COARSE_SAMPLE = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2])
PARENT = torch.tensor([0, 0, 1, 3, 3, 3, -1, 4, 6, 6, 7, -1])  # coarse tiles 2 and 5 have no child


class TestLinked:
    def test_by_hand(self):
        """Two tiles; (0, 0) and (2, 4) centre to -+(1, 2); children average to (0, 0) and (4, 2): -+(2, 1)."""
        coarse = torch.tensor([[0.0, 0], [2, 4]])
        fine = torch.tensor([[-1.0, 1], [1, -1], [4, 2]])
        loss = linked_consistency(fine, coarse, torch.tensor([0, 0, 1]), torch.tensor([0, 0]), 1)
        assert float(loss) == pytest.approx(1 - 8 / 10)

    def test_against_loops(self):
        coarse, fine = random(8, 5), random(12, 5, seed=1)
        values = []
        for sample in range(3):
            rows = [c for c in range(8) if COARSE_SAMPLE[c] == sample and (c == PARENT).any()]
            if len(rows) < 2:
                continue
            a = coarse[rows] - coarse[rows].mean(dim=0)
            b = torch.stack([fine[c == PARENT].mean(dim=0) for c in rows])
            b = b - b.mean(dim=0)
            values.append(1 - (a * b).sum() / (a.norm() * b.norm()))
        assert len(values) == 2
        got = linked_consistency(fine, coarse, PARENT, COARSE_SAMPLE, 3)
        torch.testing.assert_close(got, torch.stack(values).mean())

    def test_what_agrees_and_what_gains_nothing(self):
        coarse = random(8, 5)
        same = coarse[PARENT.clamp(min=0)]
        assert float(linked_consistency(3 * same + 7, coarse, PARENT, COARSE_SAMPLE, 3)) == pytest.approx(0, abs=1e-9)
        assert float(linked_consistency(-same, coarse, PARENT, COARSE_SAMPLE, 3)) == pytest.approx(2)
        flat = torch.ones_like(coarse)
        assert float(linked_consistency(flat[PARENT.clamp(min=0)], flat, PARENT, COARSE_SAMPLE, 3)) == 1

    def test_without_links_or_with_one(self):
        coarse, fine = random(8, 5).requires_grad_(), random(12, 5, seed=1).requires_grad_()
        for parent in (torch.full_like(PARENT, -1), torch.where(PARENT == 0, 0, -1)):
            loss = linked_consistency(fine, coarse, parent, COARSE_SAMPLE, 3)
            loss.backward()
            assert float(loss.detach()) == 0 and not coarse.grad.any() and not fine.grad.any()

    def test_a_sample_counts_the_same_whatever_is_beside_it(self):
        coarse, fine = random(8, 5), random(12, 5, seed=1)
        one = linked_consistency(fine[:6], coarse[:4], PARENT[:6], COARSE_SAMPLE[:4], 1)
        two = linked_consistency(fine[7:10], coarse[4:7], PARENT[7:10] - 4, COARSE_SAMPLE[4:7] - 1, 1)
        torch.testing.assert_close(linked_consistency(fine, coarse, PARENT, COARSE_SAMPLE, 3), (one + two) / 2)

    def test_gradient_against_finite_differences(self):
        coarse, fine = random(8, 3).requires_grad_(), random(12, 3, seed=1).requires_grad_()
        assert torch.autograd.gradcheck(lambda f, c: linked_consistency(f, c, PARENT, COARSE_SAMPLE, 3), (fine, coarse))


class TestReleased:
    def test_similarity_against_loops(self):
        coarse, fine = random(3, 2, 7).abs(), random(3, 2, 5, seed=1).abs()
        grams = []
        for maps in (coarse, fine):
            mean = torch.zeros(3, 3, dtype=torch.float64)
            for head in range(2):
                gram = torch.stack([torch.stack([maps[i, head] @ maps[j, head] for j in range(3)]) for i in range(3)])
                mean += torch.stack([row / row.norm() for row in gram]) / 2
            grams.append(mean)
        expected = 1000 * ((grams[0] - grams[1]) ** 2).sum() / 3
        torch.testing.assert_close(released_similarity(coarse, fine), expected)

    def test_one_sample(self):
        one = random(1, 6).requires_grad_()
        assert float(released_consistency(one, random(1, 6, seed=1)).detach()) == 0
        assert float(released_similarity(random(1, 2, 6), random(1, 2, 6, seed=1))) == pytest.approx(0)

    @pytest.mark.parametrize("loss", [released_consistency, lambda a, b: released_similarity(a[:, None], b[:, None])])
    def test_gradient_against_finite_differences(self, loss):
        maps = random(3, 5).abs().requires_grad_(), random(3, 5, seed=1).abs().requires_grad_()
        assert torch.autograd.gradcheck(loss, maps)


class TestCombined:
    coarse, fine = random(6, 4) * 2, random(6, 4, seed=1) * 2

    def test_mean_of_probabilities_and_of_hazards(self):
        logits = combined(self.coarse, self.fine, "mean", "classification")
        torch.testing.assert_close(logits.softmax(1), (self.coarse.softmax(1) + self.fine.softmax(1)) / 2)
        logits = combined(self.coarse, self.fine, "mean", "survival")
        torch.testing.assert_close(logits.sigmoid(), (self.coarse.sigmoid() + self.fine.sigmoid()) / 2)
        assert torch.isfinite(combined(torch.full((1, 2), 200.0), torch.full((1, 2), 300.0), "mean", "survival")).all()

    def test_the_surer_one_and_the_finer_on_ties(self):
        logits = combined(self.coarse, self.fine, "max_confidence", "classification")
        for a, b, got in zip(self.coarse, self.fine, logits, strict=True):
            assert torch.equal(got, a if a.softmax(0).max() > b.softmax(0).max() else b)
        tied = combined(self.coarse, self.coarse.flip(1), "max_confidence", "classification")
        assert torch.equal(tied, self.coarse.flip(1))

    @pytest.mark.parametrize("kind", ["classification", "survival"])
    def test_equal_magnifications_keep_their_outcome(self, kind):
        for how in ("mean", "average", "max_confidence"):
            got = combined(self.coarse, self.coarse, how, kind)
            shift = (got - self.coarse).mean(dim=1, keepdim=True) if kind == "classification" else 0
            torch.testing.assert_close(got - shift, self.coarse)


class TestDistillation:
    def test_hazards_are_events_of_their_own(self):
        student, teacher = random(5, 3), random(5, 3, seed=1)
        each = kl_divergence(Bernoulli(logits=teacher / 2), Bernoulli(logits=student / 2))
        torch.testing.assert_close(hazard_divergence(student, teacher), 4 * each.sum(dim=1).mean())
        assert float(hazard_divergence(teacher + 3, teacher)) > 0.5
        assert float(softened_divergence(teacher + 3, teacher)) == pytest.approx(0, abs=1e-12)  # as released

    @pytest.mark.parametrize("loss", [softened_divergence, hazard_divergence, feature_distance])
    def test_nothing_to_learn_and_gradient(self, loss):
        teacher = random(4, 3, seed=1)
        assert float(loss(teacher, teacher)) == pytest.approx(0, abs=1e-12)
        assert torch.autograd.gradcheck(lambda x: loss(x, teacher), random(4, 3).requires_grad_())
