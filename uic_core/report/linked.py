"""Tables whose numbers link to their metrics, whose rows link to their runs, and whose gaps link to the reason.

They are parts of the page that uic_core/report/index_page.py writes. Imports no torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from uic_core.evaluations import BY_CLASS
from uic_core.report import per_class
from uic_core.report.cells import Row, Table
from uic_core.report.filled import Cell, Filled, Key, shown_metrics
from uic_core.report.origin import foot
from uic_core.report.page import Grid, Text, inline
from uic_core.report.runs import MetricsFile, Run
from uic_core.report.tables import legend, marked, signed, spread
from uic_core.run.metrics import Metrics


def anchor(run: str, evaluation: str = "", value: str = "") -> str:
    """Return the anchor of a run, of one of its evaluations, or of a value in it. It holds no space."""
    return re.sub(r"\s", "_", "/".join(part for part in ("run", run, evaluation, value) if part))


def text(marked_up: str) -> Markup:
    """Write a text with the markup of uic_core.report.page as HTML."""
    return Markup(inline(marked_up))


@dataclass(frozen=True)
class Shown:
    """A cell: its text, the anchor that it links to ('' for none), and what stands after and below it.

    `verdict`: ✓ or ✗, '' if the number is not held against the paper's.
    """

    text: Markup
    side: str = "right"
    target: str = ""
    title: str = ""
    after: str = ""
    paper: str = ""
    difference: str = ""
    verdict: str = ""


@dataclass(frozen=True)
class Line:
    """A row of a table; `heading` stands above it."""

    cells: list[Shown]
    heading: str = ""


@dataclass(frozen=True)
class Reason:
    """Why a number is missing, and the anchor of more about it."""

    anchor: str
    text: str
    target: str = ""


@dataclass(frozen=True)
class LinkedTable:
    """A table as the page prints it. `counts`: our numbers there, all of ours, those compared, those within."""

    anchor: str
    title: str
    caption: str = ""
    heads: list[Shown] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    notes: list[Markup] = field(default_factory=list)
    foot: list[Markup] = field(default_factory=list)
    reasons: list[Reason] = field(default_factory=list)
    counts: tuple[int, int, int, int] = (0, 0, 0, 0)


def paper_table(filled: Filled, evaluations: Mapping[Key, MetricsFile], runs: Mapping[str, Run]) -> LinkedTable:
    """Link a table of the paper.

    Args:
        evaluations: (run, evaluation) → the metrics file that the tables take of it.
        runs: the runs that the page shows.
    """
    table, name = filled.table, f"table{filled.number}"
    marks, notes = marked(filled)
    reasons = _reasons(filled, name, evaluations)
    heads = [Shown(text(table.stub), "left")]
    for column in table.columns:
        mark = marks.get(("", column.name), "")
        heads.append(Shown(text(column.shown or column.name), "left" if column.text else "right", after=mark))
    lines = []
    for row in table.rows:
        cells = [_label(row, marks.get((row.name, ""), ""), runs)]
        for column in table.columns:
            mark = marks.get((row.name, column.name), "")
            if column.text:
                cells.append(Shown(text(row.texts[column.name]), "left", after=mark))
            else:
                cells.append(_number(filled.cells[row.name, column.name], table, mark, evaluations, reasons))
        lines.append(Line(cells, row.heading))
    ours = [cell for cell in filled.cells.values() if cell.source]
    compared = [cell for cell in ours if cell.within is not None and not math.isinf(cell.tolerance)]
    return LinkedTable(
        name, f"Table {filled.number}. {table.title}", table.caption, heads, lines, [text(note) for note in notes],
        [text(line) for line in (legend(filled), *foot(shown_metrics(filled.cells), filled.scale))],
        list(reasons.values()),
        (sum(bool(cell.ours) for cell in ours), len(ours), len(compared), sum(bool(cell.within) for cell in compared)),
    )  # fmt: skip


def class_table(
    task: str, every: Sequence[Metrics], labels: dict[str, str], scale: str, evaluations: Mapping[Key, MetricsFile]
) -> LinkedTable:
    """Link a task's numbers of every class. The first arguments are those of per_class.page."""
    facts, blocks = BY_CLASS[task], per_class.page(task, every, labels, scale)
    (grid,) = (block for block in blocks if isinstance(block, Grid))
    after = [block.text for block in blocks[blocks.index(grid) :] if isinstance(block, Text)]
    keys = [*(facts.prefix + each for each in per_class.classes(task, every)), facts.mean]
    heads = [Shown(text(grid.header[0]), "left")]
    names = {run: evaluations[run, task].name for run in labels}
    heads += [Shown(text(label), target=anchor(run, names[run])) for run, label in labels.items()]
    lines = []
    for key, (label, *numbers) in zip(keys, grid.lines, strict=True):
        cells = [Shown(text(label), "left")]
        for metrics, number in zip(every, numbers, strict=True):
            target = anchor(metrics.run, names[metrics.run], key) if key in metrics.values else ""
            cells.append(Shown(text(number), target=target))
        lines.append(Line(cells))
    return LinkedTable(f"classes/{task}", facts.title, heads=heads, lines=lines, foot=[text(line) for line in after])


def _label(row: Row, mark: str, runs: Mapping[str, Run]) -> Shown:
    label = text(row.shown or row.name)
    if row.run not in runs:
        return Shown(label, "left", after=mark)
    return Shown(Markup("<strong>%s</strong>") % label, "left", anchor(row.run), f"run {row.run}", mark)


def _number(
    cell: Cell, table: Table, mark: str, evaluations: Mapping[Key, MetricsFile],
    reasons: Mapping[str, Reason],
) -> Shown:  # fmt: skip
    if cell.source is None:
        return Shown(text(cell.paper.text if cell.paper else "-"), after=mark)
    paper = cell.paper.text if cell.paper else ""
    if cell.ours is None:
        return Shown(Markup("– why?"), target=reasons[_why(cell, evaluations)].anchor, after=mark, paper=paper)
    found = evaluations[cell.source.run, cell.source.evaluation]
    compared = cell.within is not None and not math.isinf(cell.tolerance)
    return Shown(
        text(f"**{cell.ours.value:.{table.decimals}f}**"),
        target=anchor(found.run, found.name, cell.source.value),
        title=f"run {found.run}, {found.name}: {cell.source.value}",
        after=spread(cell.ours, table) + mark,
        paper=paper,
        difference="" if cell.difference is None else signed(cell.difference, table),
        verdict="" if not compared else "✓" if cell.within else "✗",
    )


def _reasons(filled: Filled, name: str, evaluations: Mapping[Key, MetricsFile]) -> dict[str, Reason]:
    """Text → reason: of every cell without our number first, then what else is wrong with the table."""
    targets = {_why(cell, evaluations): _target(cell, evaluations) for cell in filled.cells.values() if cell.missing}
    told = {cell.missing for cell in filled.cells.values()}
    targets |= {problem: "" for problem in filled.problems if problem not in told}
    return {
        why: Reason(f"{name}/why/{number}", " ".join(why.split()), target)
        for number, (why, target) in enumerate(targets.items(), 1)
    }


def _why(cell: Cell, evaluations: Mapping[Key, MetricsFile]) -> str:
    """The file's own reason, if it is there and must not be shown: the table only knows that it has none."""
    assert cell.source is not None
    found = evaluations.get((cell.source.run, cell.source.evaluation))
    return found.reason if found and found.reason and found.path.exists() else cell.missing


def _target(cell: Cell, evaluations: Mapping[Key, MetricsFile]) -> str:
    assert cell.source is not None
    found = evaluations.get((cell.source.run, cell.source.evaluation))
    return anchor(found.run, found.name) if found else ""
