"""The source of every table cell: config/tables.yaml, typed and checked.

Imports no torch, so that the workflow can call `needed` while it builds its plan.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from uic_core.config import Config
from uic_core.errors import InputError, nearest
from uic_core.evaluations import BY_CLASS, EVALUATIONS
from uic_core.recipe import Strict, load


def _one_line(text: str) -> str:
    if text.splitlines() not in ([], [text]):
        raise ValueError("holds a line break, which no cell of a table can; write it in one line")
    return text


def _no_braces(title: str) -> str:
    if odd := set(title) & set("{}"):
        raise ValueError(f"holds '{min(odd)}', which Snakemake's report would read as a wildcard; remove it")
    return title


Line = Annotated[str, AfterValidator(_one_line)]
Title = Annotated[Line, AfterValidator(_no_braces)]

Pair = tuple[str, str]
"""A run and an evaluation."""

COMPUTED = "run/evaluation: what the config computes; optional rows are computed from these, and cited without"
"""What a stage's argument `--computed` is."""


class Column(Strict):
    """One column: text (`text`), or numbers taken by default from `value` of `evaluation`."""

    name: Line = Field(min_length=1)
    shown: Line = ""
    text: bool = False
    evaluation: str = ""
    value: str = ""
    tolerance: float = Field(0.0, ge=0, description="points; 0: the table's")


class Override(Strict):
    """A cell's source if it differs from that of its row and column; '' keeps theirs."""

    run: str = ""
    evaluation: str = ""
    value: str = ""


class Row(Strict):
    """One row: computed here if it has a `run`, otherwise cited from config/published.csv.

    An `optional` row is computed as far as the config can, and cited where it cannot; see `Table.settled`.
    """

    name: Line = Field(min_length=1)
    shown: Line = ""
    heading: Line = Field("", description="separator line above the row")
    texts: dict[str, Line] = Field(default_factory=dict)
    run: str = ""
    optional: bool = False
    fill: dict[str, str] = Field(default_factory=dict)
    cells: dict[str, Override] = Field(default_factory=dict)
    absent: list[str] = Field(default_factory=list)
    extra: bool = False


class Footnote(Strict):
    """A remark on a cell, a row or a column; on the whole table if both are empty."""

    row: str = ""
    column: str = ""
    text: str = Field(min_length=1)


class Switch(Strict):
    """A remark that depends on a setting in the metrics: `says[str(protocol[key]).lower()]`; '' adds no remark."""

    evaluation: str
    key: str
    column: str = ""
    says: dict[str, str]

    def setting(self, protocol: Mapping[str, Any]) -> str:
        """Look up the setting in metrics, or in what they will hold. A key that is left out has its default."""
        field = EVALUATIONS[self.evaluation].model_fields[self.key]
        return str(protocol.get(self.key, None if field.is_required() else field.default)).lower()


class Ordering(Strict):
    """A row whose numbers are expected to exceed those of other rows."""

    above: str
    below: list[str] = Field(min_length=1)
    iterations: dict[str, int] = Field(default_factory=dict, description="the paper's, by column")


class Table(Strict):
    """One table, in its order of columns and rows."""

    title: Title
    caption: str = Field("", description="what stands under its name in the report")
    stub: Line = Field(description="heading of the first column")
    decimals: int = Field(1, ge=0, le=6)
    intervals: bool = Field(False, description="show ± ci95 beside our numbers")
    tolerance: float = Field(gt=0, description="points that ours may be from the paper's and count as reproduced")
    columns: list[Column]
    rows: list[Row]
    footnotes: list[Footnote] = Field(default_factory=list)
    switches: list[Switch] = Field(default_factory=list)
    ordering: Ordering | None = Field(None, description="the demo's table says in which columns it shows")

    def settled(self, computed: Collection[Pair]) -> Table:
        """Decide what each optional row is, by what the config can compute.

        Its other numbers are cited. A row without any computed number is a cited one, and has no footnotes; if the
        paper does not have it either, it is left out.
        """
        numbers = [column for column in self.columns if not column.text]
        rows, idle = [], set()
        for row in self.rows:
            if row.optional:
                asked = [(each.name, _source(row, each)) for each in numbers if each.name not in row.absent]
                cited = [name for name, source in asked if (source.run, source.evaluation) not in computed]
                changes: dict[str, object] = {"absent": [*row.absent, *cited]}
                if len(cited) == len(asked):
                    idle.add(row.name)
                    changes = {"run": "", "fill": {}, "cells": {}, "absent": []}
                row = row.model_copy(update=changes)
            if row.run or not row.extra:
                rows.append(row)
        notes = [note for note in self.footnotes if note.row not in idle]
        return self.model_copy(update={"rows": rows, "footnotes": notes})

    def sources(self) -> dict[tuple[str, str], Source]:
        """Map (row name, column name) to the number's source, for every computed cell, in reading order."""
        return {
            (row.name, column.name): _source(row, column)
            for row in self.rows
            if row.run
            for column in self.columns
            if not column.text and column.name not in row.absent
        }


class Figure(Strict):
    """A figure of a run's pseudo-labels: 3, the sizes of its classes; 4, images of those with the lowest entropy."""

    run: str = Field(min_length=1)
    title: Title
    caption: str = Field("", description="what stands under its name in the report")


class Tables(Strict):
    """The content of config/tables.yaml."""

    tables: dict[Annotated[int, Field(ge=1)], Table] = Field(min_length=1)
    figures: dict[Literal[3, 4], Figure] = Field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """A number's source: `value` in the metrics JSON that `evaluation` wrote for `run`."""

    run: str
    evaluation: str
    value: str

    def __str__(self) -> str:
        return f"{self.run}/{self.evaluation}:{self.value}"


def read_tables(path: Path, computed: Iterable[Pair] = ()) -> dict[int, Table]:
    """Read and check config/tables.yaml: number → table. Calls share one cached object; do not change it.

    Args:
        computed: what the config can compute (`Config.computable`), which decides what optional rows are; a table that
            loses all its rows is left out. So too in the functions below.

    Raises:
        InputError: "<file>: tables.<n>…: <what is wrong>": unknown or missing keys; a name that stands twice; a cell,
            footnote or text that names an unknown row or column; an unknown evaluation; a `{…}` without its fill.
    """
    return _settled(path, _changed(path), frozenset(computed))


def read_figures(path: Path) -> dict[Literal[3, 4], Figure]:
    """Number → figure, of the same file. Raises InputError as `read_tables`."""
    return _read(path, _changed(path)).figures


def _changed(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


@functools.lru_cache(maxsize=1)  # Snakemake reads the cells forty times, and every job starts two Snakemakes
def _read(path: Path, _: int) -> Tables:
    found = load(Tables, path)
    for number, table in found.tables.items():
        _check(table, f"{path}: tables.{number}")
    return found


@functools.lru_cache(maxsize=1)
def _settled(path: Path, changed: int, computed: frozenset[Pair]) -> dict[int, Table]:
    settled = {number: table.settled(computed) for number, table in _read(path, changed).tables.items()}
    return {number: table for number, table in settled.items() if table.rows}


def pair(text: str) -> Pair:
    """Read a pair as a stage's argument has it: <run>/<evaluation>."""
    run, evaluation = text.split("/")
    return run, evaluation


def table(tables_yaml: Path, number: int, computed: Iterable[Pair] = ()) -> Table:
    """Get one table of config/tables.yaml. Raises InputError, naming the known tables, if it does not exist."""
    tables = read_tables(tables_yaml, computed)
    if number not in tables:
        raise InputError(f"{tables_yaml}: no table {number}; known: {', '.join(map(str, tables))}")
    return tables[number]


def needed(tables_yaml: Path, number: int, computed: Iterable[Pair] = ()) -> list[Pair]:
    """List the (run, evaluation) pairs whose metrics table `number` shows, without duplicates, in reading order.

    Raises:
        InputError: from `read_tables`, or the table number is unknown.
    """
    sources = table(tables_yaml, number, computed).sources().values()
    return list(dict.fromkeys((source.run, source.evaluation) for source in sources))


def all_needed(tables_yaml: Path, computed: Iterable[Pair] = ()) -> list[Pair]:
    """The (run, evaluation) pairs of all tables and figures, each once. Raises InputError as `read_tables`."""
    tables = read_tables(tables_yaml, computed).values()
    pairs = [(source.run, source.evaluation) for table in tables for source in table.sources().values()]
    pairs += [(figure.run, "clusters") for figure in read_figures(tables_yaml).values()]
    return list(dict.fromkeys(pairs))


def of_every_run(config: Config) -> list[tuple[str, str]]:
    """The (run, evaluation) pairs of what a config makes of all its runs, whether or not a table names them."""
    names = [name for name in config.evaluations.present if name in EVALUATIONS and EVALUATIONS[name].of_every_run]
    return [(run, name) for name in names for run in config.named]


def by_class(tables_yaml: Path, computed: Iterable[Pair] = ()) -> list[str]:
    """List the evaluations in a table whose classes and sample images are shown, too. Raises as `read_tables`."""
    shown = {evaluation for _, evaluation in all_needed(tables_yaml, computed)}
    return [name for name in BY_CLASS if name in shown]


def shown_runs(tables_yaml: Path, evaluation: str, computed: Iterable[Pair] = ()) -> dict[str, str]:
    """Map run → label of its row, for every run whose `evaluation` fills a cell of some table, in reading order.

    Raises:
        InputError: from `read_tables`.
    """
    found: dict[str, str] = {}
    for each in read_tables(tables_yaml, computed).values():
        labels = {row.name: row.shown or row.name for row in each.rows}
        for (row, _), source in each.sources().items():
            if source.evaluation == evaluation:
                found.setdefault(source.run, labels[row])
    return found


def _source(row: Row, column: Column) -> Source:
    override = row.cells.get(column.name, Override())
    return Source(
        run=override.run or row.run,
        evaluation=override.evaluation or column.evaluation,
        value=(override.value or column.value).format(**row.fill),
    )


def _check(table: Table, where: str) -> None:
    columns = [column.name for column in table.columns]
    numbers = [column.name for column in table.columns if not column.text]
    rows = [row.name for row in table.rows]
    for kind, names in (("column", columns), ("row", rows)):
        twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        if twice:
            raise InputError(f"{where}.{kind}s: '{twice[0]}' stands twice; give every {kind} a name of its own")
    for column in table.columns:
        if column.text == bool(column.evaluation and column.value):
            raise InputError(f"{where}.columns: '{column.name}' takes either text: true, or evaluation and value")
    for row in table.rows:
        _check_row(row, table, f"{where}.rows: '{row.name}'", numbers)
    for note in table.footnotes:
        if note.row:
            demand_known(f"{where}.footnotes", "row", note.row, rows)
        if note.column:
            demand_known(f"{where}.footnotes", "column", note.column, columns)
    if table.ordering:
        for name in (table.ordering.above, *table.ordering.below):
            demand_known(f"{where}.ordering", "row", name, rows)
        for name in table.ordering.iterations:
            demand_known(f"{where}.ordering.iterations", "column", name, numbers)
    for switch in table.switches:
        demand_known(f"{where}.switches", "evaluation", switch.evaluation, EVALUATIONS)
        demand_known(f"{where}.switches", "key", switch.key, EVALUATIONS[switch.evaluation].model_fields)
        if switch.column:
            demand_known(f"{where}.switches", "column", switch.column, columns)


def _check_row(row: Row, table: Table, where: str, numbers: list[str]) -> None:
    for name in (*row.cells, *row.absent):
        demand_known(where, "column", name, numbers)
    texts = [column.name for column in table.columns if column.text]
    for name in row.texts:
        demand_known(where, "text column", name, texts)
    lacking = [name for name in texts if name not in row.texts]
    if lacking:
        raise InputError(f"{where}: texts.{lacking[0]} is missing; say what the paper prints there")
    if not row.run:
        if row.cells or row.absent or row.fill or row.extra or row.optional:
            raise InputError(f"{where}: cells, absent, fill, extra and optional belong to computed rows; name its run")
        return
    for column in table.columns:
        if column.text or column.name in row.absent:
            continue
        value = row.cells.get(column.name, Override()).value or column.value
        try:
            blanks = [name for _, name, _, _ in Formatter().parse(value) if name is not None]
            if set(blanks) <= row.fill.keys():
                _source(row, column)
        except ValueError as error:
            raise InputError(f"{where}: '{column.name}' takes '{value}': {error}; close or remove the brace") from None
        unfilled = [name for name in blanks if name not in row.fill]
        if unfilled:
            raise InputError(f"{where}: '{column.name}' takes '{value}'; fill.{unfilled[0]} is missing")
        demand_known(where, "evaluation", _source(row, column).evaluation, EVALUATIONS)


def demand_known(where: str, kind: str, name: str, known: Iterable[str]) -> None:
    """Check that a name is one of the known ones. Raises InputError, "<where>: unknown <kind> '<name>'", if not."""
    names = list(known)
    if name not in names:
        raise InputError(f"{where}: unknown {kind} '{name}'; {nearest(name, names)}(known: {', '.join(names)})")
