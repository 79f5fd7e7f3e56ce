"""Measure arms in turn in one process tree, and compare them with bars."""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

Arm = Callable[[], float]
PAIRS = 5


def now() -> float:
    """Return the seconds of a clock, once a GPU that this process uses has done what it was asked to do."""
    torch = sys.modules.get("torch")  # most parts that need no torch do not load it
    if torch and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(work: Callable[[], object]) -> Arm:
    """Return an arm that measures the time of `work`."""

    def arm() -> float:
        started = now()
        work()
        return now() - started

    return arm


def interleaved(arms: dict[str, Arm], pairs: int = PAIRS) -> dict[str, list[float]]:
    """Run all arms in turn, `pairs` times, after an uncounted warm-up; return their values."""
    found: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(pairs + 1):
        for name, arm in arms.items():
            value = arm()
            if turn:
                found[name].append(value)
    for name, values in found.items():
        print(f"  {name}: {_spread(values)} s")
    return found


class Bars:
    """Prints one line per bar and remembers whether one was missed.

    Attributes:
        lines: of the bars, as `close` prints them.
        said: all else that was found.
    """

    def __init__(self, part: str) -> None:
        self.lines: list[str] = []
        self.said: list[str] = []
        self.missed = False
        print(f"{part}, on {processor()}")

    def at_least(self, name: str, values: list[float], bound: float) -> None:
        """The median must not be below `bound`."""
        self._add(name, values, statistics.median(values) >= bound, f">= {bound:g}")

    def at_most(self, name: str, values: list[float], bound: float) -> None:
        """The median must not be above `bound`."""
        self._add(name, values, statistics.median(values) <= bound, f"<= {bound:g}")

    def say(self, text: str) -> None:
        """Print what has no bar."""
        self.said.append(text)
        print(text, flush=True)

    def add(self, line: str) -> None:
        """Add a line that starts with PASS, MISS, or open for a bar that is not measured."""
        self.lines.append(line)
        self.missed |= line.startswith("MISS ")

    def close(self) -> None:
        """Print the bars; exit with status 1 if one is missed."""
        print("\n".join(self.lines))
        sys.exit(self.missed)

    def _add(self, name: str, values: list[float], passed: bool, bound: str) -> None:
        self.add(f"{'PASS' if passed else 'MISS'} {name} {_spread(values)} {bound}")


def ratios(above: list[float], below: list[float]) -> list[float]:
    """Divide pair by pair."""
    return [one / other for one, other in zip(above, below, strict=True)]


def processor() -> str:
    """Return the number and model of the CPUs."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return f"{len(models)} × {models[0] if models else platform.processor()}"


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.4g} [{min(values):.4g} … {max(values):.4g}]"
