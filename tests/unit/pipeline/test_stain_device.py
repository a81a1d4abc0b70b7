"""The transfer on the encoder's device against the one on the host: same pixels, channels-last, no waiting."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.contracts.stains import StainColours
from pipeline.stain_device import DeviceTransfer
from pipeline.stain_transfer import StainTransfer
from tests.stain_fields import colours, random_matrix, render

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def pair(rng: np.random.Generator) -> tuple[StainColours, StainColours]:
    return colours(rng, rng.uniform(225, 255)), colours(rng, rng.uniform(240, 255))


@pytest.mark.parametrize("device", DEVICES)
def test_pixels_are_those_of_the_host(device: str) -> None:
    """At most one value in ten thousand may fall to the other side of the border between two grey levels."""
    rng = np.random.default_rng()
    for _ in range(4):
        source, target = pair(rng)
        noise = rng.integers(0, 256, (3, 40, 56, 3), dtype=np.uint8)  # every case of the lasso, black and white too
        stained = render(rng, random_matrix(rng), np.array(source.white), (3 * 40, 56)).reshape(noise.shape)
        tiles = np.concatenate([noise, stained])
        ours = DeviceTransfer(source, target, device)(torch.from_numpy(tiles).to(device)).cpu().numpy()
        wanted = StainTransfer(source, target)(tiles)
        assert ours.dtype == np.uint8
        assert np.abs(ours.astype(int) - wanted).max() <= 1
        assert (ours != wanted).mean() < 1e-4


def test_precision_does_not_follow_autocast() -> None:
    rng = np.random.default_rng()
    transfer = DeviceTransfer(*pair(rng), "cpu")
    tiles = torch.from_numpy(rng.integers(0, 256, (2, 20, 28, 3), dtype=np.uint8))
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        mixed = transfer(tiles)
    assert torch.equal(mixed, transfer(tiles))


def test_any_memory_order_in_and_channels_last_out() -> None:
    rng = np.random.default_rng()
    transfer = DeviceTransfer(*pair(rng), "cpu")
    tiles = torch.from_numpy(rng.integers(0, 256, (2, 20, 28, 3), dtype=np.uint8))
    planes = tiles.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert not planes.is_contiguous() and torch.equal(transfer(planes), transfer(tiles))
    images = transfer(planes).permute(0, 3, 1, 2)
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_empty_batches_and_none() -> None:
    rng = np.random.default_rng()
    source, target = pair(rng)
    assert DeviceTransfer(source, target, "cpu")(torch.empty((0, 8, 9, 3), dtype=torch.uint8)).shape == (0, 8, 9, 3)
    tiles = torch.zeros((1, 2, 3, 3), dtype=torch.uint8)
    assert DeviceTransfer(None, target, "cpu")(tiles) is tiles


def test_nothing_waits_for_the_device() -> None:
    """Tensors on torch's meta device hold no values: an operation that has to look at one raises there."""
    transfer = DeviceTransfer(*pair(np.random.default_rng()), "meta")
    painted = transfer(torch.empty((2, 5, 7, 3), dtype=torch.uint8, device="meta"))
    assert painted.is_meta and painted.shape == (2, 5, 7, 3) and painted.dtype == torch.uint8
