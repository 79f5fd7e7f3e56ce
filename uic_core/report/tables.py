"""Stage `tables`: write one table of the paper as Markdown, HTML and LaTeX for readers, and as CSV for programs.

Our numbers come only from metrics JSONs; config/tables.yaml declares the source of each cell. The same inputs give the
same bytes: dates and commits are those of the metrics. Imports no torch.
"""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from uic_core.arguments import stage_parser
from uic_core.errors import stage
from uic_core.files import write_text
from uic_core.report.arguments import add_partial, add_recipes, add_scale
from uic_core.report.cells import COMPUTED, Row, Table, pair, table
from uic_core.report.filled import Cell, Filled, Key, fill, shown_metrics
from uic_core.report.origin import commit, foot
from uic_core.report.page import Block, Grid, Points, Quote, Text, to_html, to_latex, to_markdown
from uic_core.report.published import read_published
from uic_core.run.metrics import Value

DEMO = (
    "**Demo data.** Our numbers come from generated images, not ImageNet: they show that every part runs, and are "
    "not to be held against the paper's. Names (3k, 224×224, ImageNet) are the paper's; the demo's sizes are smaller."
)
_LETTERS = "ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻ"


def page(filled: Filled) -> list[Block]:
    """Build the table's page: rows and columns in the paper's order, legend, notes, and the numbers' origin."""
    marks, notes = marked(filled)
    blocks: list[Block] = [Quote(DEMO)] if filled.scale == "demo" else []
    blocks.append(Text(f"**Table {filled.number}.** {filled.table.title}."))
    if filled.problems:
        count = sum(bool(cell.missing) for cell in filled.cells.values())
        told = f"**Partial.** {count} of our numbers {'is' if count == 1 else 'are'} missing (–):"
        blocks.append(Quote(told, [" ".join(problem.split()) for problem in filled.problems]))
    blocks += [_grid(filled, marks), Text(legend(filled), foot=True)]
    if notes:
        blocks.append(Points(notes))
    return [*blocks, *(Text(line, foot=True) for line in foot(shown_metrics(filled.cells), filled.scale))]


def marked(filled: Filled) -> tuple[dict[Key, str], list[str]]:
    """Assign superscript letters in reading order: (row, column) → letters, and the notes that explain them."""
    rows = ["", *(row.name for row in filled.table.rows)]
    columns = ["", *(column.name for column in filled.table.columns)]
    ordered = sorted(filled.notes, key=lambda note: (rows.index(note[0]), columns.index(note[1])))
    letters: dict[str, str] = {}
    marks: dict[Key, str] = {}
    for row, column, text in ordered:
        if row or column:
            if text not in letters:
                rounds, place = divmod(len(letters), len(_LETTERS))
                letters[text] = _LETTERS[place] * (rounds + 1)  # after the last one ᵃᵃ, ᵇᵇ, …
            letter = letters[text]
            marks[row, column] = marks.get((row, column), "") + letter
    general = [text for row, column, text in ordered if not row and not column]
    return marks, general + [f"{letter} {text}" for text, letter in letters.items()]


def _grid(filled: Filled, marks: dict[Key, str]) -> Grid:
    columns = filled.table.columns
    heads = [(column.shown or column.name) + marks.get(("", column.name), "") for column in columns]
    lines: list[list[str]] = []
    for row in filled.table.rows:
        if row.heading:
            lines.append([f"*{row.heading}*"])
        line = [_label(row) + marks.get((row.name, ""), "")]
        for column in columns:
            text = row.texts[column.name] if column.text else _number(filled.cells[row.name, column.name], filled.table)
            line.append(text + marks.get((row.name, column.name), ""))
        lines.append(line)
    sides = ["left", *("left" if column.text else "right" for column in columns)]
    return Grid([filled.table.stub, *heads], lines, sides)


def _label(row: Row) -> str:
    label = row.shown or row.name
    return f"**{label}**" if row.run else label


def _number(cell: Cell, table: Table) -> str:
    if cell.source is None:
        return cell.paper.text if cell.paper else "-"
    ours = "–" if cell.ours is None else f"**{cell.ours.value:.{table.decimals}f}**{spread(cell.ours, table)}"
    if not cell.paper:
        return ours
    if cell.difference is None or math.isinf(cell.tolerance):
        return f"{ours} ({cell.paper.text})"
    return f"{ours} ({cell.paper.text}, {signed(cell.difference, table)} {'✓' if cell.within else '✗'})"


def spread(value: Value, table: Table) -> str:
    """Write ± the standard deviation over several seeds, or half the interval where the table shows it; else ''."""
    half = value.std if value.seeds else value.ci95 if table.intervals else None
    return "" if half is None else f" ± {half:.{table.decimals}f}"


def signed(difference: float, table: Table) -> str:
    """Write a difference in points with its sign."""
    sign = "−" if round(difference, table.decimals) < 0 else "+"
    return f"{sign}{abs(difference):.{table.decimals}f}"


def legend(filled: Filled) -> str:
    """Write the line under the table that says how its numbers are printed and where the cited ones are from."""
    legend = "**Bold**: computed here"
    if any(cell.source and cell.paper for cell in filled.cells.values()):
        legend += ", with the paper's number in parentheses"
    compared = [cell for cell in filled.cells.values() if cell.within is not None and not math.isinf(cell.tolerance)]
    if compared:
        bounds = "/".join(f"{bound:g}" for bound in sorted({cell.tolerance for cell in compared}))
        bounds += " point" if bounds == "1" else " points"
        share = f"{sum(bool(cell.within) for cell in compared)} of {len(compared)}"
        legend += f", ours − the paper's, and whether that is within {bounds} (✓) or not (✗): {share} are"
    legend += "."
    seeds = {cell.ours.seeds for cell in filled.cells.values() if cell.ours and cell.ours.seeds}
    if seeds:
        legend += f" ±: standard deviation over {' or '.join(map(str, sorted(seeds)))} seeds."
    cited = {cell.row for cell in filled.cells.values() if cell.source is None and cell.paper}
    if cited:
        mixed = any(row.run and row.name in cited for row in filled.table.rows)
        legend += f" Other {'numbers' if mixed else 'rows'} are cited as the paper prints them."
    if any(cell.source is None and cell.paper is None for cell in filled.cells.values()):
        legend += " -: the paper has no number."
    sources = {cell.paper.source for cell in filled.cells.values() if cell.paper} - {"paper"}
    if sources:
        ordered = sorted(sources, key=lambda source: (len(source.partition("]")[0]), source))
        legend += f" Sources: {'; '.join(ordered)}."
    return legend


def to_csv(filled: Filled) -> str:
    """Write the numbers as CSV, one line per cell, in percent; difference = ours − paper; cited rows have no `ours`.

    `scale`, demo, paper or study, names what our numbers are of. `within`, yes or no, tells if the difference is within
    the `tolerance`; both are empty unless `scale` is paper.
    """
    records = [_record(filled, cell) for cell in filled.cells.values() if cell.source or cell.paper]
    # dtype=object, so that a column of integers with missing values does not become floats.
    text: str = pd.DataFrame(records, dtype=object).to_csv(index=False, lineterminator="\n")
    return text


def _record(filled: Filled, cell: Cell) -> dict[str, object]:
    def rounded(number: float | None) -> float | None:
        return None if number is None else round(number, 4)

    compared = cell.within is not None and not math.isinf(cell.tolerance)
    return {
        "table": filled.number,
        "scale": filled.scale,
        "row": cell.row,
        "column": cell.column,
        "ours": rounded(cell.ours.value if cell.ours else None),
        "paper": cell.paper and cell.paper.text,
        "difference": rounded(cell.difference),
        "tolerance": cell.tolerance if compared else None,
        "within": ("yes" if cell.within else "no") if compared else None,
        **{name: rounded(getattr(cell.ours, name, None)) for name in ("ci95", "n", "std", "seeds")},
        "run": cell.source and cell.source.run,
        "evaluation": cell.source and cell.source.evaluation,
        "commit": cell.metrics and commit(cell.metrics, "-dirty"),
        "remark": (cell.ours and cell.ours.remark) or None,
    }


def main(arguments: list[str] | None = None) -> None:
    """Write one table. On an error, name it, write nothing and exit with 2."""
    parser = stage_parser("uic_core.report.tables", __doc__)
    parser.add_argument("--table", type=int, required=True, help="number of the table in the paper")
    parser.add_argument("--tables", type=Path, required=True, help="config/tables.yaml")
    parser.add_argument("--published", type=Path, required=True, help="config/published.csv")
    add_scale(parser)
    parser.add_argument("--metrics", type=Path, nargs="*", default=[], help="metrics JSONs, in any order")
    parser.add_argument("--out", type=Path, required=True, help="Markdown")
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--html", type=Path, help="a page of its own, for the HTML report")
    parser.add_argument("--tex", type=Path, help="a table environment, to be input")
    add_recipes(parser)
    parser.add_argument("--computed", type=pair, nargs="*", default=[], help=COMPUTED)
    add_partial(parser)
    options = parser.parse_args(arguments)
    with stage():
        declared = table(options.tables, options.table, options.computed)
        published = read_published(options.published, options.table, declared)
        filled = fill(
            options.table,
            declared,
            published,
            options.metrics,
            options.scale,
            partial=options.partial,
            recipes=options.recipes,
            stale=options.stale,
        )
        write_text(options.csv, to_csv(filled))
        if options.html:
            write_text(options.html, to_html(f"Table {options.table}", page(filled)))
        if options.tex:
            write_text(options.tex, to_latex(f"tab:{options.table}", page(filled)))
        write_text(options.out, to_markdown(page(filled)))


if __name__ == "__main__":
    main()
