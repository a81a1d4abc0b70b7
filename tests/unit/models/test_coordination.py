"""Ge-Con and CG-Coord: the specification's vectors, properties, and loops written out as the reference."""

from __future__ import annotations

import pytest
import torch

from models.batch import Targets
from models.coordination import confidences, coordinated, gecon, gecon_reference

A, B = torch.tensor([[3.0, 0.0]]), torch.tensor([[-1.0, 1.0]])


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TestCoordination:
    def test_specification_vector(self):
        gradient = torch.cat([A, B], dim=1)
        for mode, expected in (("projection", [1.5, 1.5]), ("reflection", [0.0, 2.12132])):
            out = coordinated(gradient, 0.2, 0.9, mode)
            torch.testing.assert_close(out, torch.tensor([[*expected, -1.0, 1.0]]), rtol=0, atol=1e-5)
        assert torch.equal(coordinated(gradient, 0.2, 0.9, "none"), gradient)

    def test_the_other_side_when_it_is_less_sure(self):
        out = coordinated(torch.cat([A, B], dim=1), 0.9, 0.2)
        torch.testing.assert_close(out, torch.tensor([[3.0, 0.0, 0.0, 1.0]]))

    def test_equal_confidence_changes_nothing(self):
        gradient = random(4, 6)
        assert torch.equal(coordinated(gradient, 0.5, 0.5), gradient)

    @pytest.mark.parametrize("mode", ["projection", "reflection"])
    @pytest.mark.parametrize("sure", [(0.1, 0.8), (0.8, 0.1)])
    def test_rows_against_a_loop(self, mode, sure):
        gradient = random(40, 10, seed=1)
        gradient[3, :5] = 0
        gradient[4, 5:] = 0
        out = coordinated(gradient, *sure, mode)
        for row, got in zip(gradient, out, strict=True):
            first, second = row[:5].clone(), row[5:].clone()
            weak, strong = (first, second) if sure[0] < sure[1] else (second, first)
            if weak @ strong < 0:
                part = (weak @ strong) / (strong @ strong) * strong
                rest = weak - part
                if mode == "reflection":
                    mirror = rest - part
                    rest = rest.norm() * mirror / mirror.norm()
                weak.copy_(rest)
            torch.testing.assert_close(got, torch.cat([first, second]))

    def test_projection_is_orthogonal_and_reflection_mirrors_the_cosine(self):
        gradient = random(60, 14, seed=2)
        before = torch.nn.functional.cosine_similarity(gradient[:, :7], gradient[:, 7:])
        for mode in ("projection", "reflection"):
            out = coordinated(gradient, 0.1, 0.2, mode)
            after = torch.nn.functional.cosine_similarity(out[:, :7], out[:, 7:])
            expected = torch.where(before < 0, torch.zeros_like(before) if mode == "projection" else -before, before)
            torch.testing.assert_close(after, expected, rtol=0, atol=1e-12)


class TestConfidence:
    def test_probability_of_the_true_class(self):
        weight, bias, first, second = random(3, 8), random(3), random(5, 4, seed=1), random(5, 4, seed=2)
        label = torch.tensor([0, 2, 1, 1, 0])
        got = confidences(weight, bias, first, second, Targets(label=label))
        for value, z, w in zip(got, (first, second), (weight[:, :4], weight[:, 4:]), strict=True):
            scores = torch.stack([w @ row + bias / 2 for row in z])
            assert value == pytest.approx(float(sum(scores.softmax(1)[i, y] for i, y in enumerate(label))))

    def test_halves_sum_to_the_classifier(self):
        weight, bias, first, second = random(3, 8), random(3), random(5, 4, seed=1), random(5, 4, seed=2)
        whole = torch.cat([first, second], dim=1) @ weight.T + bias
        halves = first @ weight[:, :4].T + bias / 2 + second @ weight[:, 4:].T + bias / 2
        torch.testing.assert_close(whole, halves)

    def test_survival_and_no_comparable_pair(self):
        weight, bias = torch.zeros(2, 2), torch.zeros(2)
        weight[:, 0] = 1.0  # tumour alone knows: a higher value is a higher hazard
        z, blind = torch.tensor([[3.0], [2.0], [1.0]]), torch.zeros(3, 1)
        time = torch.tensor([1.0, 2.0, 3.0])
        assert confidences(weight, bias, z, blind, Targets(time=time, event=torch.tensor([1, 1, 0]))) == (1.0, 0.5)
        for event in ([0, 0, 0], [0, 0, 1]):
            assert confidences(weight, bias, z, blind, Targets(time=time, event=torch.tensor(event))) is None


class TestGecon:
    genes = torch.tensor([[1.0, 0], [1, 1], [0, 2]])
    points = torch.tensor([[[1.0, 2], [0, 1]], [[2, 0], [1, 1]], [[1, 1], [3, 0]]])

    def test_specification_vector(self):
        assert float(gecon(self.genes, self.points)) == pytest.approx(0.0895, abs=5e-5)

    def test_against_a_loop(self):
        genes, points = random(5, 7).abs(), random(5, 8, 6, seed=3)
        total = 0.0
        of_genes = torch.stack([r / r.norm() for r in genes @ genes.T])
        of_points = torch.zeros(5, 5, dtype=torch.float64)
        for g in range(8):
            gram = torch.stack([torch.stack([points[i, g] @ points[j, g] for j in range(5)]) for i in range(5)])
            of_points += torch.stack([r / r.norm() for r in gram]) / 8
        total = float(((of_genes - of_points) ** 2).sum() / 5)
        assert float(gecon(genes, points)) == pytest.approx(total)

    def test_reference_mixes_groups_and_samples(self):
        """Of 8 samples, matrix j compares the 8 groups of sample j."""
        genes, points = random(8, 7).abs(), random(8, 8, 6, seed=4)
        mixed = gecon_reference(genes, points)
        assert float(mixed) == pytest.approx(float(gecon(genes, points.transpose(0, 1))))
        assert float(mixed) != pytest.approx(float(gecon(genes, points)))

    @pytest.mark.parametrize("loss", [gecon, gecon_reference])
    def test_one_sample_and_a_silent_gene_encoder(self, loss):
        one = random(1, 7).requires_grad_()
        assert float(loss(one, random(1, 8, 6)).detach()) == 0
        genes = random(4, 7).abs()
        genes[2] = 0
        genes.requires_grad_()
        points = random(4, 8, 6).requires_grad_()
        value = loss(genes, points)
        value.backward()
        assert torch.isfinite(value) and torch.isfinite(genes.grad).all() and torch.isfinite(points.grad).all()

    @pytest.mark.parametrize("loss", [gecon, gecon_reference])
    def test_gradient_against_finite_differences(self, loss):
        genes, points = random(3, 4).abs(), random(3, 2, 5, seed=5)
        assert torch.autograd.gradcheck(loss, (genes.requires_grad_(), points.requires_grad_()))
