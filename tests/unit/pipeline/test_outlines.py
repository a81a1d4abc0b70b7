"""Masks as polygons and back."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from pipeline.outlines import fill, trace, without_diagonals


def area(ring: np.ndarray) -> float:
    x, y = ring.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


@pytest.mark.parametrize("seed", range(40))
def test_polygons_are_the_mask(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 25, 2)
    mask = without_diagonals(rng.random((height, width)) < rng.random())
    polygons = trace(mask)
    assert (fill(polygons, width, height) == mask).all()
    assert len(polygons) == cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)[0] - 1
    assert sum(sum(area(ring) for ring in polygon) for polygon in polygons) == mask.sum()  # holes run backwards
    for polygon in polygons:
        assert area(polygon[0]) > 0 and all(area(hole) < 0 for hole in polygon[1:])
        for ring in polygon:
            assert len(np.unique(ring, axis=0)) == len(ring)  # simple: no vertex twice
            steps = np.roll(ring, -1, axis=0) - ring
            assert ((steps == 0).sum(axis=1) == 1).all()


def test_a_ring_with_an_island_in_its_hole():
    mask = np.zeros((9, 11), bool)
    mask[1:8, 2:10] = True
    mask[2:7, 3:9] = False
    mask[4, 5:7] = True
    ring, island = trace(mask)
    assert [len(polygon) for polygon in (ring, island)] == [2, 1]
    assert ring[0].tolist() == [[2, 1], [10, 1], [10, 8], [2, 8]]
    assert sorted(island[0].tolist()) == [[5, 4], [5, 5], [7, 4], [7, 5]]


def test_diagonal_contacts_are_filled_and_nothing_else():
    mask = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0], [1, 1, 0]], bool)
    filled = without_diagonals(mask)
    assert (filled >= mask).all() and filled.sum() == mask.sum() + 1
    assert (without_diagonals(filled) == filled).all()


def test_empty_full_and_any_polygon():
    assert trace(np.zeros((3, 4), bool)) == []
    assert not fill([], 4, 3).any()
    assert trace(np.ones((3, 4), bool))[0][0].tolist() == [[0, 0], [4, 0], [4, 3], [0, 3]]
    triangle = [[np.array([[0.0, 0.0], [8.0, 0.0], [0.0, 8.0]])]]
    want = np.add.outer(np.arange(8), np.arange(8)) + 1 < 8  # pixel centres below the diagonal
    got = fill(triangle, 8, 8)
    assert (got[want]).all() and got.sum() - want.sum() <= 8  # centres on the diagonal may go either way
