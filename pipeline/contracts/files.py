"""How artefacts reach the disk: whole or not at all, with a digest of what they came from (standard library only)."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.contracts.errors import FormatError, InputError

QUICK_HASH_BYTES = 64 * 1024


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it to `path`.

    The temporary name is ``.{name}.part``: a killed job leaves at most this hidden file, which the next attempt
    overwrites. On an exception it is removed and `path` stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        with open(part, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_text(path: str | Path, text: str) -> None:
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")


def canonical(value: Any) -> str:
    """JSON with sorted keys and shortest exact floats; NaN and infinity are refused."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def digest_of(*parts: Any) -> str:
    """SHA-256 (hex) of JSON-serialisable values. The same values give the same digest on every machine."""
    return hashlib.sha256(canonical(parts).encode()).hexdigest()


def bytes_digest(path: str | Path) -> str:
    """SHA-256 (hex) of a file's whole content."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def file_identity(path: str | Path) -> dict[str, Any]:
    """Size (bytes), modification time (ns) and a quick hash (first, middle and last 64 KiB) of a file.

    Gigapixel slides are too large to hash whole on every run; a copy that keeps the time is still told apart by the
    size or the hash in all but contrived cases.
    """
    path = Path(path)
    stat = path.stat()
    with open(path, "rb") as handle:
        quick = quick_hash(handle, stat.st_size)
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "quick_hash": quick}


def quick_hash(handle: BinaryIO, size: int) -> str:
    """SHA-256 (hex) of a file's size and its first, middle and last 64 KiB."""
    quick = hashlib.sha256(str(size).encode())
    for start in (0, size // 2, max(0, size - QUICK_HASH_BYTES)):
        handle.seek(start)
        quick.update(handle.read(QUICK_HASH_BYTES))
    return quick.hexdigest()


def write_json(path: str | Path, kind: str, version: int, content: Mapping[str, Any]) -> None:
    """Write a small artefact: `content` plus its ``kind`` and ``format_version``, keys sorted, two-space indent."""
    body = {"kind": kind, "format_version": version, **content}
    write_text(path, json.dumps(body, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path, kind: str, version: int) -> dict[str, Any]:
    """Read what `write_json` wrote. Raises FormatError for damage, another kind or an unknown version."""
    try:
        body = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"{path}: not readable as JSON ({error}). Fix: delete it and rerun its stage.") from error
    check_version(path, kind, version, body.get("kind"), body.get("format_version"))
    return body


def check_version(path: str | Path, kind: str, version: int, found_kind: Any, found_version: Any) -> None:
    """Raise FormatError unless a file is of the expected kind and format version."""
    if found_kind != kind or found_version != version:
        raise FormatError(
            f"{path}: expected {kind} of format version {version}, found {found_kind!r} of version {found_version!r}."
            " Fix: delete it and rerun its stage with this version of histoweave."
        )


def write_table(path: str | Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a TSV with a header. None becomes an empty field, floats their shortest exact form; unknown keys raise."""
    with whole_file(path) as part, open(part, "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, columns, delimiter="\t", lineterminator="\n", extrasaction="raise")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: _field(value) for key, value in row.items()})


def _field(value: Any) -> str:
    return "" if value is None else " ".join(str(value).split()) if isinstance(value, str) else str(value)


def read_table(path: str | Path, required: Sequence[str] = ()) -> list[dict[str, str]]:
    """Read a TSV (or CSV, by its name) as one dictionary of stripped strings per row, blank lines skipped.

    Raises InputError for a missing or empty file, a missing or repeated column, or a row with too many fields.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(str(path), "the file does not exist.", "correct its path in config.yaml, or create it.")
    delimiter = "," if path.suffix == ".csv" else "\t"
    with open(path, newline="", encoding="utf-8-sig") as handle:
        reader = csv.DictReader(handle, delimiter=delimiter)
        names = [name.strip() for name in reader.fieldnames or []]
        missing = [name for name in required if name not in names]
        if missing:
            raise InputError(
                str(path),
                f"column {', '.join(missing)} missing; found: {', '.join(names) or 'an empty file'}.",
                f"the first line must name the columns, separated by {'commas' if delimiter == ',' else 'tabs'}.",
            )
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise InputError(str(path), f"column {', '.join(repeated)} occurs twice.", "keep one of them.")
        reader.fieldnames = names
        rows = []
        for number, row in enumerate(reader, start=2):
            if None in row:
                raise InputError(f"{path} row {number}", f"more fields than the {len(names)} columns.")
            rows.append({key: (value or "").strip() for key, value in row.items()})
    return [row for row in rows if any(row.values())]
