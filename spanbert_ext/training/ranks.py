"""The processes of a run ("ranks"): joining, agreeing, and noticing that one is gone.

Started by torchrun or by `launch.py`, which set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and
MASTER_PORT. Decisions that touch the disk are made by rank 0 and broadcast, faults included. A
second, host-only group carries signals and decisions, so that a GPU's stream never waits for them.

Every rank counts up a heartbeat in the common store. When a collective operation fails or times
out, the rank whose count stands still is named; a collective's own message does not tell.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from spanbert_ext.errors import NumericsError, Preempted, RankLost, ReportedElsewhere, SpanBertError

Value = TypeVar("Value")
_BEAT_SECONDS = 0.5
# Importing torch on a busy machine takes long; nobody is lost yet.
_JOIN_SECONDS = 120.0
# A living process counts up in this time even where its interpreter is busy.
_OBSERVE_SECONDS = 5.0


class Ranks:
    """This process among those of a run; `ALONE` is a run of one process.

    Args:
        rank, world: number of this process and of all.
        local_rank: its number on this machine, which chooses the GPU.
        control: group of host tensors; None without other processes.
    """

    def __init__(
        self,
        rank: int = 0,
        world: int = 1,
        local_rank: int = 0,
        control: dist.ProcessGroup | None = None,
    ):
        self.rank, self.world, self.local_rank = rank, world, local_rank
        self._control = control

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def add_up(self, values: torch.Tensor) -> torch.Tensor:
        """`values` summed over all ranks, in place; does not wait for a GPU."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def largest(self, number: int) -> int:
        """The largest of the ranks' host numbers."""
        if self.world == 1:
            return number
        box = torch.tensor([number], dtype=torch.int64)
        dist.all_reduce(box, dist.ReduceOp.MAX, group=self._control)
        return int(box)

    def decide(self, choose: Callable[[], Value]) -> Value:
        """What `choose` returns on rank 0, on every rank; the others do not call it.

        Args:
            choose: returns what JSON can hold.

        Raises:
            SpanBertError: rank 0's fault, raised there; ReportedElsewhere on the others.
        """
        if self.world == 1:
            return choose()
        if not self.is_main:
            verdict = json.loads(self._broadcast(None))
            if "fault" in verdict:
                raise ReportedElsewhere(verdict["fault"])
            return verdict["value"]
        try:
            value = choose()
        except SpanBertError as error:
            self._broadcast(json.dumps({"fault": error.exit_code}))
            raise
        self._broadcast(json.dumps({"value": value}))
        return value

    def main_first(self, make: Callable[[], Value]) -> Value:
        """`make()` on rank 0, and where that went well on the others: a fault they share is
        reported once.
        """
        made: list[Value] = []

        def attempt() -> None:
            made.append(make())

        self.decide(attempt)
        return made[0] if made else make()

    def gather(self, values: torch.Tensor) -> list[torch.Tensor]:
        """Host tensors of equal shape and dtype from every rank, on rank 0; elsewhere empty."""
        if self.world == 1:
            return [values]
        found = [torch.empty_like(values) for _ in range(self.world)] if self.is_main else None
        dist.gather(values, found, dst=0, group=self._control)
        return found or []

    def share_of(self, items: int) -> range:
        """The items of a batch that are this rank's, a contiguous equal part."""
        each = items // self.world
        return range(self.rank * each, (self.rank + 1) * each)

    def _broadcast(self, text: str | None) -> str:
        data = torch.tensor(list((text or "").encode()), dtype=torch.uint8)
        size = torch.tensor([data.numel()], dtype=torch.int64)
        dist.broadcast(size, 0, group=self._control)
        if not self.is_main:
            data = torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(data, 0, group=self._control)
        return bytes(data.tolist()).decode()


ALONE = Ranks()


class Heartbeat:
    """Counts up in the common store while this process lives and runs.

    Args:
        store: common to all ranks; the thread has a connection of its own.
        rank, world: as in `Ranks`.
    """

    def __init__(self, store: dist.Store, rank: int, world: int):
        self._store, self._rank, self._world = store, rank, world
        self._ended = threading.Event()
        store.set(f"who/{rank}", f"rank {rank} (pid {os.getpid()} on {socket.gethostname()})")
        store.set(f"beat/{rank}", "0")
        store.wait([f"{kind}/{other}" for kind in ("who", "beat") for other in range(world)])
        self._names = [store.get(f"who/{other}").decode() for other in range(world)]
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        count = 0
        while not self._ended.wait(_BEAT_SECONDS):
            count += 1
            with contextlib.suppress(RuntimeError):  # the store's host is gone; nobody reads now
                self._store.set(f"beat/{self._rank}", str(count))

    def standing_still(self) -> dict[int, str]:
        """The other ranks that did not count up for some seconds, by name."""
        try:
            before = self._counts()
            time.sleep(_OBSERVE_SECONDS)
            after = self._counts()
        except RuntimeError:  # the store lives in rank 0 unless a launcher keeps it
            return {0: self._names[0]} if self._rank else {}
        return {
            other: self._names[other]
            for other in range(self._world)
            if other != self._rank and before[other] == after[other]
        }

    def _counts(self) -> list[bytes]:
        return [self._store.get(f"beat/{other}") for other in range(self._world)]

    def end(self) -> None:
        """Stop counting."""
        self._ended.set()
        self._thread.join(timeout=2 * _BEAT_SECONDS)  # it may be waiting for a store that is gone


def place_in_world() -> tuple[int, int, int]:
    """(rank, world size, local rank) that the launcher of this process set; (0, 1, 0) without."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    rank, world, local = (int(os.environ.get(n, d)) for n, d in zip(names, "010", strict=True))
    return rank, world, local


@contextlib.contextmanager
def join(device_type: str, timeout: float) -> Iterator[Ranks]:
    """The ranks of this run, connected inside the block.

    Args:
        device_type: "cuda" exchanges gradients through NCCL, "cpu" through gloo.
        timeout: seconds that a rank waits for another one before it gives the run up.

    Raises:
        RankLost: inside the block a collective operation failed and a rank is gone.
        ReportedElsewhere: on ranks above 0, a fault that rank 0 reports.
    """
    rank, world, local_rank = place_in_world()
    if world == 1:
        yield ALONE
        return
    patience = timedelta(seconds=timeout)
    heartbeat = None
    try:
        control, heartbeat = _meet(rank, world, device_type, patience)
        yield Ranks(rank, world, local_rank, control)
    except RuntimeError as error:
        if heartbeat is None:
            raise RankLost(f"not all of {world} processes could be reached: {error}") from error
        lost = heartbeat.standing_still()
        if not lost:
            raise
        if rank > min(set(range(world)) - lost.keys()):
            raise ReportedElsewhere(RankLost.exit_code) from error
        raise RankLost(
            f"{', '.join(lost.values())} is gone or stopped answering (parallel.timeout is "
            f"{timeout:g} s), so the run ends; the newest checkpoint is whole. Start the same "
            "command again to continue from it"
        ) from error
    except (Preempted, NumericsError) as error:
        if rank:
            raise ReportedElsewhere(error.exit_code) from error
        raise
    finally:
        if heartbeat is not None:
            heartbeat.end()
    dist.destroy_process_group()


def _meet(
    rank: int, world: int, device_type: str, patience: timedelta
) -> tuple[dist.ProcessGroup, Heartbeat]:
    """Connect with the other ranks; the control group and this rank's heartbeat."""
    arrival = max(patience, timedelta(seconds=_JOIN_SECONDS))
    store = _connect(rank, arrival)
    heartbeat = Heartbeat(_connect(rank, arrival, another=True), rank, world)
    # The control group notices a lost rank first, and says so better than NCCL's watchdog.
    backend, limit = ("nccl", 2 * patience) if device_type == "cuda" else ("gloo", patience)
    groups = dist.PrefixStore("group", store)
    dist.init_process_group(backend, store=groups, rank=rank, world_size=world, timeout=limit)
    return dist.new_group(backend="gloo", timeout=patience), heartbeat


def _connect(rank: int, patience: timedelta, another: bool = False) -> dist.Store:
    """The store at MASTER_ADDR:MASTER_PORT; rank 0 hosts it unless a launcher does."""
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=rank == 0 and not hosted and not another,
        timeout=patience,
        wait_for_workers=False,
    )
    # An elastic restart finds the keys of the attempt before it in the same store.
    return dist.PrefixStore(f"spanbert/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
