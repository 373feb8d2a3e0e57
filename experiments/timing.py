"""Timing side by side: every function in turn, round after round, in one process."""

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
    """Times of one function's calls.

    Attributes:
      median: over all turns of the median call in each; what a user sees. Pairs that turns take one
        by one count alike, however many calls fit into a turn.
      quiet: likewise of the fastest call in each; what it takes when little else disturbs it.
      minimum: of all its calls; what the machine can do.
      calls: how many were timed.
    """

    median: float
    quiet: float
    minimum: float
    calls: int


Images = np.ndarray | Sequence[Any]  # on the host, or one by one on a device


class PairByPair:
    """Calls with one pair of images, the next one in each turn of `interleave`.

    As all functions have as many turns, all are timed on the same pairs: the first ones, as many as
    there are rounds.
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
    """Time functions in turn, so that load from elsewhere falls on all alike.

    In each round each function has a turn: a call that does not count and brings its data into
    the caches, then timed calls until the turn is over, one at least. A function that takes longer
    than a turn fills the caches itself: only its first call is left out, unless each of its turns
    has a pair of its own (`PairByPair`), for then all must have seen what they are timed on. Every
    other round goes backwards.

    Args:
      functions: what to time; each waits for its own results.
      rounds: turns of each.
      turn: seconds.
      most: timed calls in a turn.
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
    """How many processes wanted a core in the last minute; None where the system does not tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def host_memory(function: Callable[[], Any]) -> int | None:
    """Bytes by which a call raises the highest resident memory of this process; None but on Linux.

    Memory that an allocator has kept from before is not seen.
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
