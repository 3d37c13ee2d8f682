"""`alone_with`: one thread at a time, without waiting for itself or for each other."""

import gc
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from spanbert_ext import SpanFiller, threads
from spanbert_ext.threads import alone_with


class Shared:
    """What threads would spoil."""

    users = 0


def test_one_thread_at_a_time():
    shared, seen = Shared(), []

    def work(_):
        with alone_with(shared):
            shared.users += 1
            seen.append(shared.users)
            time.sleep(0.001)
            shared.users -= 1

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(60)))
    assert seen == [1] * 60


def test_any_order_of_several_objects():
    """No two threads wait for each other."""
    several = [Shared() for _ in range(3)]

    def work(number):
        chosen = random.Random(number).sample(several, 2)
        with alone_with(*chosen), alone_with(*chosen[::-1]), alone_with(chosen[0]):
            time.sleep(0.0005)
        return number

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(work, range(60), timeout=60)) == list(range(60))


def test_a_fault_ends_the_turn():
    shared = Shared()
    with pytest.raises(ValueError), alone_with(shared):
        raise ValueError

    def work():
        with alone_with(shared):
            return True

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result(timeout=60)


def test_nothing_is_kept_of_what_is_gone():
    gc.collect()  # what other tests left
    before = len(threads._locks)
    with alone_with(Shared()):
        pass
    gc.collect()
    assert len(threads._locks) == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process_waits_for_no_thread_of_its_parent():
    shared = Shared()
    with ThreadPoolExecutor(1) as pool:
        turn = alone_with(shared)
        pool.submit(turn.__enter__).result()
        child = os.fork()
        if child == 0:
            with alone_with(shared):
                os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        pool.submit(turn.__exit__, None, None, None).result()


def test_threads_share_a_filler():
    from filling_cases import model_for, tiny_tokenizer

    tokenizer = tiny_tokenizer()
    filler = SpanFiller(model_for(tokenizer), tokenizer)
    texts = [f"a b {'c ' * n}___ d ." for n in range(6)]
    expected = [filler(text) for text in texts]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(filler, texts * 4)) == expected * 4
