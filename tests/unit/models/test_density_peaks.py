"""DPC-KNN without the distance matrix against the definition on the whole matrix, in float64 and with loops."""

from __future__ import annotations

import pytest
import torch

from models.density_peaks import density_peaks
from models.disentangled_student import TokenMerging


def by_definition(tokens: torch.Tensor, clusters: int) -> tuple[list[int], list[float], list[int]]:
    """Centres, their scores, and the cluster of each token; of equals the earlier counts as higher."""
    points = tokens.double()
    n, width = points.shape
    distance = [[float((points[i] - points[j]).norm()) / width**0.5 for j in range(n)] for i in range(n)]
    density = []
    for i in range(n):
        near = sorted(d * d for d in distance[i])[:5]
        density.append(torch.tensor(-sum(near) / len(near), dtype=torch.float64).exp().item())
    scores = []
    for i in range(n):
        denser = [distance[i][j] for j in range(n) if (density[j], -j) > (density[i], -i)]
        scores.append(density[i] * (min(denser) if denser else max(map(max, distance))))
    order = sorted(range(n), key=lambda i: (-scores[i], i))[:clusters]
    of = [
        order.index(i) if i in order else min(range(len(order)), key=lambda c: distance[i][order[c]]) for i in range(n)
    ]
    return order, [scores[i] for i in order], of


def blobs(n: int, width: int, seed: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    centre = torch.randn(4, width, generator=rng) * 2
    return centre[torch.randint(4, (n,), generator=rng)] + torch.randn(n, width, generator=rng) * 0.4


@pytest.mark.parametrize(("n", "clusters"), [(1, 2), (2, 2), (3, 8), (4, 2), (7, 3), (40, 2), (61, 8)])
def test_against_the_definition(n, clusters):
    tokens = blobs(n, 6, n)
    found = density_peaks(tokens, clusters)
    centres, scores, of = by_definition(tokens, clusters)
    assert found.centres.tolist() == centres and found.of.tolist() == of
    torch.testing.assert_close(found.scores.double(), torch.tensor(scores, dtype=torch.float64), rtol=1e-5, atol=1e-6)
    assert sorted(set(of)) == list(range(min(clusters, n)))


def test_vector_of_the_specification():
    near = [(0, 0), (0.1, 0), (0, 0.1), (0.1, 0.1), (0.05, 0.05)]
    far = [(5, 5), (5.1, 5), (5, 5.2), (5.1, 5.2), (5.05, 5.1), (5, 5.1)]
    points = torch.tensor([*near, *far])
    of = density_peaks(points, 2).of
    assert of.tolist() == [0] * 5 + [1] * 6
    torch.testing.assert_close(points[of == 1].mean(dim=0), torch.tensor([5.0417, 5.1]), rtol=0, atol=1e-4)


def test_equal_tokens_are_ordered_by_place():
    """Four places, each taken by five tokens of density 1: of every place the first token counts as its densest."""
    tokens = torch.tensor([[0.0, 0], [9, 0], [0, 9], [20, 20]]).repeat_interleave(5, dim=0)
    found = density_peaks(tokens, 4)
    assert sorted(found.centres.tolist()) == [0, 5, 10, 15]
    assert [found.of[k : k + 5].unique().numel() for k in (0, 5, 10, 15)] == [1] * 4
    same = density_peaks(torch.ones(9, 5), 3)
    assert same.centres.tolist() == [0, 1, 2] and same.of.tolist() == [0, 1, 2, *[0] * 6]


@pytest.mark.parametrize("n", [300, 1250])
def test_chunks_change_nothing(monkeypatch, n):
    tokens = blobs(n, 16, 5)
    whole = density_peaks(tokens, 8)
    monkeypatch.setattr("models.density_peaks.DISTANCES_PER_CHUNK", 50 * n)
    parts = density_peaks(tokens, 8)
    assert torch.equal(whole.centres, parts.centres) and torch.equal(whole.of, parts.of)


def test_the_order_of_tokens_does_not_matter():
    tokens = blobs(200, 16, 6)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(7))
    one, other = density_peaks(tokens, 5), density_peaks(tokens[order], 5)
    assert torch.equal(one.of[order], other.of) and torch.equal(one.centres, order[other.centres])


class TestMerging:
    def test_importance_weighted_mean(self):
        merging, rng = TokenMerging(3), torch.Generator().manual_seed(8)
        tokens, score = torch.randn(30, 128, generator=rng), torch.randn(30, generator=rng)
        of = density_peaks(tokens, 3).of
        for cluster, merged in enumerate(merging.merged(tokens, score)):
            weight = score[of == cluster].exp()
            expected = (weight[:, None] * tokens[of == cluster]).sum(dim=0) / (weight.sum() + 1e-6)
            torch.testing.assert_close(merged, expected)

    def test_large_scores_do_not_overflow(self):
        merging, tokens = TokenMerging(2), torch.randn(20, 128, generator=torch.Generator().manual_seed(9))
        score = torch.linspace(-300, 300, 20).requires_grad_()
        merged = merging.merged(tokens, score)
        merged.sum().backward()
        assert torch.isfinite(merged).all() and torch.isfinite(score.grad).all()

    def test_gradient_against_finite_differences(self):
        merging, rng = TokenMerging(2), torch.Generator().manual_seed(10)
        tokens = torch.cat([torch.randn(3, 128, generator=rng), 8 + torch.randn(4, 128, generator=rng)]).double()
        score = torch.randn(7, generator=rng, dtype=torch.float64)
        assert torch.autograd.gradcheck(
            merging.merged, (tokens.requires_grad_(), score.requires_grad_()), fast_mode=True
        )
