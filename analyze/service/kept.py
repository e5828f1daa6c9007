"""What a service keeps in memory to use it again: the last few values, each made once however many ask for it at once."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


class Kept(Generic[_Key, _Value]):
    """The values that were used last, by key."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._values: OrderedDict[_Key, Future[_Value]] = OrderedDict()

    def get(self, key: _Key, make: Callable[[], _Value]) -> _Value:
        """The value of a key, made where there is none; whoever else asks meanwhile waits for it. What fails is not kept."""
        with self._lock:
            found = self._values.get(key)
            future = self._values.setdefault(key, found or Future())
            self._values.move_to_end(key)
            while len(self._values) > self._most:
                self._values.popitem(last=False)
        if found is None:
            try:
                future.set_result(make())
            except BaseException as error:
                self._forget(key, future)
                future.set_exception(error)
        return future.result()

    def peek(self, key: _Key) -> _Value | None:
        """The value of a key if it is there."""
        with self._lock:
            future = self._values.get(key)
        return future.result() if future is not None and future.done() and future.exception() is None else None

    def forget(self, stale: Callable[[_Key], bool]) -> None:
        """Make the values of some keys anew the next time."""
        with self._lock:
            for key in [key for key in self._values if stale(key)]:
                del self._values[key]

    def _forget(self, key: _Key, future: Future[_Value]) -> None:
        with self._lock:
            if self._values.get(key) is future:
                del self._values[key]
