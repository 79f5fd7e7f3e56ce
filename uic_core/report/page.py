"""A small page of quotes, paragraphs, one-level lists and grids, written as Markdown, HTML or LaTeX.

The only markup in texts is **bold**, *italic*, `code`, and [links](../to/files), which Markdown alone keeps. The same
page gives the same bytes.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

from tabulate import tabulate

_HTML = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #222; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }}
blockquote {{ margin: 0 0 1rem; padding: .5rem 1rem; background: #fdf3ee; border-left: 4px solid #c4512d; }}
blockquote p {{ margin: 0; }}
table {{ border-collapse: collapse; border-top: 2px solid #222; border-bottom: 2px solid #222; margin: 1rem 0; }}
th, td {{ padding: .25rem .8rem; font-variant-numeric: tabular-nums; }}
th {{ border-bottom: 1px solid #222; }}
.left {{ text-align: left; }}
.right {{ text-align: right; }}
tr.heading td {{ border-top: 1px solid #bbb; color: #555; padding-top: .5rem; }}
li, p.foot {{ font-size: 13px; color: #555; }}
</style>
{body}
</html>
"""


@dataclass(frozen=True)
class Quote:
    """A prominent remark: a line, and points below it."""

    text: str
    points: Sequence[str] = ()


@dataclass(frozen=True)
class Text:
    """A paragraph; `foot` prints it small, except in Markdown."""

    text: str
    foot: bool = False


@dataclass(frozen=True)
class Points:
    """A bulleted list."""

    points: Sequence[str]


@dataclass(frozen=True)
class Grid:
    """A table. A line has as many cells as the header, or one cell, a heading that spans all columns.

    `alignment` is 'left' or 'right' for each column.
    """

    header: Sequence[str]
    lines: Sequence[Sequence[str]]
    alignment: Sequence[str]


Block = Quote | Text | Points | Grid

_SUPERSCRIPTS = dict(zip("ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻ", "abcdefghijklmnoprstuvwxyz", strict=True))
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "×": r"$\times$", "✓": r"\checkmark{}", "✗": r"$\times$",
    "±": r"$\pm$", "−": "$-$", "–": "--", "≤": r"$\leq$", "≥": r"$\geq$", "→": r"$\to$",
    "Δ": r"$\Delta$", "·": r"$\cdot$", "²": r"\textsuperscript{2}", "…": r"\dots{}",
}  # fmt: skip


def to_markdown(blocks: Sequence[Block]) -> str:
    """Write the page as Markdown; grids use GitHub's table syntax."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """Write the page as one self-contained HTML file."""
    return _HTML.format(title=html.escape(title), body=fragment(blocks))


def fragment(blocks: Sequence[Block]) -> str:
    """Write blocks as HTML, for a part of a page."""
    return "\n".join(_html(block) for block in blocks)


def to_latex(label: str, blocks: Sequence[Block]) -> str:
    """Write the page as a LaTeX table to \\input: booktabs, amssymb, UTF-8. The first paragraph is the caption."""
    caption = next(block for block in blocks if isinstance(block, Text))
    (grid,) = (block for block in blocks if isinstance(block, Grid))
    before = [_latex_small(block) for block in blocks[: blocks.index(caption)]]
    after = [_latex_small(block) for block in blocks if block not in (caption, grid)][len(before) :]
    title = _latex_inline(re.sub(r"^\*\*.+?\*\* ", "", caption.text))
    lines = [
        r"\begin{table}", r"\centering", *before, rf"\caption{{{title}}}", rf"\label{{{label}}}",
        rf"\begin{{tabular}}{{{''.join(side[0] for side in grid.alignment)}}}", r"\toprule",
        _latex_line(grid.header), r"\midrule",
        *(
            _latex_line(line)
            if len(line) == len(grid.header)
            else rf"\multicolumn{{{len(grid.header)}}}{{l}}{{{_latex_inline(line[0])}}} \\"
            for line in grid.lines
        ),
        r"\bottomrule", r"\end{tabular}", *after, r"\end{table}",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join(map(_latex_inline, cells)) + r" \\"


def _latex_small(block: Block) -> str:
    match block:
        case Quote(text, points):
            texts = [text, *points]
        case Points(points):
            texts = list(points)
        case _:
            assert isinstance(block, Text)
            texts = [block.text]
    return "\n".join(rf"\par{{\footnotesize {_latex_inline(text)}}}" for text in texts)


def _latex_inline(text: str) -> str:
    text = "".join(
        _LATEX.get(sign, rf"\textsuperscript{{{_SUPERSCRIPTS[sign]}}}" if sign in _SUPERSCRIPTS else sign)
        for sign in text
    )
    text = re.sub(r"`(.+?)`", r"\\texttt{\1}", text)
    text = re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", text)
    return re.sub(r"\*(.+?)\*", r"\\emph{\1}", text)


def _markdown(block: Block) -> str:
    match block:
        case Quote(text, points):
            return "\n".join([f"> {text}", *([">"] if points else []), *(f"> - {point}" for point in points)])
        case Text(text):
            return text
        case Points(points):
            return "\n".join(f"- {point}" for point in points)
        case Grid(header, lines, alignment):
            full = [[*line, *[""] * (len(header) - len(line))] for line in lines]
            escaped = [[cell.replace("|", "\\|") for cell in line] for line in [list(header), *full]]
            return str(
                tabulate(escaped[1:], escaped[0], tablefmt="pipe", colalign=list(alignment), disable_numparse=True)
            )


def _html(block: Block) -> str:
    match block:
        case Quote(text, points):
            return f"<blockquote><p>{inline(text)}</p>{_list(points) if points else ''}</blockquote>"
        case Text(text, foot):
            return f"<p{' class=foot' if foot else ''}>{inline(text)}</p>"
        case Points(points):
            return _list(points)
        case Grid(header, lines, alignment):
            head = _cells("th", header, alignment)
            rows = [
                _cells("td", line, alignment)
                if len(line) == len(header)
                else f'<tr class="heading"><td colspan="{len(header)}">{inline(line[0])}</td></tr>'
                for line in lines
            ]
            return "\n".join(["<table>", f"<thead>{head}</thead>", "<tbody>", *rows, "</tbody>", "</table>"])


def _cells(tag: str, cells: Sequence[str], alignment: Sequence[str]) -> str:
    pairs = zip(cells, alignment, strict=True)
    return "<tr>" + "".join(f'<{tag} class="{side}">{inline(cell)}</{tag}>' for cell, side in pairs) + "</tr>"


def _list(points: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{inline(point)}</li>" for point in points) + "</ul>"


def inline(text: str) -> str:
    """Write a text with its markup as HTML; all else in it is escaped."""
    text = html.escape(re.sub(r"\[([^]]+)\]\(\.\./[^)]+\)", r"\1", text))
    text = re.sub(r"`(.+?)`", r"<code>\1</code>", text)
    text = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", text)
    return re.sub(r"\*(.+?)\*", r"<em>\1</em>", text)
