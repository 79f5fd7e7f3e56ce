"""A table filled with its numbers: ours from metrics JSONs, the paper's, and the notes and problems that they bring.

Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from uic_core.errors import InputError
from uic_core.report import ordering
from uic_core.report.cells import Source, Table
from uic_core.report.origin import foreign
from uic_core.report.published import Published
from uic_core.run import metrics as metrics_file
from uic_core.run.metrics import Metrics, Value

Key = tuple[str, str]


@dataclass(frozen=True)
class Cell:
    """A cell with our number (percent) and its source, the paper's, both or neither; `missing`: why ours is absent."""

    row: str
    column: str
    paper: Published | None
    source: Source | None = None
    ours: Value | None = None
    metrics: Metrics | None = None
    missing: str = ""
    tolerance: float = 0.0

    @property
    def difference(self) -> float | None:
        """Our number − the paper's, in points; None if one of them is missing."""
        if self.ours is None or self.paper is None:
            return None
        return self.ours.value - float(self.paper.text)

    @property
    def within(self) -> bool | None:
        """True if the difference is within the tolerance; None if one of the numbers is missing."""
        return None if self.difference is None else abs(self.difference) <= self.tolerance


@dataclass(frozen=True)
class Filled:
    """A table with its numbers. `notes`: (row, column, text); '' if a note concerns no single row or column."""

    number: int
    table: Table
    scale: str
    cells: dict[Key, Cell]
    notes: list[tuple[str, str, str]]
    problems: list[str]


def collect(
    paths: Sequence[Path], recipes: Mapping[str, str] | None = None, stale: Mapping[Path, str] | None = None,
    needed: Collection[Key] | None = None,
) -> tuple[dict[Key, tuple[Path, Metrics]], list[str]]:  # fmt: skip
    """Read metrics files; run and evaluation come from each file's content, not from its name.

    Args:
        recipes: run → hash of its recipe; files of other recipes are left out.
        stale: path → why the file is left out, too.
        needed: (run, evaluation) of the files that are wanted; others are passed over. Default: all.

    Returns:
        (run, evaluation) → (path, metrics), and one message for each file that is unreadable or left out.

    Raises:
        InputError: two files have the same run and evaluation.
    """
    found: dict[Key, tuple[Path, Metrics]] = {}
    problems: list[str] = []
    for path in paths:
        try:
            metrics = metrics_file.read(path)
        except InputError as error:
            problems.append(str(error))
            continue
        key = (metrics.run, metrics.evaluation)
        if needed is not None and key not in needed:
            continue
        if reason := (stale or {}).get(path) or foreign(metrics, recipes or {}):
            problems.append(f"{path}: {reason}")
            continue
        if key in found:
            raise InputError(
                f"{path}: {'/'.join(key)} is also in {found[key][0]}; give --metrics only one of the two files"
            )
        found[key] = (path, metrics)
    return found, problems


def fill(
    number: int,
    table: Table,
    published: dict[Key, Published],
    paths: Sequence[Path],
    scale: str,
    *,
    partial: bool = False,
    recipes: Mapping[str, str] | None = None,
    stale: Mapping[Path, str] | None = None,
) -> Filled:
    """Fill a table with its numbers.

    Args:
        published: the paper's numbers, from `published.read_published`.
        paths: metrics JSONs; files that the table does not need are ignored.
        scale: 'demo', 'paper' or 'study'.
        partial: leave cells without metrics empty, with the reason, instead of failing.
        recipes: run → hash of its recipe; numbers of another recipe are not shown.
        stale: path → why the numbers in it are not shown.

    Raises:
        InputError: one line for each missing or unsuitable file, run or value (not if `partial`).
    """
    sources = table.sources()
    needed = {(source.run, source.evaluation) for source in sources.values()}
    found, problems = collect(paths, recipes, stale, needed)
    cells: dict[Key, Cell] = {}
    for row in table.rows:
        for column in table.columns:
            key = (row.name, column.name)
            if not column.text:
                cell = _cell(key, published.get(key), sources.get(key), found)
                # The demo's images are not the paper's, so its numbers are not compared.
                tolerance = column.tolerance or table.tolerance
                cells[key] = replace(cell, tolerance=tolerance if scale == "paper" else math.inf)
    reasons = dict.fromkeys(cell.missing for cell in cells.values() if cell.missing)
    problems = list(dict.fromkeys([*problems, *reasons]))
    notes = [(note.row, note.column, note.text) for note in table.footnotes]
    for column_name, text, problem in _switches(table, cells):
        problems.extend(problem)
        if text:
            notes.append(("", column_name, text))
    marked = {key: cell.ours.remark for key, cell in cells.items() if cell.ours and cell.ours.remark}
    text = "; ".join(f"{row}, {column}: {remark}" for (row, column), remark in marked.items())
    notes += [(row, column, f"{text}.") for row, column in marked]
    if text := _unconverged(table, cells):
        notes.append(("", "", text))
    if scale == "demo" and (text := _ordering(table, cells)):
        notes.append(("", "", text))
    if problems and not partial:
        raise InputError(f"table {number}: " + f"\ntable {number}: ".join(problems))
    return Filled(number, table, scale, cells, notes, problems)


def _unconverged(table: Table, cells: dict[Key, Cell]) -> str:
    """Name the linear probes whose training loss ended above that of a guess; '' if all converged."""
    losses = {key: cell.ours.loss or 0.0 for key, cell in cells.items() if cell.ours and cell.ours.loss is not None}
    parts = []
    for column in (column.name for column in table.columns):
        rows = [row for row, name in losses if name == column]
        above = [row for row in rows if losses[row, column] > 1]
        if above:
            parts.append(f"{column} ({'all rows' if above == rows else ', '.join(above)})")
    if not parts:
        return ""
    told = f"The training loss of these probes ended above that of a guess: {'; '.join(parts)}. They have not converged"
    if all(cell.metrics.protocol.get("batch_norm") for key, cell in cells.items() if key in losses and cell.metrics):
        return f"{told}: lr is too high for so few steps."
    return (
        f"{told}: the scale of a layer decides how far its probe gets, and may decide which row is ahead. Batch norm "
        "before the linear layer, as in `linear_probe_batch_norm`, takes the scale out of the comparison."
    )


def _ordering(table: Table, cells: dict[Key, Cell]) -> str:
    values = {key: cell.ours for key, cell in cells.items() if cell.ours}
    settings = {key[1]: cell.metrics.protocol for key, cell in cells.items() if cell.metrics}
    iterations = {column: each["iterations"] for column, each in settings.items() if "iterations" in each}
    return ordering.note(table, values, iterations)


def _cell(key: Key, paper: Published | None, source: Source | None, found: dict[Key, tuple[Path, Metrics]]) -> Cell:
    if source is None:
        return Cell(*key, paper)
    if (source.run, source.evaluation) not in found:
        missing = (
            f"no metrics of run '{source.run}', evaluation '{source.evaluation}', among the files given; "
            "run snakemake to make them"
        )
        return Cell(*key, paper, source, missing=missing)
    path, metrics = found[source.run, source.evaluation]
    value = metrics.values.get(source.value)
    if value is None:
        missing = (
            f"{path}: no value '{source.value}' (there are: {', '.join(metrics.values)}); "
            "correct the cell in tables.yaml"
        )
        return Cell(*key, paper, source, missing=missing)
    if value.unit != "%":
        missing = f"{path}: values.{source.value}: unit '{value.unit}' is not %; correct the cell in tables.yaml"
        return Cell(*key, paper, source, missing=missing)
    return Cell(*key, paper, source, value, metrics)


def _switches(table: Table, cells: dict[Key, Cell]) -> list[tuple[str, str, list[str]]]:
    """Return (column, note, problems) for every switch of the table, from the metrics that fill it."""
    result = []
    for switch in table.switches:
        says: dict[str, list[str]] = {}
        problems: list[str] = []
        for metrics in shown_metrics(cells):
            if metrics.evaluation != switch.evaluation:
                continue
            setting = switch.setting(metrics.protocol)
            if setting in switch.says:
                says.setdefault(switch.says[setting], []).append(metrics.run)
            else:
                problems.append(
                    f"{metrics.run}/{metrics.evaluation}: protocol.{switch.key} is {setting}, "
                    f"which tables.yaml does not explain (known: {', '.join(switch.says)}); add a line to its switches"
                )
        texts = [text if len(says) == 1 else f"{', '.join(runs)}: {text}" for text, runs in says.items() if text]
        result.append((switch.column, " ".join(texts), problems))
    return result


def shown_metrics(cells: dict[Key, Cell]) -> list[Metrics]:
    """The metrics that fill a table, without duplicates, in reading order."""
    unique = {(c.metrics.run, c.metrics.evaluation): c.metrics for c in cells.values() if c.metrics is not None}
    return list(unique.values())
