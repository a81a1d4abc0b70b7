"""Whole or absent: what a reader finds under a final name is complete, or there is nothing."""

import os
import signal
import subprocess
import sys
import time

import pytest

from pipeline.contracts.errors import FormatError, InputError
from pipeline.contracts.files import (
    digest_of,
    file_identity,
    read_json,
    read_table,
    whole_file,
    write_json,
    write_table,
)


def test_an_exception_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), whole_file(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "old"


def test_a_killed_writer_leaves_nothing_under_the_final_name(tmp_path):
    code = (
        "import sys, time\nfrom pipeline.contracts.files import whole_file\n"
        "with whole_file(sys.argv[1]) as part:\n    part.write_text('half')\n"
        "    print('writing', flush=True)\n    time.sleep(60)"
    )
    path = tmp_path / "a.txt"
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not path.exists()
    with whole_file(path) as part:
        part.write_text("whole")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_json_refuses_other_kinds_versions_and_damage(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, "thing", 1, {"x": 0.1})
    assert read_json(path, "thing", 1)["x"] == 0.1
    for kind, version in (("other", 1), ("thing", 2)):
        with pytest.raises(FormatError, match="expected"):
            read_json(path, kind, version)
    path.write_text(path.read_text()[:-5])
    with pytest.raises(FormatError, match="not readable"):
        read_json(path, "thing", 1)


def test_digest_depends_on_values_and_not_on_key_order():
    assert digest_of({"a": 1, "b": 2.5}) == digest_of({"b": 2.5, "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2})
    with pytest.raises(ValueError, match="JSON"):
        digest_of(float("nan"))


@pytest.mark.parametrize("where", [0, 100_000, -1])
def test_identity_sees_a_changed_byte_of_a_copy_that_keeps_the_time(tmp_path, where):
    path = tmp_path / "slide"
    content = bytearray(200_000)
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    before = file_identity(path)
    content[where] = 1
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    assert file_identity(path) != before


def test_identity_sees_the_time(tmp_path):
    path = tmp_path / "slide"
    path.write_bytes(b"x")
    before = file_identity(path)
    time.sleep(0.01)
    path.touch()
    assert file_identity(path) != before


def test_tables(tmp_path):
    path = tmp_path / "a.tsv"
    write_table(path, ["a", "b"], [{"a": 0.1, "b": "two\tlines\nhere"}, {"a": None, "b": ""}])
    assert read_table(path, ["a"])[0] == {"a": "0.1", "b": "two lines here"}
    with pytest.raises(ValueError, match="c"):
        write_table(path, ["a"], [{"c": 1}])
    path.write_text("a\ta\n1\t2\n")
    with pytest.raises(InputError, match="column a occurs twice"):
        read_table(path)
    path.write_text("a\n1\t2\n")
    with pytest.raises(InputError, match="more fields"):
        read_table(path)
