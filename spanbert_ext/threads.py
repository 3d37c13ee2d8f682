"""Turns for threads that share a model or a tokenizer. Torch-free."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Iterator
from typing import Any

# By object, not in it: what holds a model can be copied and pickled.
_locks: weakref.WeakKeyDictionary[Any, threading.RLock] = weakref.WeakKeyDictionary()
_guard = threading.Lock()


@contextlib.contextmanager
def alone_with(*shared: Any) -> Iterator[None]:
    """While the block runs, no other thread is in such a block with any of these objects.

    A thread may enter with what it is alone with already. A fast tokenizer keeps the truncation and
    padding of its last call, an encoder what it prepares for predictions, and both use all cores:
    taking turns is as fast as computing side by side.

    Args:
        shared: objects that can be referred to weakly, each compared by identity.
    """
    with _guard:
        locks = {id(lock): lock for lock in (_lock_of(one) for one in shared)}
    with contextlib.ExitStack() as held:
        for key in sorted(locks):  # one order for all threads, so that none waits for another's
            held.enter_context(locks[key])
        yield


def _lock_of(one: Any) -> Any:
    return _locks.setdefault(one, threading.RLock())


def _forget() -> None:
    """The threads that held locks do not exist in a forked process."""
    global _guard
    _guard = threading.Lock()
    _locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
