"""Run every part in its own process and repeat all bars at the end. Exit status 1 if one is missed."""

import subprocess
import sys
from collections.abc import Iterable

PARTS = (
    "boundary", "index", "loader", "methods", "sinkhorn", "kmeans", "precision", "gpu", "frozen", "knn", "proposals",
)  # fmt: skip


def part(module: str) -> list[str]:
    """Run a part and show its output. Return its bars' lines, and a MISS if it failed without a missed bar."""
    command = [sys.executable, "-u", "-m", module]  # unbuffered: a pipe would delay lines
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        print(line, end="", flush=True)
        if line.startswith(("PASS ", "MISS ", "open ")):
            lines.append(line.rstrip())
    status = process.wait()
    if status not in (0, 1) or (status == 1 and not any(line.startswith("MISS ") for line in lines)):
        lines.append(f"MISS {module.removeprefix('bench.')} ended with status {status} before its bars were measured")
    return lines


def main(modules: Iterable[str]) -> int:
    """Run the parts; return the exit status."""
    lines = [line for module in modules for line in part(module)]
    print("\nAll bars:", *lines, sep="\n")
    return int(any(line.startswith("MISS ") for line in lines))


if __name__ == "__main__":
    sys.exit(main(f"bench.{name}" for name in PARTS))
