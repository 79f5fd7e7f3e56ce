"""`make status`: show the progress of a results folder. Only reads; imports no torch.

A run's epochs come from its last saved state, the jobs from squeue, if there is one. A failure is a missing output
file whose log ends in an error, or whose job SLURM killed.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from uic_core.arguments import stage_parser
from uic_core.config import CONFIG_HELP, Config, read
from uic_core.data.dataset import demand_kind
from uic_core.errors import stage
from uic_core.files import DAMAGED, safetensors_metadata
from uic_core.overview import outdated
from uic_core.recipe import Training
from uic_core.report.cells import all_needed, of_every_run
from uic_core.report.check_cells import check_cells

_TAIL = 3
_KILLED = re.compile("oom.kill|out of memory|DUE TO (TIME LIMIT|NODE FAILURE)", re.IGNORECASE)


@dataclass(frozen=True)
class RunStatus:
    """A run: whether it is trained, its finished epochs `of` all, and which evaluations are present.

    Attributes:
        old: why it is to be trained again; '' if it is not. It counts as not trained then.
        outdated: evaluations that are there, and are to be made again; the others are `present` or `missing`.
    """

    name: str
    trained: bool
    epochs: int
    of: int
    present: tuple[str, ...]
    missing: tuple[str, ...]
    outdated: tuple[str, ...] = ()
    old: str = ""


def runs(config: Config) -> list[RunStatus]:
    """Return the status of every run that a table or figure shows, and of the runs they start from."""
    evaluations: dict[str, list[str]] = {}
    needed = all_needed(config.tables_file, config.computable)
    for run, evaluation in dict.fromkeys([*needed, *of_every_run(config)]):
        for name in config.repeats(run):
            evaluations.setdefault(name, []).append(evaluation)
    for name in list(evaluations):
        start = config.runs[name].start
        if start:
            evaluations.setdefault(start, [])
    return [_run(config, name, evaluations[name]) for name in config.runs if name in evaluations]


def _run(config: Config, name: str, evaluations: list[str]) -> RunStatus:
    layout, recipe = config.layout, config.runs[name]
    there = layout.checkpoint(name).exists()
    old = outdated.of_run(config, name) if there else ""
    total = recipe.epochs if isinstance(recipe, Training) else 0
    files = {evaluation: layout.metrics(name, evaluation) for evaluation in evaluations}
    missing = tuple(each for each, file in files.items() if not file.exists())
    again = tuple(each for each, file in files.items() if file.exists() and outdated.of_metrics(config, file))
    present = tuple(each for each in evaluations if each not in (*missing, *again))
    epochs = total if there else _epochs(layout.run(name))
    return RunStatus(name, there and not old, epochs, total, present, missing, again, old)


def _epochs(folder: Path) -> int:
    """Return the finished epochs by the newest readable state in a run's folder; 0 if there is none."""
    found = [0]
    for path in folder.glob("state.*.safetensors"):
        try:
            with path.open("rb") as file:
                content = json.loads(safetensors_metadata(file)["state"])
            found.append(int(content["position"]["epoch"]))
        except DAMAGED:
            continue
    return max(found)


def failures(config: Config, queue: Collection[str] = ()) -> Iterator[tuple[Path, list[str]]]:
    """Yield logs of unfinished jobs that end in an error or that SLURM killed, with their last lines (and SLURM's).

    Args:
        queue: numbers of the queued jobs; SLURM restarts some of the jobs that it killed.
    """
    killed = dict(_killed(queue))
    for path in sorted(Path(config.results, "logs").glob("*/*.log")):
        if not _known(config, path.parent.name) or config.layout.made_by(path).exists():
            continue
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        if any(line.startswith(("error: ", "Traceback ")) for line in lines):
            yield path, lines[-_TAIL:]
        elif path.resolve() in killed:
            yield path, [*lines[-_TAIL:], killed[path.resolve()]]


def _known(config: Config, owner: str) -> bool:
    """Whether a folder of logs is of a run of the config; what others left is nobody's failure."""
    return owner in ("data", "protocols", "report") or owner in config.runs


def _killed(queue: Collection[str]) -> Iterator[tuple[Path, str]]:
    """Yield (stage log, SLURM's last message) of each rule and wildcards whose last job in this folder was killed."""
    jobs: dict[Path, list[Path]] = {}
    for path in Path(".snakemake", "slurm_logs").glob("rule_*/**/*.log"):
        jobs.setdefault(path.parent, []).append(path)
    for paths in jobs.values():
        last = max(paths, key=lambda path: (path.stat().st_mtime, path.name))
        text = "" if last.stem in queue else last.read_text(errors="replace")
        words = [line for line in text.splitlines() if _KILLED.search(line)]
        log = re.search(r"^    log: (\S+)", text, re.MULTILINE)
        if words and log:
            yield Path(log[1]).resolve(), words[-1]


def jobs() -> list[list[str]] | None:
    """Return [number, state, elapsed time, rule and wildcards] of the jobs in SLURM's queue from this folder.

    The state of a job that waits says what for. Returns None if there is a queue and it does not answer.
    """
    if not shutil.which("squeue"):
        return []
    try:
        process = subprocess.run(
            ["squeue", "--me", "-h", "-o", "%i|%T|%M|%k|%r|%Z"], capture_output=True, text=True, check=True, timeout=20
        )
    except subprocess.SubprocessError:
        return None
    lines = [line.split("|", 5) for line in process.stdout.splitlines()]
    own = [line for line in lines if len(line) == 6 and Path(line[5]).resolve() == Path.cwd()]
    return [
        [job, f"{state}: {reason.partition(',')[0]}" if state == "PENDING" else state, time, what]
        for job, state, time, what, reason, _ in own
        if what.startswith("rule_")
    ]


def main(arguments: list[str] | None = None) -> None:
    """Print runs, epochs, evaluations, queued jobs, and failures with the ends of their logs."""
    parser = stage_parser("uic_core.overview.status", __doc__)
    parser.add_argument("--config", type=Path, nargs="+", required=True, help=CONFIG_HELP)
    options = parser.parse_args(arguments)
    with stage():
        config = read(options.config)
        check_cells(config.tables_file, config)
        others = "name the config that they are of, as CONFIG=config/demo.yaml"
        demand_kind(Path(config.results), config.datasets.generated, others)
        found = runs(config)
        rows = [
            [
                run.name,
                "out of date" if run.old else "trained" if run.trained else f"{run.epochs}/{run.of} epochs",
                f"{len(run.present)}/{len(run.present) + len(run.missing) + len(run.outdated)}",
                ", ".join(run.missing),
                ", ".join(run.outdated),
            ]
            for run in found
        ]
        print(tabulate(rows, ["run", "training", "evaluations", "missing", "out of date"], disable_numparse=True))
        for reason in dict.fromkeys(run.old for run in found if run.old):
            print(f"out of date: {reason}")
        queue = jobs()
        if queue:
            print("\n" + tabulate(queue, ["job", "state", "time", "what"], disable_numparse=True))
        failed = list(failures(config, [job for job, *_ in queue or []]))
        for path, tail in failed:
            print(f"\nfailed: {path}")
            print("\n".join(f"  {line}" for line in tail))
        present = sum(len(run.present) for run in found)
        of = present + sum(len(run.missing) + len(run.outdated) for run in found)
        print(
            f"\n{config.results}: {sum(run.trained for run in found)} of {len(found)} runs trained, {present} of {of} "
            f"evaluations made, {'? (squeue does not answer)' if queue is None else len(queue)} jobs in the queue, "
            f"{len(failed)} failed"
        )


if __name__ == "__main__":
    main()
