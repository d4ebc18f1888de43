"""Many threads may ask a model while one changes its catalogue: each sees one state of it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps

import torch


class TTDSLock:
    """Many readers at once, or one writer; writers go one after the other, before new readers.

    A thread that reads may read again. A copy or a pickle of the model has a lock of its own.
    """

    def __init__(self):
        self.one_writer = threading.Lock()  # held from before the new state is made until it is in
        self._changed = threading.Condition()
        self._readers, self._swapping = 0, False
        self._mine = threading.local()

    def __reduce__(self):
        return TTDSLock, ()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Keep the state as it is for a while."""
        depth = getattr(self._mine, "depth", 0)
        if depth == 0:
            with self._changed:
                self._changed.wait_for(lambda: not self._swapping)
                self._readers += 1
        self._mine.depth = depth + 1
        try:
            yield
        finally:
            self._mine.depth = depth
            if depth == 0:
                with self._changed:
                    self._readers -= 1
                    self._changed.notify_all()

    @contextmanager
    def swapping(self) -> Iterator[None]:
        """Wait until nobody reads and keep readers out; only who holds `one_writer` may."""
        try:
            with self._changed:
                self._swapping = True
                self._changed.wait_for(lambda: self._readers == 0)
            yield
        finally:
            with self._changed:
                self._swapping = False
                self._changed.notify_all()


def reading(method: Callable) -> Callable:
    """Let a method of a model see one state of its catalogue from beginning to end.

    Args:
        method: A method of a class with a `TTDSLock` as `lock`.
    """

    @wraps(method)
    def locked(self, *args, **kwargs):
        with self.lock.reading():
            return method(self, *args, **kwargs)

    return locked


def asking(method: Callable) -> Callable:
    """Let a method answer by one state of its catalogue, without gradients and in full precision.

    In half precision, to which `torch.autocast` would take it, near semantic IDs change places and
    large numbers become infinite.

    Args:
        method: As of `reading`; its class also says on which `device` it is.
    """

    @wraps(method)
    @torch.no_grad()
    def answered(self, *args, **kwargs):
        with self.lock.reading(), torch.autocast(self.device.type, enabled=False):
            return method(self, *args, **kwargs)

    return answered
