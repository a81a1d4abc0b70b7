"""The order of the suite in two processes, each of which takes whole files (``make test``)."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start Snakemake first, the longest ahead, so that neither process waits for the other at the end."""
    items.sort(key=lambda item: (item.path.name != "test_readme.py", item.path.parent.name != "workflow"))
