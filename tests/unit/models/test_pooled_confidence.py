"""CG-Coord in two processes: both take the decision of one process with all samples, and so stay identical."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing

from models.batch import Targets
from models.coordination import confidences, coordinated

ROWS = (slice(0, 3), slice(3, 5))  # of each process
WIDTH, OUTPUTS = 4, 3
KINDS = ("classification", "survival", "few events")


def given(kind: str, rows: slice) -> tuple[torch.Tensor, ...]:
    """weight, bias, tumour, tme, targets of these samples, and a gradient in which the halves are in conflict."""
    rng = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(OUTPUTS, 2 * WIDTH, generator=rng), torch.randn(OUTPUTS, generator=rng)
    tumour, tme = torch.randn(2, 5, WIDTH, generator=rng)
    half = torch.randn(OUTPUTS, WIDTH, generator=rng)
    gradient = torch.cat([half, -half + 0.1], dim=1)
    with torch.no_grad():
        sure = [z @ w.T for z, w in ((tumour, weight[:, :WIDTH]), (tme, weight[:, WIDTH:]))]
    first, second = (s.argmax(dim=1) for s in sure)
    label = torch.where(torch.arange(5) < 3, first, second)  # one process would trust the first, the other the second
    risk = [1 - torch.sigmoid(-s).cumprod(dim=1).sum(dim=1) for s in sure]
    time = torch.where(torch.arange(5) < 3, -risk[0], -risk[1]).double() + 9
    event = torch.ones(5, dtype=torch.int64)
    if kind == "few events":  # no process has a comparable pair of its own
        time, event = torch.tensor([3.0, 4, 5, 2, 1], dtype=torch.float64), torch.tensor([0, 0, 0, 1, 0])
    targets = Targets(time=time[rows], event=event[rows], interval=torch.arange(5)[rows] % 3)
    if kind == "classification":
        targets = Targets(label=label[rows])
    return weight, bias, tumour[rows], tme[rows], targets, gradient


def decided(kind: str, rows: slice) -> dict[str, object]:
    *inputs, gradient = given(kind, rows)
    sure = confidences(*inputs)
    return {"sure": sure, "gradient": gradient if sure is None else coordinated(gradient, *sure)}


def one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    apart = {kind: decided(kind, ROWS[rank]) for kind in KINDS}
    distributed.init_process_group("gloo", f"file://{folder}/meet", world_size=2, rank=rank)
    together = {kind: decided(kind, ROWS[rank]) for kind in KINDS}
    torch.save({"apart": apart, "together": together}, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_both_processes_take_the_decision_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    multiprocessing.spawn(one_of_two, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for kind in KINDS:
        expected = decided(kind, slice(None))
        for found in (first, second):
            assert found["together"][kind]["sure"] == pytest.approx(expected["sure"], rel=1e-6)
        assert torch.equal(first["together"][kind]["gradient"], second["together"][kind]["gradient"])
        torch.testing.assert_close(first["together"][kind]["gradient"], expected["gradient"])
        alone = [found["apart"][kind]["sure"] for found in (first, second)]
        if kind == "few events":
            assert alone == [None, None]
        else:
            assert [a > b for a, b in alone] == [True, False], "alone they would drift apart"
