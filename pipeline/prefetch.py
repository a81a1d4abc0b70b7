"""Items of an iterable made in a thread of their own, a bounded number ahead of whoever takes them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")
_END = object()


class Prefetch(Generic[T]):
    """An iterator over `items` that holds up to `depth` of them ready; a context manager that ends the thread.

    An exception of `items` is raised to the taker, in its place among the items.
    """

    def __init__(self, items: Iterable[T], depth: int = 1) -> None:
        self._items = items
        self._queue: queue.Queue[object] = queue.Queue(max(1, depth))
        self._is_stopped = threading.Event()
        self._is_over = False
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)

    def is_ready(self) -> bool:
        """Whether the next item can be taken without waiting."""
        return self._is_over or not self._queue.empty()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._is_over:
            raise StopIteration
        item = self._queue.get()
        if item is _END:
            self._is_over = True
            raise StopIteration
        if isinstance(item, _Raised):
            self._is_over = True
            raise item.error
        return item  # type: ignore[return-value]

    def _run(self) -> None:
        try:
            for item in self._items:
                if not self._put(item):
                    return
            self._put(_END)
        except BaseException as error:
            self._put(_Raised(error))

    def _put(self, item: object) -> bool:
        """False if nobody will take it any more."""
        while not self._is_stopped.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __enter__(self) -> Prefetch[T]:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_stopped.set()
        self._thread.join()


class _Raised:
    def __init__(self, error: BaseException) -> None:
        self.error = error
