"""SurvPath: the attention against one dense masked softmax, what may look at what, tokens by pathway."""

from __future__ import annotations

import pytest
import torch

from models.batch import Sizes
from models.survpath import PathwayAttention, SurvPath, SurvPathConfig
from pipeline.contracts.errors import InputError
from tests.model_batches import FAMILIES, make_case, side_by_side, sizes_of


def dense(layer: PathwayAttention, pathways: torch.Tensor, tiles: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """All tokens in one softmax whose tile-to-tile block and padding are minus infinity."""
    tokens = layer.norm(torch.cat([pathways, tiles], dim=1))
    query, key, value = (tokens @ part.T for part in layer.project.weight.chunk(3))
    scores = query @ key.transpose(1, 2) / query.shape[2] ** 0.5
    p = pathways.shape[1]
    scores[:, p:, p:] = float("-inf")
    scores[:, :p, p:] = scores[:, :p, p:].masked_fill(~mask[:, None], float("-inf"))
    return scores.softmax(dim=2) @ value


@pytest.mark.parametrize("pathways", [1, 5])
def test_attention_and_gradients_are_those_of_the_dense_softmax(pathways):
    torch.manual_seed(0)
    layer = PathwayAttention(7, 4).double()
    first = torch.randn(3, pathways, 7, dtype=torch.float64, requires_grad=True)
    second = torch.randn(3, 9, 7, dtype=torch.float64, requires_grad=True)
    mask = torch.arange(9) < torch.tensor([9, 1, 4])[:, None]
    seen = torch.cat([mask.new_ones(3, pathways), mask], dim=1)
    weight = torch.randn(3, pathways + 9, 4, dtype=torch.float64) * seen[..., None]
    found, gradients = [], []
    for out in (torch.cat(layer(first, second, mask), dim=1), dense(layer, first, second, mask)):
        leaves = (first, second, *layer.parameters())
        gradients.append(torch.autograd.grad((out * weight).sum(), leaves))
        found.append(out[seen])
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-12)


def test_a_tile_sees_pathways_and_no_other_tile():
    torch.manual_seed(1)
    layer = PathwayAttention(6, 4).eval()
    pathways, tiles, mask = torch.randn(1, 3, 6), torch.randn(1, 5, 6), torch.ones(1, 5, dtype=torch.bool)
    before = layer(pathways, tiles, mask)
    changed = tiles.clone()
    changed[0, 2] += 1
    after = layer(pathways, changed, mask)
    moved = (before[1] != after[1]).any(dim=2)[0]
    assert moved.tolist() == [False, False, True, False, False]
    assert not torch.equal(before[0], after[0])
    assert not torch.equal(before[1], layer(pathways + pathways.flip(1), tiles, mask)[1])


def test_a_token_per_pathway_and_the_order_of_tiles_is_nothing():
    torch.manual_seed(2)
    model = SurvPath(SurvPathConfig(width=8, attended=6, hidden=5), sizes_of("survival")).eval()
    assert [piece[0].in_features for piece in model.pathways.pieces] == [len(family) for family in FAMILIES]
    case = make_case(torch.Generator().manual_seed(0), (11,))
    other = make_case(torch.Generator().manual_seed(0), (11,))
    other.features[:] = other.features.flip(1)
    with torch.no_grad():
        torch.testing.assert_close(model(case).logits, model(other).logits)
        unread = side_by_side([case], extra=0)
        unread.genes["all"][:, 2] += 5  # in no pathway
        torch.testing.assert_close(model(case).logits, model(unread).logits)


def test_without_gene_sets_it_says_what_to_do():
    bare = Sizes(6, {"all": 12}, 3, "survival")
    with pytest.raises(InputError, match=r"no gene family was selected.*genes\.families"):
        SurvPath(SurvPathConfig(), bare)
    assert len(SurvPath(SurvPathConfig(cut="equal", pieces=4), bare).pathways.pieces) == 4
