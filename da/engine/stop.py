"""Requests to stop, by a signal or by the time limit: all processes leave together, at the same point of the run."""

import contextlib
import math
import os
import re
import signal
import time
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as distributed

from da.engine import dist
from da.engine.interrupt import INTERRUPTS, stop_now

T = TypeVar("T")

COME_BACK = 75  # EX_TEMPFAIL of sysexits.h
GRACE = 10.0  # seconds that a wait for data may still take when the run is asked to stop
TIME_IS_UP = 74  # a request only: it ends with COME_BACK
CODES = {signal.SIGUSR1: COME_BACK, signal.SIGINT: 130, signal.SIGUSR2: 130, signal.SIGTERM: 143}
REASONS = {TIME_IS_UP: "run.time_limit", COME_BACK: "SIGUSR1", 130: "SIGINT", 143: "SIGTERM"}


class Stopped(Exception):
    """The run was asked to stop. `code` is the exit code: 75 (SIGUSR1, time limit), 130 (SIGINT), 143 (SIGTERM).

    `alone`: this process was waiting for data; others may be anywhere, and nothing can be done together any more.
    """

    def __init__(self, request: int, alone: bool = False) -> None:
        super().__init__(REASONS[request])
        self.alone = alone
        self.time_is_up = request == TIME_IS_UP
        self.code = COME_BACK if self.time_is_up else request


def seconds(text: str) -> int:
    """`3h50m` -> 13800. Days, hours, minutes and seconds, in this order, each at most once.

    Raises:
        ValueError: `text` is written otherwise.
    """
    match = re.fullmatch(r"(?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,8})s)?", text)
    if not match or not any(match.groups()):
        raise ValueError("write a time like 3h50m, 45m or 1d12h")
    return sum(int(n or 0) * unit for n, unit in zip(match.groups(), (86400, 3600, 60, 1)))


class StopRequests:
    """Listens, inside a `with` block, for SIGUSR1, SIGTERM, SIGINT and the end of the time limit.

    The limit (seconds) counts from the launch script's start where one says it in DA_STARTED (seconds since 1970),
    else from here. A second SIGINT is a KeyboardInterrupt. SIGUSR2 is a SIGINT that the launch script hands on; they
    are counted apart because one Ctrl-C in a terminal may come both ways.
    """

    def __init__(self, limit: float | None) -> None:
        self._code = 0
        self._seen: set[int] = set()
        started = float(os.environ.get("DA_STARTED", time.time()))
        self._deadline = started + limit if limit is not None else float("inf")
        self._group: Any = None
        self._waits = False

    def __enter__(self) -> "StopRequests":
        self._before = {number: signal.signal(number, self._ask) for number in CODES}
        self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._give_up)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not KeyboardInterrupt:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if number in INTERRUPTS and number in self._seen:
            stop_now()
        self._seen.add(number)
        self._code = self._code or CODES[signal.Signals(number)]
        if self._waits:
            self._limit_wait()

    def _limit_wait(self) -> None:
        left = 0.0 if self._code else self._deadline - time.time()
        if math.isfinite(left):
            signal.setitimer(signal.ITIMER_REAL, max(left, 0.0) + GRACE)

    def _give_up(self, *_: object) -> None:
        if self._waits and self._request():
            raise Stopped(self._request(), alone=dist.world() > 1)

    def _request(self) -> int:
        return self._code or (TIME_IS_UP if time.time() > self._deadline else 0)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around a wait for data, which may be without end where a disk does not answer.

        Raises:
            Stopped: in this process, where the data had not come `GRACE` seconds after it was asked to stop.
        """
        self._waits = True
        self._limit_wait()
        try:
            yield
        finally:
            self._waits = False
            signal.setitimer(signal.ITIMER_REAL, 0)

    def awaited(self, items: Iterable[T]) -> Iterator[T]:
        """`items`, with each wait for the next one as in `waiting`."""
        iterator, end = iter(items), object()
        while True:
            with self.waiting():
                item: Any = next(iterator, end)
            if item is end:
                return
            yield item

    def poll(self) -> None:
        """Every process must call this equally often.

        Raises:
            Stopped: in all processes at the same call, once any of them was asked to stop.
        """
        request = self._highest(self._request())
        if request:
            raise Stopped(request)

    def watch(self, items: Iterable[T], count: int) -> Iterator[T]:
        """The `count` `items` of this process, with a `poll` after each; processes with fewer of them poll on."""
        rounds = self._highest(count)
        for item in self.awaited(items):
            yield item
            self.poll()
        for _ in range(count, rounds):
            self.poll()

    def _highest(self, value: int) -> int:
        """The highest `value` of all processes, over the network of the CPUs: no GPU is waited for."""
        if dist.backend() is None:
            return value
        if self._group is None:
            gloo = dist.backend() == "gloo"
            self._group = distributed.group.WORLD if gloo else distributed.new_group(backend="gloo")
        highest = torch.tensor(value)
        distributed.all_reduce(highest, distributed.ReduceOp.MAX, self._group)
        return int(highest)
