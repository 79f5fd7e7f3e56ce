"""Check that the tests detect small faults in the modules that decide numbers. `make mutants`: an hour on one core.

Cosmic-ray's operators plant one fault at a time in a copy of the tree: another number, operator, comparison or
condition, a loop that does nothing. The test files that mirror the module then run until one test fails: the mutant
is killed. A mutant that no test detects survives: write that test, or say why no test can detect it.

The sample is drawn from a seed: modules in turn, so that small ones count as much as large ones; in a module a place;
at a place one of its mutants. Code that decides no number is left out: annotations, messages, assertions, the command
line, printing, speed switches.

Results are kept in results/mutants.jsonl. After an interruption the same command continues. After a change to a test
file only the modules that it mirrors are tried again; after a change to the library all are.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from bench.mutation import Mutant, mutants

ROOT = Path(__file__).parents[1]
BAR = 0.9
# tests/<package>/test_<module>.py mirrors a module; so do the test files named here, if they exist.
MIRRORS = {
    "data": {"augment": "", "boxes": "openmmlab/fast_rcnn", "crop": "data/loader data/cache", "reader": ""}
    | {"partition": "methods/labels pretrain/reference"},
    "methods": dict.fromkeys(("labels", "order"), "pretrain/reference")
    | {"selflabel": "pretrain/reference pretrain/pretrain", "sinkhorn": "", "uic_balanced_start": "methods/uic"}
    | {"deepcluster": "methods/order pretrain/reference pretrain/pretrain", "kmeans": ""}
    | dict.fromkeys(("finetune", "method", "supervised", "uic"), "pretrain/reference pretrain/pretrain"),
    "pretrain": {"label_passes": "pretrain/reference pretrain/pretrain run/precision run/parallel"}
    | {"loop": "pretrain/reference pretrain/pretrain run/parallel", "merge": "run/parallel"}
    | {"results": "pretrain/pretrain"},
    "models": dict.fromkeys(("alexnet", "network", "probe_pool", "resnet", "sobel", "vgg"), "models/models"),
    "evaluate": dict.fromkeys(("average_precision", "clusters", "fewshot", "knn", "voc_classification"), "")
    | dict.fromkeys(("heads", "probes", "ten_crop"), "evaluate/linear_probe"),
    "openmmlab": dict.fromkeys(("backbones", "fcn", "proposals", "regression", "voc_ap"), "")
    | {"fast_rcnn": "openmmlab/protocol", "detection": "openmmlab/fast_rcnn openmmlab/protocol openmmlab/stages"}
    | {"segmentation": "openmmlab/protocol openmmlab/stages"}
    | {"runner": "openmmlab/protocol openmmlab/stages openmmlab/resume"},
}
MODULES = [f"uic_core/{package}/{module}.py" for package, modules in MIRRORS.items() for module in modules]
COPIED = ("uic_core", "tests", "config", "pyproject.toml")
MEMORY = 8 << 30  # bytes of a test process: a mutant may ask for an array of any size


def sample(root: Path, modules: list[str], count: int, seed: int) -> list[Mutant]:
    """Draw up to `count` mutants, sorted by module. A module's draws do not depend on other modules."""
    draws = {name: mutants(name, (root / name).read_text(), random.Random(f"{seed} {name}")) for name in modules}
    turns = random.Random(seed).sample(modules, len(modules))
    found: list[Mutant] = []
    while turns and len(found) < count:
        drawn = {name: next(draws[name], None) for name in turns[: count - len(found)]}
        found += filter(None, drawn.values())
        turns = [name for name in turns if drawn.get(name, True)]
    return sorted(found, key=lambda mutant: (mutant.module, mutant.line, mutant.text))


def mirrors(root: Path, module: str) -> list[str]:
    """Return the test files of a module. Raises ValueError if there is none."""
    _, package, name = Path(module).with_suffix("").parts
    more = MIRRORS.get(package, {}).get(name, "").split()
    files = dict.fromkeys(f"tests/{test.replace('/', '/test_')}.py" for test in (f"{package}/{name}", *more))
    if not (there := [file for file in files if (root / file).exists()]):
        raise ValueError(f"{module}: no test file mirrors it; write {next(iter(files))}, or name one in MIRRORS")
    return there


def tried(tree: Path, tests: list[str], limit: float) -> tuple[str, str]:
    """Run test files on a tree until one test fails; return ('survived', 'killed' or 'timeout', what failed)."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", *tests]
    own = {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "CUDA_VISIBLE_DEVICES": ""}
    own |= {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}
    process = subprocess.Popen(
        command, cwd=tree, env=os.environ | own, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        resource.prlimit(process.pid, resource.RLIMIT_DATA, (MEMORY, MEMORY))
        said, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        return "timeout", ""
    finally:  # tests may have started processes; also if this one is told to end
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", said, re.MULTILINE)
    return "killed" if process.returncode else "survived", failed[1] if failed else ""


def outcomes(root: Path, planted: list[Mutant], kept: Path) -> Iterator[tuple[Mutant, str, str]]:
    """Yield each mutant, its outcome and what failed. Mutants run in a copy of the tree; those in `kept` are skipped.

    Raises:
        RuntimeError: tests fail without a mutant.
    """
    known = {key: rest for key, *rest in map(json.loads, kept.open())} if kept.exists() else {}
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, kept.open("a") as file:
        tree = Path(folder)
        for name in COPIED:
            if (root / name).is_dir():
                shutil.copytree(root / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
            elif (root / name).exists():
                shutil.copy(root / name, tree)
        for module, group in groupby(planted, key=lambda mutant: mutant.module):
            tests, limit = mirrors(tree, module), 0.0
            state = _state(tree, tests)
            for mutant in group:
                key = hashlib.sha256(f"{state} {module} {mutant.text}".encode()).hexdigest()
                if key not in known:
                    limit = limit or _limit(tree, tests)
                    (tree / module).write_text(mutant.text)
                    known[key] = list(tried(tree, tests, limit))
                    (tree / module).write_text(mutant.source)
                    print(json.dumps([key, *known[key]]), file=file, flush=True)
                yield mutant, *known[key]


def _limit(tree: Path, tests: list[str]) -> float:
    """Return the time limit of a mutant's tests, seconds: four times the tests without one, plus a minute."""
    started = time.monotonic()
    outcome, failed = tried(tree, tests, 3600)
    if outcome != "survived":
        raise RuntimeError(f"{' '.join(tests)}: {outcome} without a mutant, by {failed or 'no test'}; mend that first")
    return 4 * (time.monotonic() - started) + 60


def _state(tree: Path, tests: list[str]) -> str:
    """Hash all copied files, but of the test files only `tests`."""
    found = hashlib.sha256()
    for file in sorted(file for file in tree.rglob("*.*") if file.is_file()):
        name = file.relative_to(tree).as_posix()
        if not file.name.startswith("test_") or name in tests:
            found.update(f"{name} {hashlib.sha256(file.read_bytes()).hexdigest()}".encode())
    return found.hexdigest()


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Print a line per mutant, the survivors, how many were killed. Return 1 if the bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.mutants", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=60, help="mutants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--modules", nargs="+", default=MODULES, metavar="FILE", help="default: all that decide numbers"
    )
    options = parser.parse_args(arguments)
    if missing := [name for name in options.modules if not (root / name).is_file()]:
        parser.error(f"--modules: {missing[0]} is no file of {root}")
    planted = sample(root, options.modules, options.count, options.seed)
    (root / "results").mkdir(exist_ok=True)
    found = []
    for mutant, outcome, failed in outcomes(root, planted, root / "results/mutants.jsonl"):
        print(f"{outcome:<8} {mutant}" + (f"  [{failed}]" if failed else ""), flush=True)
        found.append(outcome)
    for mutant in (mutant for mutant, outcome in zip(planted, found, strict=True) if outcome == "survived"):
        print(f"\nsurvived {mutant.module}:{mutant.line} {mutant.operator}", *mutant.diff(2), sep="\n")
    killed = len(found) - found.count("survived")
    share, late = killed / len(found), found.count("timeout")
    print(
        f"\n{'MISS' if share < BAR else 'PASS'} killed {killed} of {len(found)} ({share:.0%}), bar {BAR:.0%}"
        + (f"; {late} by the time limit" if late else "")
    )
    return int(share < BAR)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: end the tests, remove the copy
    sys.exit(main())
