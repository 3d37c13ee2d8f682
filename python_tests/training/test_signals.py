"""Signals that stop a run: taken in the main thread, left alone in others."""

import importlib
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from spanbert_ext.training import signals
from spanbert_ext.training.loop import StopRequest


def in_a_thread(work):
    """What a function gives in a thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def handlers():
    return [signal.getsignal(number) for number in signals.STOPPING]


@pytest.mark.parametrize("number", signals.STOPPING)
def test_the_main_thread_takes_signals_and_gives_them_back(number):
    before = handlers()
    with StopRequest() as stop:
        assert not stop.requested()
        os.kill(os.getpid(), number)
        assert stop.requested() and stop.signal == number
    assert handlers() == before


def test_another_thread_leaves_them_alone():
    before = handlers()

    def work():
        with StopRequest() as stop:
            return handlers(), stop.requested()

    assert in_a_thread(work) == (before, False)
    assert handlers() == before


def test_a_handler_that_python_cannot_set_again(monkeypatch):
    """`signal.signal` gives None for one that a library of C has set."""
    given = []
    monkeypatch.setattr(signal, "signal", lambda number, handler: given.append(handler))
    with signals.handled(print):
        pass
    count = len(signals.STOPPING)
    assert given == [print] * count + [signal.SIG_DFL] * count


def test_a_system_without_user_signals(monkeypatch):
    """As Windows."""
    monkeypatch.delattr(signal, "SIGUSR1")
    monkeypatch.delattr(signal, "SIGUSR2")
    try:
        importlib.reload(signals)
        assert signals.STOPPING == (signal.SIGTERM, signal.SIGINT)
    finally:
        monkeypatch.undo()
        importlib.reload(signals)
