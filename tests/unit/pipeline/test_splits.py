"""Folds: balanced, stable when the cohort changes, patients and sites kept whole, bad ledgers refused."""

import random
from collections import Counter

import pytest

from pipeline.contracts.cohort import CaseSheet
from pipeline.contracts.errors import InputError
from pipeline.contracts.files import read_table
from pipeline.contracts.splits import SplitRow, read_splits, write_splits
from pipeline.splits import SplitParams, make_splits

GRADE = {"name": "grade", "kind": "classification", "label": "grade"}
SURVIVAL = {"name": "os", "kind": "survival", "time": "days", "event": "dead"}


def sheet_of(rows):
    columns = ("case_id", *next(iter(rows.values())))
    return CaseSheet("cases.tsv", columns, {case: {"case_id": case, **row} for case, row in rows.items()})


def cohort(n, seed=0, shares=(0.6, 0.3, 0.1)):
    draw = random.Random(seed)
    return {
        f"case{i:04d}": {
            "grade": draw.choices(["G2", "G3", "G4"], shares)[0],
            "days": str(draw.randint(1, 2000)),
            "dead": str(int(draw.random() < 0.4)),
        }
        for i in range(n)
    }


class Folds:
    """Run `make_splits` in a folder of its own and look at what it wrote."""

    def __init__(self, folder):
        self.folder = folder
        self.ledger = folder / "ledger.tsv"
        self.out = folder / "splits.tsv"

    def run(self, rows, tasks=(GRADE, SURVIVAL), **params):
        params = SplitParams(file=str(self.ledger), **params)
        self.notes = make_splits(sheet_of(rows), params, tasks, self.out, self.folder / "notes.tsv")
        return read_splits(self.out)


@pytest.fixture
def folds(tmp_path):
    return Folds(tmp_path)


def test_every_case_is_tested_once_and_trained_or_validated_on_elsewhere(folds):
    rows = cohort(53)
    splits = folds.run(rows, folds=4)
    assert splits.n_folds == 4
    for case, roles in splits.roles().items():
        assert case in rows
        assert sorted(roles) == [0, 1, 2, 3]
        assert list(roles.values()).count("test") == 1
    assert set(splits.roles()) == set(rows)


@pytest.mark.parametrize("seed", range(4))
def test_folds_hold_their_quota_of_every_label_combination(folds, seed):
    rows = cohort(211, seed)
    splits = folds.run(rows, folds=5, seed=seed, validation=0.2)
    stratum = {case: (row["grade"], row["dead"]) for case, row in rows.items()}
    whole = Counter(stratum.values())
    for fold in range(5):
        test = splits.cases(fold, "test")
        assert abs(len(test) - 211 / 5) <= 2
        for name, count in Counter(stratum[case] for case in test).items():
            assert abs(count - whole[name] / 5) < 1
        val = splits.cases(fold, "val")
        rest = len(rows) - len(test)
        assert abs(len(val) - 0.2 * rest) <= 1
        left = Counter(stratum[case] for case in rows if case not in set(test))
        for name, count in left.items():
            assert abs(Counter(stratum[case] for case in val)[name] - 0.2 * count) <= 1.5


def test_rare_combinations_still_balance_each_label(folds):
    rows = {f"c{i:02d}": {"grade": f"G{i % 2}", "other": f"x{i}"} for i in range(40)}
    tasks = [GRADE, {"name": "other", "kind": "classification", "label": "other"}]  # every combination is unique
    splits = folds.run(rows, tasks, folds=4)
    for fold in range(4):
        counts = Counter(rows[case]["grade"] for case in splits.cases(fold, "test"))
        assert counts == {"G0": 5, "G1": 5}


def test_seed_and_validation_change_the_result_and_sheet_order_does_not(tmp_path):
    rows = cohort(60)
    shuffled = dict(random.Random(1).sample(list(rows.items()), len(rows)))
    texts = []
    for name, sheet, seed in (("a", rows, 0), ("b", shuffled, 0), ("c", rows, 1)):
        (tmp_path / name).mkdir()
        Folds(tmp_path / name).run(sheet, seed=seed)
        texts.append((tmp_path / name / "splits.tsv").read_text())
    assert texts[0] == texts[1] != texts[2]
    (tmp_path / "d").mkdir()
    assert not Folds(tmp_path / "d").run(rows, validation=0).cases(0, "val")


def test_a_second_run_changes_no_byte(folds):
    rows = cohort(30)
    folds.run(rows)
    before = folds.ledger.read_bytes(), folds.out.read_bytes(), folds.ledger.stat().st_mtime_ns
    folds.run(rows)
    assert before == (folds.ledger.read_bytes(), folds.out.read_bytes(), folds.ledger.stat().st_mtime_ns)


def test_new_cases_are_appended_balanced_and_old_rows_keep_their_bytes(folds):
    rows = cohort(150)
    first = dict(list(rows.items())[:90])
    folds.run(first, folds=3)
    old_text, old_roles = folds.ledger.read_text(), read_splits(folds.out).roles()
    splits = folds.run(rows, folds=3)
    assert folds.ledger.read_text().startswith(old_text)
    assert any("60 new cases" in note.problem for note in folds.notes)
    assert all(splits.roles()[case] == roles for case, roles in old_roles.items())
    stratum = {case: (row["grade"], row["dead"]) for case, row in rows.items()}
    for fold in range(3):
        counts = Counter(stratum[case] for case in splits.cases(fold, "test"))
        for name, count in Counter(stratum.values()).items():
            assert abs(counts[name] - count / 3) <= 1


def test_changed_labels_move_no_case(folds):
    rows = cohort(40)
    before = folds.run(rows).roles()
    swapped = {case: {**row, "grade": "G2" if row["grade"] == "G3" else "G3"} for case, row in rows.items()}
    assert folds.run(swapped).roles() == before


def test_removed_cases_stay_in_the_ledger_and_leave_the_folds(folds):
    rows = cohort(40)
    folds.run(rows)
    ledger = folds.ledger.read_text()
    gone = "case0007"
    splits = folds.run({case: row for case, row in rows.items() if case != gone})
    assert gone not in splits.roles()
    assert folds.ledger.read_text() == ledger
    assert any("1 cases of" in note.problem and gone in note.problem for note in folds.notes)


def test_patients_stay_together_also_when_a_case_arrives_later(folds):
    rows = {case: {**row, "patient_id": f"p{i // 3}"} for i, (case, row) in enumerate(cohort(60).items())}
    first = {case: row for i, (case, row) in enumerate(rows.items()) if i % 3}
    folds.run(first, folds=4)
    roles = folds.run(rows, folds=4).roles()
    for case, row in rows.items():
        others = [roles[other] for other, its in rows.items() if its["patient_id"] == row["patient_id"]]
        assert all(other == roles[case] for other in others)


def test_sites_stay_whole_in_the_test_sets(folds):
    rows = {case: {**row, "site": f"s{i * i % 11}"} for i, (case, row) in enumerate(cohort(80).items())}
    splits = folds.run(rows, folds=3, site="site")
    for site in {row["site"] for row in rows.values()}:
        tested = {fold for fold in range(3) for case in splits.cases(fold, "test") if rows[case]["site"] == site}
        assert len(tested) == 1
    # and the sites matter: without the option at least one is torn apart
    folds.ledger.unlink()
    loose = folds.run(rows, folds=3)
    assert any(
        len({f for f in range(3) for c in loose.cases(f, "test") if rows[c]["site"] == site}) > 1
        for site in {row["site"] for row in rows.values()}
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"folds": 9}, "8 patients are fewer than the 9 folds"),
        ({"site": "nowhere"}, "column 'nowhere' of splits.site is missing"),
        ({"folds": 1}, "splits.folds: 1 is not"),
        ({"validation": 0.9}, "splits.validation"),
        ({"external": "elsewhere"}, "needs column 'cohort', which is missing"),
    ],
)
def test_impossible_parameters(folds, change, message):
    with pytest.raises(InputError, match=message):
        folds.run(cohort(8), (), **change)


def test_fewer_sites_than_folds(folds):
    rows = {case: {**row, "site": f"s{i % 2}"} for i, (case, row) in enumerate(cohort(20).items())}
    with pytest.raises(InputError, match="2 sites are fewer than the 3 folds"):
        folds.run(rows, (), folds=3, site="site")


def test_patient_with_two_sites(folds):
    rows = {f"c{i}": {"patient_id": "p" if i < 2 else f"q{i}", "site": f"s{i}"} for i in range(6)}
    with pytest.raises(InputError, match="patient 'p' has two sites"):
        folds.run(rows, (), folds=2, site="site")


def ledger_of(folds, rows):
    write_splits(folds.ledger, [SplitRow(*row) for row in rows])


def test_ledger_with_another_number_of_folds(folds):
    folds.run(cohort(20), folds=4)
    with pytest.raises(InputError, match=r"folds 0, 1, 2, 3, splits\.folds is 5"):
        folds.run(cohort(20), folds=5)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a", 0, "test"), ("a", 1, "test")], "case a: the case has the role test in folds 0, 1"),
        ([("a", 0, "train"), ("a", 1, "train")], "case a: the case has the role test in no fold"),
        ([("a", 0, "test"), ("a", 1, "train"), ("b", 1, "test")], "case b: no role for fold 0"),
        (
            [("a", 0, "test"), ("a", 1, "train"), ("b", 0, "train"), ("b", 1, "test")],
            "patient p: case a is test in fold 0, case b is train",
        ),
        ([("a", 1, "test"), ("a", 2, "train")], "folds 1, 2, splits.folds is 2"),
    ],
)
def test_imported_ledgers_that_would_leak_are_refused(folds, rows, message):
    ledger_of(folds, rows)
    cases = {case: {"patient_id": "p" if case in "ab" else ""} for case in "abcd"}
    with pytest.raises(InputError, match=message):
        folds.run(cases, (), folds=2)


def test_imported_ledger_that_tears_a_site(folds):
    ledger_of(folds, [("a", 0, "test"), ("a", 1, "train"), ("b", 0, "train"), ("b", 1, "test")])
    with pytest.raises(InputError, match="site s: case a is tested in fold 0, case b in 1"):
        folds.run({"a": {"site": "s"}, "b": {"site": "s"}, "c": {"site": "t"}}, (), folds=2, site="site")


def test_imported_csv_ledger_with_other_columns_is_appended_to(folds):
    folds.ledger = folds.folder / "mine.csv"
    text = "fold,comment,role,case_id\n0,hand-made,test,a\n1,,train,a\n0,,val,b\n1,,test,b"
    folds.ledger.write_text(text)
    splits = folds.run({case: {"x": ""} for case in "abc"}, (), folds=2)
    assert splits.roles()["a"] == {0: "test", 1: "train"}
    assert folds.ledger.read_text().startswith(text + "\n")
    assert len(folds.ledger.read_text().splitlines()) == 7
    assert folds.run({case: {"x": ""} for case in "abc"}, (), folds=2).roles() == splits.roles()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case_id\tfold\na\t0\n", "column role missing"),
        ("case_id\tfold\trole\na\tone\ttest\n", "row 2 .case_id 'a'.: fold 'one'"),
        ("case_id\tfold\trole\na\t0\ttrian\n", "did you mean 'train'"),
        ("case_id\tfold\trole\na\t0\ttest\na\t0\ttest\n", "row 3 .* two rows for fold 0"),
        ("case_id\tfold\trole\n\t0\ttest\n", "row 2 .*case_id is empty"),
    ],
)
def test_malformed_fold_tables(tmp_path, text, message):
    (tmp_path / "s.tsv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_splits(tmp_path / "s.tsv")


def test_folds_without_event_or_class_are_noted(folds):
    rows = {f"c{i}": {"grade": "G4" if i == 0 else "G2", "days": "5", "dead": "1" if i < 2 else "0"} for i in range(12)}
    folds.run(rows, folds=3, validation=0)
    written = read_table(folds.folder / "notes.tsv", ["fold", "role", "task", "problem"])
    assert written == [{"fold": n.fold, "role": n.role, "task": n.task, "problem": n.problem} for n in folds.notes]
    by_task = Counter((note["task"], note["role"]) for note in written)
    assert by_task[("grade", "test")] == 2  # one fold tests the only G4
    assert by_task[("grade", "train")] == 1  # and trains on none
    assert by_task[("os", "test")] == 1  # two events in three folds


def test_cases_without_label_are_dealt_too(folds):
    rows = cohort(24)
    for case in list(rows)[:6]:
        rows[case] = {"grade": "", "days": "", "dead": ""}
    splits = folds.run(rows, folds=3)
    assert len(splits.roles()) == 24
    assert [sum(case in list(rows)[:6] for case in splits.cases(fold, "test")) for fold in range(3)] == [2, 2, 2]


def test_new_cases_fill_what_an_imported_ledger_lacks(folds):
    ledger_of(folds, [(f"a{i}", fold, "train" if fold else "test") for i in range(8) for fold in range(2)])
    rows = {f"{name}{i}": {"x": ""} for name in "ab" for i in range(8)}
    splits = folds.run(rows, (), folds=2)
    assert splits.cases(1, "test") == [f"b{i}" for i in range(8)]


def test_new_cases_balance_the_single_labels_of_an_old_ledger(folds):
    old = {"a": ("G0", 0), "b": ("G0", 0), "c": ("G1", 0), "d": ("G0", 1), "e": ("G1", 1), "f": ("G1", 1)}
    ledger_of(folds, [(c, fold, "test" if fold == at else "train") for c, (_, at) in old.items() for fold in (0, 1)])
    rows = {case: {"grade": grade, "other": case} for case, (grade, _) in {**old, "new": ("G0", None)}.items()}
    tasks = [GRADE, {"name": "other", "kind": "classification", "label": "other"}]  # every combination is unique
    assert "new" in folds.run(rows, tasks, folds=2).cases(1, "test")


def test_validation_quota_counts_old_cases_and_looks_at_the_labels(folds):
    # 40 old cases, all G2, all tested in fold 1; 12 of them validate in fold 0: twice the quota of 6.
    ledger_of(
        folds,
        [(f"a{i}", fold, "test" if fold else "val" if i < 12 else "train") for i in range(40) for fold in range(2)]
        + [(f"t{i}", fold, "train" if fold else "test") for i in range(80) for fold in range(2)],
    )
    rows = {f"a{i}": {"grade": "G2"} for i in range(40)} | {f"t{i}": {"grade": "G2"} for i in range(80)}
    rows |= {f"b{i:02d}": {"grade": "G3"} for i in range(80)}
    splits = folds.run(rows, [GRADE], folds=2, validation=0.15)
    new = [case for case in splits.cases(0, "val") if case.startswith("b")]
    # 40 new cases do not test in fold 0. Their own quota is 6; the surplus of the old ones takes some, not all of it.
    assert 0 < len(new) < 6


def two_cohorts(n=40):
    return {case: {**row, "cohort": "AB"[i % 4 == 3]} for i, (case, row) in enumerate(cohort(n).items())}


def test_external_cohorts_have_that_role_in_every_fold_and_no_say_in_the_others(folds):
    rows = two_cohorts()
    inside = {case for case, row in rows.items() if row["cohort"] == "A"}
    splits = folds.run(rows, folds=3, external="B")
    assert splits.external == sorted(set(rows) - inside)
    for case, roles in splits.roles().items():
        expected = {"external"} if case not in inside else {"train", "val", "test"}
        assert set(roles) == {0, 1, 2} and set(roles.values()) <= expected
    assert set(read_splits(folds.ledger).roles()) == inside
    alone = Folds(folds.folder / "alone")
    alone.folder.mkdir()
    assert alone.run({case: rows[case] for case in rows if case in inside}, folds=3).roles() == {
        case: roles for case, roles in splits.roles().items() if case in inside
    }


def test_a_cohort_becomes_external_and_comes_back(folds):
    rows = two_cohorts()
    before = folds.run(rows, folds=3).roles()
    ledger = folds.ledger.read_bytes()
    out = folds.run(rows, folds=3, external=["B"])
    assert len(out.external) == 10 and folds.ledger.read_bytes() == ledger
    assert "10 cases of" in folds.notes[0].problem and "do not count" in folds.notes[0].problem
    assert folds.run(rows, folds=3).roles() == before


def test_external_cohorts_without_labels_or_events_are_noted(folds):
    rows = two_cohorts()
    for row in rows.values():
        if row["cohort"] == "B":
            row |= {"grade": "", "dead": "0"}
    folds.run(rows, folds=3, external="B")
    notes = [(note.task, note.role, note.problem) for note in folds.notes if note.role == "external"]
    assert notes == [
        ("grade", "external", "no case with a label in cohort B"), ("os", "external", "no event in cohort B"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("external", "change", "message"),
    [
        ("b", {}, "no case of cases.tsv has cohort 'b'.*choose from A, B"),
        (["A", "B"], {}, "every case is of an external cohort"),
        ("B", {"patient_id": "p"}, "patient p: case case0003 is of an external cohort, case case0000 is not"),
    ],
)
def test_external_cohorts_that_cannot_be(folds, external, change, message):
    rows = two_cohorts(8)
    for case in ("case0000", "case0003"):
        rows[case] |= change
    for row in rows.values():
        row.setdefault("patient_id", "")
    with pytest.raises(InputError, match=message):
        folds.run(rows, folds=2, external=external)
