"""Read import statements, without running them: who imports whom, and what a script needs in the end."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

OURS = ("pipeline", "models", "workflow", "benchmarks")


def modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file, for every Python module of ours below `root` (rule scripts are not modules)."""
    found = {}
    for package in OURS:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            if parts[:2] != ("workflow", "scripts"):
                found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path) -> Iterator[str]:
    """Dotted names that a file imports anywhere, also inside functions; ``from a import b`` gives both a and a.b."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the whole name"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(root: Path) -> list[str]:
    """Breaches of `workflow -> pipeline, models -> pipeline.contracts`, one line each."""
    breaches = []
    for name, path in modules(root).items():
        for target in imported(path):
            reason = _forbidden(name, target)
            if reason:
                breaches.append(f"{name} imports {target}: {reason}")
    return breaches


def _forbidden(name: str, target: str) -> str:
    top, wanted = name.split(".")[0], target.split(".")[0]
    if top in ("pipeline", "models") and wanted in ("workflow", "benchmarks", "snakemake"):
        return f"{top} knows neither the workflow nor Snakemake"
    if top == "pipeline" and wanted == "models":
        return "pipeline never imports models"
    if top == "models" and wanted == "pipeline" and target != "pipeline" and not _within(target, "pipeline.contracts"):
        return "models may import pipeline.contracts only"
    if _within(name, "pipeline.contracts"):
        if wanted == "pipeline" and not _within(target, "pipeline.contracts"):
            return "contracts stand at the bottom"
        if wanted in ("torch", "scanpy", "timm", "cv2", "matplotlib"):
            return "contracts stay light"
    return ""


def _within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def closure(script: Path, root: Path) -> set[str]:
    """Top-level names of all foreign packages that a script imports in the end, through our modules."""
    known = modules(root)
    todo, seen, foreign = [script], set(), set()
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        for target in imported(path):
            if target.split(".")[0] in OURS:
                todo += [known[part] for part in _prefixes(target) if part in known]
            else:
                foreign.add(target.split(".")[0])
    return foreign


def _prefixes(target: str) -> list[str]:
    parts = target.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]
