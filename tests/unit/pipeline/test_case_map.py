"""The map of the cases (off by default: compiling it takes longer than this suite allows)."""

import numpy as np
import pytest

from pipeline.contracts.expression import Expression, write_expression
from pipeline.contracts.files import read_table
from pipeline.genes.case_map import write_case_map


def mapped(folder, n_cases):
    draw = np.random.default_rng(4)
    values = draw.normal(5, 1, (n_cases, 70)).astype(np.float32)
    values[: n_cases // 2, :30] += 6
    flags = np.arange(70) < 60
    cases = tuple(f"c{k:02d}" for k in range(n_cases))
    symbols = tuple(f"G{k:02d}" for k in range(70))
    write_expression(folder / "e.h5ad", Expression(cases, symbols, values, "log2", values, ("",) * 70, flags, ~flags))
    write_case_map(folder / "e.h5ad", folder / "map.tsv")
    return np.array([[float(row["umap1"]), float(row["umap2"])] for row in read_table(folder / "map.tsv")])


def test_too_few_cases_have_no_map(tmp_path):
    assert len(mapped(tmp_path, 4)) == 0


@pytest.mark.full
def test_two_kinds_of_cases_lie_apart(tmp_path):
    places = mapped(tmp_path, 30)
    middle = places[:15].mean(axis=0), places[15:].mean(axis=0)
    near = np.linalg.norm(places - middle[0], axis=1) < np.linalg.norm(places - middle[1], axis=1)
    np.testing.assert_array_equal(near, np.arange(30) < 15)
