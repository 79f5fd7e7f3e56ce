"""Show what every fault of the list ends in: `make faults`, a line a row, from the tests named test_fault_NN_….

A row passes if all its tests pass. What was seen is what its tests recorded (the fixture `seen`), usually a message.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from pathlib import Path

ROWS = range(27, 73)
WIDTH = 150
"""Letters of a line's last part."""


def main(arguments: list[str] | None = None) -> int:
    """Run the tests and print the rows; return the exit status: 1 if a row is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.faults", description=__doc__)
    parser.add_argument("rows", nargs="*", type=int, help="default: all of them")
    parser.add_argument("--tests", default="tests", help="folder or file of the tests")
    options = parser.parse_args(arguments)
    rows = options.rows or list(ROWS)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "tests.xml")
        names = " or ".join(f"test_fault_{row}_" for row in rows)
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-n", "2", "-k", names, f"--junitxml={file}", options.tests],
            stdout=subprocess.DEVNULL,
        )
        found = read(file) if file.exists() else {}
    lines = [line(row, found.get(row, [])) for row in rows]
    print("\n".join(lines))
    missed = sum(text.startswith("MISS") for text in lines)
    print(f"{len(lines) - missed} of {len(lines)} rows pass")
    return int(bool(missed))


def read(file: Path) -> dict[int, list[tuple[bool, str]]]:
    """Read pytest's report: row → for each of its tests, whether it passed and what was seen."""
    found = defaultdict(list)
    for case in ElementTree.parse(file).iter("testcase"):
        if not (match := re.match(r"test_fault_(\d+)_", case.get("name", ""))):
            continue
        wrong = next((each for each in case if each.tag in ("failure", "error", "skipped")), None)
        if wrong is not None:
            text = f"{case.get('name')}: {wrong.tag}: {wrong.get('message')}"
        else:
            seen = [each.get("value", "") for each in case.iter("property") if each.get("name") == "seen"]
            text = "; ".join(seen) or str(case.get("name"))
        found[int(match[1])].append((wrong is None, text))
    return found


def line(row: int, tests: list[tuple[bool, str]]) -> str:
    """Format a row: `PASS|MISS <row> <what was seen>`; of several tests the first that failed, else the first."""
    if not tests:
        return f"MISS {row} no test ran"
    passed, text = min(tests, key=lambda test: test[0])
    return f"{'PASS' if passed else 'MISS'} {row} {' '.join(text.split())[:WIDTH]}"


if __name__ == "__main__":
    sys.exit(main())
