"""Time functions side by side: each in turn, in several rounds, in one process."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Seconds:
    """Times of one function's calls, in seconds.

    Attributes:
      median: median over all turns of the median call in each; what a user sees. If each turn has
        its own pair, all pairs count equally, however many calls fit into a turn.
      quiet: median over all turns of the fastest call in each; the time without much other load.
      minimum: the fastest of all calls; what the machine can do.
      calls: number of timed calls.
    """

    median: float
    quiet: float
    minimum: float
    calls: int


Images = np.ndarray | Sequence[Any]  # a stack on the host, or single images on a device


class PairByPair:
    """Calls a function with one pair of images, a new one in each turn of `interleave`.

    All functions have the same number of turns, so all are timed on the same pairs: the first
    ones, one for each round.
    """

    def __init__(self, call: Callable[..., Any], fixed: Images, moving: Images):
        self._call, self._fixed, self._moving = call, fixed, moving
        self._turn = -1

    def next_turn(self) -> None:
        """Go on to the next pair."""
        self._turn += 1

    def __call__(self) -> Any:
        """Call with this turn's pair."""
        k = max(self._turn, 0) % len(self._fixed)
        return self._call(self._fixed[k], self._moving[k])


def interleave(
    functions: Sequence[Callable[[], Any]],
    rounds: int,
    turn: float = 0.1,
    most: int = 50,
    progress: Callable[[int], Any] | None = None,
) -> list[Seconds]:
    """Time functions in turn, so that other load affects all equally.

    In each round each function has a turn: one call to fill the caches, which does not count, then
    timed calls until the turn is over, at least one. A function that takes longer than a turn fills
    the caches by itself: only its very first call does not count. But if each turn has a pair of
    its own (`PairByPair`), the first call of every turn is left out, so that all functions have
    seen the pair that they are timed on. Every second round is in reverse order.

    Args:
      functions: the functions; each waits for its own results.
      rounds: turns of each function.
      turn: seconds of a turn.
      most: largest number of timed calls in a turn.
      progress: called with 1 after each turn.
    """
    times: list[list[list[float]]] = [[] for _ in functions]
    with _no_garbage_collection():
        for k in range(rounds):
            order = range(len(functions))
            for i in order if k % 2 == 0 else reversed(order):
                times[i].append(_turn(functions[i], turn, most, new_data=not times[i]))
                if progress is not None:
                    progress(1)
    return [_summary(turns) for turns in times]


def _summary(turns: list[list[float]]) -> Seconds:
    median = float(np.median([np.median(turn) for turn in turns]))
    quiet = float(np.median([min(turn) for turn in turns]))
    return Seconds(median, quiet, min(map(min, turns)), sum(map(len, turns)))


def _turn(function: Callable[[], Any], turn: float, most: int, new_data: bool) -> list[float]:
    if isinstance(function, PairByPair):
        function.next_turn()
        new_data = True
    first = _timed(function)
    if first > turn and not new_data:
        return [first]
    times = [_timed(function)]
    while sum(times) < turn and len(times) < most:
        times.append(_timed(function))
    return times


def _timed(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def load_average() -> float | None:
    """Return the mean number of active processes in the last minute; None if unknown."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def host_memory(function: Callable[[], Any]) -> int | None:
    """Return the bytes by which a call raises this process's peak memory; None except on Linux.

    Memory that an allocator has kept from before is not counted.
    """
    try:
        # "5" resets the high-water mark to what is resident now (proc_pid_clear_refs(5)).
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
        function()
        return max(0, _resident("VmHWM") - before)
    except (OSError, ValueError):
        return None


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise ValueError(f"no {field} in /proc/self/status")
