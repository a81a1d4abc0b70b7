"""Slide files that are not on this machine's disks, through fsspec: any address that it knows, such as s3 or zip."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from types import TracebackType
from typing import Any, BinaryIO

import fsspec

from pipeline.contracts.errors import SlideError
from pipeline.contracts.files import quick_hash

_VERSIONS = ("ETag", "etag", "md5", "md5Hash", "version_id", "LastModified", "last_modified", "mtime", "created")


@dataclass(frozen=True)
class RemoteFile:
    """An open file and the system that it comes from, which closes it when nobody holds it any longer."""

    system: fsspec.AbstractFileSystem
    path: str
    handle: BinaryIO

    @property
    def size(self) -> int:
        """In bytes; leaves the file at its beginning."""
        size = self.handle.seek(0, 2)
        self.handle.seek(0)
        return size

    def __enter__(self) -> RemoteFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.handle.close()


def remote_file(url: str) -> RemoteFile:
    """Open a remote file for reading; a context manager.

    Raises
    ------
    SlideError : it is not there, cannot be reached, or a package for its protocol is missing
    """
    try:
        system, path = fsspec.core.url_to_fs(url)
        return RemoteFile(system, path, system.open(path, "rb"))
    except ImportError as error:
        raise SlideError(
            f"{url}: its protocol needs a package that is not installed ({error}). Fix: install it (pip install s3fs"
            " for s3://, gcsfs for gs://, adlfs for az://, aiohttp for https://)."
        ) from error
    except FileNotFoundError as error:
        raise SlideError(f"{url}: there is no such file. Fix: correct its path in slides.tsv.") from error
    except Exception as error:  # each protocol has exceptions of its own
        raise SlideError(f"{url}: cannot be opened ({error}). Fix: correct its path or your access to it.") from error


def remote_identity(url: str) -> dict[str, Any]:
    """As `contracts.files.file_identity`: size, the store's mark of a version where it has one, and the quick hash.

    Raises SlideError as `remote_file` does.
    """
    with remote_file(url) as file:
        size = file.size
        quick = quick_hash(file.handle, size)
        try:
            facts = file.system.info(file.path)
        except Exception:  # not every system tells more
            facts = {}
    version = next((str(facts[key]) for key in _VERSIONS if facts.get(key)), "")
    return {"size": size, "version": hashlib.sha256(version.encode()).hexdigest(), "quick_hash": quick}
