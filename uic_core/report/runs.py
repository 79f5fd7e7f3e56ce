"""What a results folder holds of each run: its recipe, training, history, the end of its log, and its metrics.

Whatever is missing, damaged or of another recipe is told in words, never as an exception. Histories and logs may hold
anything, and logs may be of any length. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from uic_core.errors import InputError
from uic_core.evaluations import EVALUATIONS
from uic_core.layout import CHECKPOINT, TRAININGS, Layout
from uic_core.recipe import digest
from uic_core.report.origin import foreign
from uic_core.run import metrics as metrics_file
from uic_core.run import trained
from uic_core.run.metrics import Metrics
from uic_core.run.trained import Trained
from uic_core.strict_yaml import read_yaml

LINES = 20
"""Last lines of a log that are shown."""

_TAIL, _WIDEST = 1 << 16, 400  # bytes of a log's end, characters of its line
_HISTORY = 1 << 24  # bytes of a history
_NUMBER = {name: number for number, name in enumerate(EVALUATIONS)}
# What a terminal obeys, not shows: control sequences (CSI) and operating system commands (OSC) of ECMA-48.
_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?)")


@dataclass(frozen=True)
class Log:
    """The end of a log."""

    path: Path
    lines: list[str]
    whole: bool


@dataclass(frozen=True)
class MetricsFile:
    """A metrics file. `metrics`: None if its numbers must not be shown, for the `reason`.

    `name` is the file's without its ending: `linear_probe`, or `linear_probe.seeds` for the mean over seeds.
    """

    run: str
    name: str
    path: Path
    metrics: Metrics | None = None
    reason: str = ""
    log: Log | None = None


@dataclass(frozen=True)
class Run:
    """A run's files. `history` maps a number's name to its values by epoch; all have the same length."""

    name: str
    folder: Path
    recipe: dict[str, Any]
    training: Trained | None
    history: dict[str, list[float]]
    log: Log | None
    evaluations: list[MetricsFile]
    problems: list[str]

    @property
    def finished(self) -> bool:
        """Whether its checkpoint is there."""
        return (self.folder / CHECKPOINT).exists()

    @property
    def epochs(self) -> int:
        """How many epochs the history has."""
        return len(next(iter(self.history.values()), []))


def read(
    results: Path, recipes: Mapping[str, str], wanted: Iterable[Path], stale: Mapping[Path, str] | None = None
) -> dict[str, Run]:
    """Read all runs of `recipes`, in that order.

    Args:
        results: the results folder.
        recipes: run → hash of its recipe in the config.
        wanted: metrics files that tables take numbers from; those that are not there are told.
        stale: path → why the numbers in it must not be shown.
    """
    layout = Layout(results)
    found = (path for run in recipes for path in (results / "metrics" / run).glob("[!.]*.json"))
    files = sorted({*wanted, *found}, key=_order)
    trainings = {run: _training(layout.run(run)) for run in recipes}
    hashes = {run: made.files[CHECKPOINT] for run, (made, _) in trainings.items() if made and CHECKPOINT in made.files}
    runs = {}
    for run, recipe_hash in recipes.items():
        own = [_evaluation(layout, path, recipes, hashes, stale or {}) for path in files if path.parent.name == run]
        folder = layout.run(run)
        recipe, *problems = _recipe(folder, recipe_hash)
        training, problem = trainings[run]
        history, other = _history(folder / "history.jsonl")
        logs = (tail(layout.log(run, stage)) for stage in TRAININGS)
        log = next((each for each in logs if each), None)
        told = [each for each in (*problems, problem, other) if each]
        runs[run] = Run(run, folder, recipe, training, history, log, own, told)
    return runs


def tail(path: Path, lines: int = LINES) -> Log | None:
    """Read a log's last lines as a terminal would have shown them; None if there is no such file.

    Only its end is read. Of a progress bar, which overwrites itself, the last state remains; colours are dropped, and
    bytes that are not UTF-8 are replaced.
    """
    try:
        if not path.is_file():  # also not a pipe, which would block
            return None
        with path.open("rb") as file:
            skipped = max(0, file.seek(0, 2) - _TAIL)
            file.seek(skipped)
            text = file.read(_TAIL).decode("utf-8", "replace")
    except OSError:
        return None
    if skipped:
        text = text.partition("\n")[2] or text
    found = [_seen(line) for line in text.removesuffix("\n").split("\n")] if text else []
    return Log(path, found[-lines:], not skipped and len(found) <= lines)


def _seen(line: str) -> str:
    """What a terminal shows of a line after all."""
    shown = _ESCAPES.sub("", line.rstrip("\r").rpartition("\r")[2])
    return shown if len(shown) <= _WIDEST else shown[:_WIDEST] + "…"


def _order(path: Path) -> tuple[int, str]:
    return _NUMBER.get(path.stem.partition(".")[0], len(_NUMBER)), path.stem


def _evaluation(
    layout: Layout, path: Path, recipes: Mapping[str, str], hashes: Mapping[str, str], stale: Mapping[Path, str]
) -> MetricsFile:
    run, name = path.parent.name, path.stem
    found = MetricsFile(run, name, path, log=tail(layout.metrics_log(run, name)))
    if not path.exists():
        return replace(found, reason=f"{path}: is not made yet; run snakemake to make it")
    try:
        metrics = metrics_file.read(path)
    except InputError as error:
        return replace(found, reason=str(error))
    reason = (
        stale.get(path)
        or foreign(metrics, recipes)
        or _misplaced(metrics, run, name)
        or _other_checkpoint(metrics, hashes)
    )
    return replace(found, reason=f"{path}: {reason}") if reason else replace(found, metrics=metrics)


def _misplaced(metrics: Metrics, run: str, name: str) -> str:
    if (metrics.run, metrics.evaluation) == (run, name.partition(".")[0]):
        return ""
    return f"speaks of {metrics.run}/{metrics.evaluation}; delete the file and run snakemake again"


def _other_checkpoint(metrics: Metrics, hashes: Mapping[str, str]) -> str:
    """Say that metrics are of another checkpoint than the run's training wrote; '' if they are not, or none says.

    Args:
        hashes: run → SHA-256 of the checkpoint, by training.json.
    """
    runs = metrics.protocol.get("runs", [metrics.run])  # of several seeds
    for run, found in zip(runs, metrics.provenance.checkpoint_hash.split("+"), strict=False):
        if run in hashes and hashes[run][:16] != found:
            return (
                f"is of checkpoint {found}, but the training of run '{run}' wrote {hashes[run][:16]}; run snakemake to "
                "evaluate it again"
            )
    return ""


def _recipe(folder: Path, recipe_hash: str) -> tuple[dict[str, Any], str]:
    path = folder / "recipe.yaml"
    if not path.exists():
        return {}, ""
    try:
        recipe = read_yaml(path)
        found = digest(recipe)
    except (InputError, TypeError) as error:  # TypeError: holds a date, or another thing that is not JSON
        return {}, str(error)
    wanted = recipe_hash.partition(",")[0]
    if found != wanted:
        return recipe, f"{path}: is of recipe {found}, but the config has {wanted}; run snakemake to make it again"
    return recipe, ""


def _training(folder: Path) -> tuple[Trained | None, str]:
    try:
        return trained.read(folder), ""
    except InputError as error:
        return None, str(error)


def _history(path: Path) -> tuple[dict[str, list[float]], str]:
    """The numbers of a history by name, without `epoch`; {} and what is wrong if a line has others, or none."""
    try:
        if not path.is_file():
            return {}, ""
        if path.stat().st_size > _HISTORY:
            return {}, f"{path}: is too long for a history; delete the run's folder to train it again"
        epochs = trained.history(path)
    except (InputError, OSError) as error:
        return {}, str(error)
    for epoch in epochs:
        epoch.pop("epoch", None)
    if any(epoch.keys() != epochs[0].keys() for epoch in epochs):
        return {}, f"{path}: has an epoch with other numbers than in the first line"
    return {name: [epoch[name] for epoch in epochs] for epoch in epochs[:1] for name in epoch}, ""
