"""A batch skips what is finished, records what fails, and goes on."""

import threading
from dataclasses import dataclass, field

import pytest

from pipeline.batches import Void, run_batch
from pipeline.contracts.batches import EXCLUDED, FAILED, OK, VOID, BatchRow, read_batch, write_batch
from pipeline.contracts.cohort import Slide
from pipeline.contracts.errors import FormatError, InputError, SlideError
from pipeline.eligibility import sheet_verdicts
from pipeline.progress import duration


@dataclass
class Toy:
    """A stage in memory: `outcomes` maps a slide to an exception or a remark; `finished` to a digest."""

    outcomes: dict = field(default_factory=dict)
    finished: dict = field(default_factory=dict)
    made: list = field(default_factory=list)
    name: str = "toy"

    def digest(self, upstream):
        return f"toy of {upstream.digest}"

    def find(self, slide_id, digest):
        return "" if self.finished.get(slide_id) == digest else None

    def make(self, slide_id, digest):
        self.made.append(slide_id)
        outcome = self.outcomes.get(slide_id, "")
        if isinstance(outcome, BaseException):
            raise outcome
        self.finished[slide_id] = digest
        return outcome


def upstream(*ids, **changed):
    return {i: BatchRow(i, "case", OK, "before", digest=f"d-{i}", **changed) for i in ids}


@pytest.mark.parametrize("threads", [1, 4])
def test_a_fault_is_recorded_and_the_rest_goes_on(tmp_path, threads):
    toy = Toy({"b": SlideError("cannot be read"), "c": Void("no tissue"), "d": ZeroDivisionError("oops"), "e": "pale"})
    run_batch(toy, upstream(*"abcdef"), tmp_path / "index.tsv", threads)
    rows = read_batch(tmp_path / "index.tsv")
    assert {i: (r.status, r.reason) for i, r in rows.items()} == {
        "a": (OK, ""), "b": (FAILED, "cannot be read"), "c": (VOID, "no tissue"),
        "d": (FAILED, "ZeroDivisionError: oops"), "e": (OK, "pale"), "f": (OK, ""),
    }  # fmt: skip
    assert rows["b"].digest == ""
    assert rows["f"].digest == "toy of d-f"


def test_finished_slides_are_skipped_and_those_of_other_input_are_not(tmp_path):
    toy = Toy(finished={"a": "toy of d-a", "b": "toy of something else"})
    rows = run_batch(toy, upstream("a", "b"), tmp_path / "index.tsv")
    assert toy.made == ["b"]
    assert rows[0].seconds == 0


def test_slides_that_an_earlier_stage_lost_keep_its_verdict(tmp_path):
    toy = Toy()
    lost = {"x": BatchRow("x", "case", VOID, "tissue", "no tissue", "d", 3.0)}
    (row,) = run_batch(toy, lost, tmp_path / "index.tsv")
    assert (row.status, row.stage, row.reason, row.digest, row.seconds) == (VOID, "tissue", "no tissue", "", 0.0)
    assert toy.made == []


def test_remarks_add_up(tmp_path):
    (row,) = run_batch(Toy({"a": "20x refused"}), upstream("a", reason="ink left out"), tmp_path / "index.tsv")
    assert row.reason == "ink left out; 20x refused"


def test_a_fault_of_the_settings_stops_the_job_and_leaves_no_index(tmp_path):
    with pytest.raises(InputError):
        run_batch(Toy({"a": InputError("config.yaml", "wrong")}), upstream("a", "b"), tmp_path / "index.tsv")
    assert not (tmp_path / "index.tsv").exists()


def test_slides_really_run_side_by_side(tmp_path):
    meeting = threading.Barrier(2, timeout=20)

    class Both(Toy):
        def make(self, slide_id, digest):
            meeting.wait()
            return ""

    rows = run_batch(Both(), upstream("a", "b"), tmp_path / "index.tsv", threads=2)
    assert [row.status for row in rows] == [OK, OK]


def test_an_empty_batch_has_an_index(tmp_path):
    assert run_batch(Toy(), {}, tmp_path / "index.tsv") == []
    assert read_batch(tmp_path / "index.tsv") == {}


def test_an_unknown_status_is_refused(tmp_path):
    write_batch(tmp_path / "index.tsv", [BatchRow("a", "c", "fine", "toy")])
    with pytest.raises(FormatError, match="unknown status 'fine'"):
        read_batch(tmp_path / "index.tsv")


def test_the_sheets_verdicts():
    slides = [Slide("a", "A", "a.svs"), Slide("b", "A", "b.svs", exclude="blurred"), Slide("c", "C", "c.svs")]
    verdicts = sheet_verdicts(slides, {"A"})
    assert [(row.status, row.reason) for row in verdicts.values()] == [
        (OK, ""), (EXCLUDED, "blurred"), (FAILED, "case 'C' is not in the clinical sheet")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (89.4, "89 s"), (90, "2 min"), (720, "12 min"), (5399, "1 h 30 min"), (11100, "3 h 05 min")],
)
def test_durations_in_words(seconds, text):
    assert duration(seconds) == text


def test_the_log_says_how_fast_it_goes_and_how_long_it_will_take(tmp_path, caplog, monkeypatch):
    """Four slides of 2 s each beside one found finished and one lost earlier: only what was worked on counts."""
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr("pipeline.batches.time.monotonic", lambda: float(next(clock)))
    slides = upstream("a", "b", "c", "d", "e") | {"x": BatchRow("x", "case", VOID, "tissue", "no tissue")}
    with caplog.at_level("INFO", logger="pipeline.progress"):
        run_batch(Toy(finished={"a": "toy of d-a"}), slides, tmp_path / "index.tsv")
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "toy: 1 of 6 slides: a ok in 0.0 s", "a finished slide says nothing of the pace"
    assert lines[1] == "toy: 2 of 6 slides, 0.50 slides/s, about 6 s left: b ok in 2.0 s"
    assert lines[4] == "toy: 5 of 6 slides, 0.50 slides/s: e ok in 2.0 s"
