"""How the suite is shared between two processes: tests that use the same costly fixture stay together."""

from __future__ import annotations

import pytest

#: files that bring their own clone of the project; every other test that starts Snakemake shares one finished cohort
OWN_CLONE = "test_readme.py"


def group(item: pytest.Item) -> str:
    """Tests of one group run in one process, one after the other."""
    folder, name = item.path.parent.name, item.path.name
    return "workflow" if folder == "workflow" and name != OWN_CLONE else f"{folder}/{name}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long groups first, so that neither process is left waiting for the other at the end."""
    items.sort(key=lambda item: (item.path.name != OWN_CLONE, group(item) != "workflow"))
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)))
