"""A process that dies, hangs or takes all memory costs the slide that it was at, and no other."""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.batches import run_batch
from pipeline.check import CheckStage
from pipeline.contracts.batches import FAILED, OK, BatchRow, read_batch
from pipeline.contracts.cohort import Slide
from pipeline.contracts.errors import FormatError, InputError, MachineError, SlideError
from pipeline.contracts.slides import read_slide_facts
from pipeline.guard import Limits, Watch, guarded
from tests.slide_files import noise, write_tiff

FREE = Limits()
REPOSITORY = Path(__file__).resolve().parents[3]


class Toy:
    """A stage that leaves a file per slide; at slide `at` it does `what` first, and its tries are counted."""

    name = "toy"

    def __init__(self, folder: Path, at: str, what: Callable[[], object]) -> None:
        self._folder, self._at, self._what = folder, at, what

    def digest(self, upstream: BatchRow) -> str:
        return "d"

    def find(self, slide_id: str, digest: str) -> str | None:
        return "found" if (self._folder / slide_id).exists() else None

    def make(self, slide_id: str, digest: str) -> str:
        with open(self._folder / "tries", "a") as tries:
            tries.write(f"{slide_id}\n")
        if slide_id == self._at:
            self._what()
        (self._folder / slide_id).touch()
        return "made"


def run(folder: Path, what: Callable[[], object], threads: int = 1, limits: Limits = FREE) -> dict[str, BatchRow]:
    upstream = {i: BatchRow(i, "case", OK, "before") for i in "abcd"}

    def work(watch: Watch) -> None:
        stage = watch.stage(Toy(folder, "b", what))
        run_batch(stage, upstream, folder / "index.tsv", watch.threads(threads))

    guarded(work, limits)
    return read_batch(folder / "index.tsv")


def die(number: int) -> Callable[[], None]:
    def what() -> None:
        faulthandler.disable()  # the stack of a wanted death is of no interest
        os.kill(os.getpid(), number)
        time.sleep(10)

    return what


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize(
    ("what", "reason"),
    [
        (die(signal.SIGSEGV), "crashed (signal SIGSEGV)"),
        (die(signal.SIGABRT), "crashed (signal SIGABRT)"),
        (lambda: os._exit(3), "crashed (exit status 3)"),
    ],
    ids=["segfault", "abort", "exit"],
)
def test_a_crash_costs_its_slide_alone(tmp_path, what, reason, threads):
    rows = run(tmp_path, what, threads)
    assert [rows[i].status for i in "abcd"] == [OK, FAILED, OK, OK]
    assert reason in rows["b"].reason and "Fix:" in rows["b"].reason
    tries = (tmp_path / "tries").read_text().split()
    assert tries.count("b") == 1 if threads == 1 else tries.count("b") <= 2
    assert threads > 1 or sorted(tries) == [*"abcd"], "finished slides are not made again"


def test_a_hang_ends(tmp_path):
    rows = run(tmp_path, lambda: time.sleep(60), limits=Limits(seconds=0.3))
    assert [rows[i].status for i in "abcd"] == [OK, FAILED, OK, OK] and "longer than 0.3 s" in rows["b"].reason


def test_memory_has_a_limit(tmp_path):
    def take() -> None:
        try:
            np.ones(2**30, np.uint8)
        except MemoryError:
            raise SlideError("too large") from None

    rows = run(tmp_path, take, limits=Limits(memory_bytes=2**29))
    assert [rows[i].status for i in "abcd"] == [OK, FAILED, OK, OK] and rows["b"].reason == "too large"


def raising(error: Exception) -> Callable[[], None]:
    def what() -> None:
        raise error

    return what


@pytest.mark.parametrize(
    "error", [InputError("config.yaml", "is wrong", "mend it."), MachineError("no disk"), MemoryError("none left")]
)
def test_what_stops_the_job_stops_it(tmp_path, error):
    with pytest.raises(type(error)) as caught:
        run(tmp_path, raising(error))
    assert str(caught.value) == str(error)
    assert not (tmp_path / "index.tsv").exists()


def test_an_error_of_the_code_stops_the_job(tmp_path):
    with pytest.raises(MachineError, match="unexpected error"):
        guarded(lambda watch: 1 / 0)


def test_a_process_killed_from_outside_is_not_the_slides_fault(tmp_path):
    with pytest.raises(MachineError, match=r"SIGKILL.*three times"):
        run(tmp_path, die(signal.SIGKILL))
    once = tmp_path / "once"

    def first_time() -> None:
        if not once.exists():
            once.touch()
            die(signal.SIGKILL)()

    assert [row.status for row in run(tmp_path, first_time).values()] == [OK] * 4


def test_a_crash_in_the_check_is_on_record(tmp_path, monkeypatch):
    path = write_tiff(tmp_path / "a.tif", [noise(130, 90, np.random.default_rng())])
    stage = CheckStage({"a": Slide("a", "c", str(path))}, tmp_path)
    monkeypatch.setattr("pipeline.check.check_slide", lambda *_: die(signal.SIGSEGV)())

    def work(watch: Watch) -> None:
        run_batch(watch.stage(stage), {"a": BatchRow("a", "c", OK, "sheet")}, tmp_path / "index.tsv")

    guarded(work)
    with pytest.raises(SlideError, match="SIGSEGV"):
        read_slide_facts(tmp_path / "slides/a.json")


def test_errors_pass_between_processes_whole():
    import pickle

    for error in (InputError("x", "is wrong", "mend it."), SlideError("s"), FormatError("f")):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again)) == (type(error), str(error))


def test_a_killed_job_leaves_no_process_behind(tmp_path):
    code = (
        "import os, sys, time; from pipeline.guard import guarded\n"
        "def work(watch):\n    print(os.getpid(), flush=True)\n    time.sleep(60)\n"
        "guarded(work)"
    )
    job = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    worker = int(job.stdout.readline())
    job.kill()
    job.wait()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{worker}").exists() and _state(worker) not in "ZX":
        assert time.monotonic() < deadline, "the worker outlives its job"
        time.sleep(0.02)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"
