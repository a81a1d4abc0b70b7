"""One thread that does work in the order in which it was handed over, a bounded number of pieces behind."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

T = TypeVar("T")


class WritingThread:
    """A context manager; `most` pieces of work wait at a time, then handing over another waits as well."""

    def __init__(self, most: int = 8) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._waiting: deque[Future[object]] = deque()
        self._most = most

    def submit(self, work: Callable[..., T], *arguments: object) -> Future[T]:
        """Raises what an earlier piece of work has raised."""
        while self._waiting and (self._waiting[0].done() or len(self._waiting) >= self._most):
            self._waiting.popleft().result()
        task = self._pool.submit(work, *arguments)
        self._waiting.append(task)
        return task

    def insist(self, work: Callable[[], object]) -> None:
        """Hand over a piece of work whatever earlier ones have raised, and forget what it raises itself."""
        self._pool.submit(work)

    def __enter__(self) -> WritingThread:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
        if kind is None:
            for task in self._waiting:
                task.result()
