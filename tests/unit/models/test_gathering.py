"""Losses over the samples of two processes equal those of one process with all samples, gradients too."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import distributed, multiprocessing

from models.gathering import gathered, processes
from models.mirror_losses import info_nce

ROWS = (3, 2)  # of each process
SCALE = 3.0


def embedded() -> tuple[torch.nn.Linear, torch.Tensor, torch.Tensor]:
    """The same layer and samples in every process."""
    torch.manual_seed(5)
    layer = torch.nn.Linear(4, 3).double()
    first, second = torch.randn(2, sum(ROWS), 4, dtype=torch.float64)
    return layer, first, second


def loss_and_gradient(rows: slice, gather: bool) -> dict[str, torch.Tensor]:
    layer, first, second = embedded()
    loss = info_nce(layer(first[rows]), layer(second[rows]).sin(), SCALE, gather)
    loss.backward()
    return {"loss": loss.detach(), "weight": layer.weight.grad, "bias": layer.bias.grad}


def one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/meet", world_size=2, rank=rank)
    rows = slice(sum(ROWS[:rank]), sum(ROWS[: rank + 1]))
    found = {"together": loss_and_gradient(rows, True), "alone": loss_and_gradient(rows, False)}
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    multiprocessing.spawn(one_of_two, (str(tmp_path),), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    expected = loss_and_gradient(slice(None), False)
    for name, value in expected.items():
        mean = sum(part["together"][name] for part in found) / 2
        torch.testing.assert_close(mean, value, rtol=1e-12, atol=1e-14)
    apart = sum(part["alone"]["loss"] for part in found) / 2
    assert not torch.isclose(apart, expected["loss"], rtol=1e-3)


def test_a_single_process_has_nothing_to_gather():
    rows = torch.randn(3, 2)
    everyone, start = gathered(rows)
    assert processes() == 1 and start == 0 and everyone is rows
    torch.testing.assert_close(info_nce(rows, rows, 2.0, True), info_nce(rows, rows, 2.0))
