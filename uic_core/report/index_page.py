"""Stage `index_page`: results/index.html, the one page to read: every table and figure, and what each number is from.

A number links to its metrics, a row to its run, a missing number to the reason. It is one file that loads nothing and
can be read without its script. The same files give the same bytes. Imports no torch.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup
from PIL import Image

from uic_core.arguments import stage_parser
from uic_core.errors import InputError, stage
from uic_core.evaluations import BY_CLASS
from uic_core.files import read_text, write_text
from uic_core.report import filters, per_class, runs, times
from uic_core.report.arguments import add_partial, add_recipes, add_scale
from uic_core.report.cells import COMPUTED, Pair, by_class, pair, read_figures, read_tables, shown_runs
from uic_core.report.filled import Key, fill
from uic_core.report.linked import LinkedTable, anchor, class_table, paper_table, text
from uic_core.report.page import fragment
from uic_core.report.published import read_published
from uic_core.report.runs import MetricsFile
from uic_core.report.tables import DEMO

_KINDS = {".png": "image/png", ".svg": "image/svg+xml", ".webp": "image/webp"}
_LARGE, _WIDE = 400_000, 1600  # bytes of a figure in the page, width of the copy of a larger one


@dataclass(frozen=True)
class Picture:
    """A figure. `source`: the image as a data URI, '' if it is not there; `why`: then, why."""

    anchor: str
    title: str
    caption: str
    png: Path
    source: str
    why: str


@dataclass(frozen=True)
class Part:
    """A further page, as HTML."""

    anchor: str
    title: str
    content: Markup


class Results:
    """A results folder as the page shows it.

    Attributes:
        runs: from uic_core.report.runs.read.
        every: (run, name of the file) → every metrics file that it has or needs.
        evaluations: (run, evaluation) → the metrics file that tables take of it.
    """

    def __init__(
        self,
        folder: Path,
        out: Path,
        recipes: Mapping[str, str],
        metrics: Sequence[Path],
        partial: bool,
        stale: Mapping[Path, str] | None = None,
    ) -> None:
        """Read the runs.

        Args:
            out: the page, for links.
            recipes: run → hash of its recipe in the config.
            metrics: the files that tables take numbers from.
            partial: leave out what is missing or unfit, with the reason, instead of failing.
            stale: path → why what is in it must not be shown.

        Raises:
            InputError: numbers must not be shown (not if `partial`); a line for each file.
        """
        self.folder, self.out, self.recipes, self.partial = folder, out, recipes, partial
        self.runs, self._stale = runs.read(folder, recipes, metrics, stale), stale or {}
        wanted = set(metrics)
        self.every = {(each.run, each.name): each for run in self.runs.values() for each in run.evaluations}
        taken = [each for each in self.every.values() if each.path in wanted]
        self.evaluations = {(each.run, each.name.partition(".")[0]): each for each in taken}
        self._anchors = {each.path.absolute(): anchor(*key) for key, each in self.every.items()}
        unfit = [each.reason for each in self.evaluations.values() if each.reason]
        if unfit and not partial:
            raise InputError("\n".join(unfit))

    def metrics(self, evaluation: str = "") -> list[Path]:
        """Return the metrics files whose numbers may be shown; with `evaluation`, of that one alone."""
        fit = ((key, each.path) for key, each in self.evaluations.items() if each.metrics)
        return [path for key, path in fit if evaluation in ("", key[1])]

    def link(self, path: Path) -> str:
        """Return the link from the page to a file; '' if it is not there."""
        return quote(os.path.relpath(path, self.out.parent)) if path.exists() else ""

    def links(self, path: Path, *kinds: str) -> list[tuple[str, str]]:
        """Return (kind, link) of those files that are there among `path` with other suffixes."""
        found = [(kind, self.link(path.with_suffix(f".{kind}"))) for kind in kinds]
        return [(kind, link) for kind, link in found if link]

    def name(self, path: Path) -> str:
        """Return a path as the page prints it: within the results folder."""
        return os.path.relpath(path, self.folder)

    def table(self, name: str) -> Path:
        """Return the path of a table's files without suffix: those of a partial page lie beside it."""
        return self.out.parent / name if self.partial else self.folder / "tables" / name

    def picture(self, name: str, title: str, caption: str, png: Path, made_of: Collection[Key] = ()) -> Picture:
        """Return a figure: of PNG and SVG the smaller file; of photographs, where both are large, a smaller copy.

        Args:
            made_of: evaluations that it shows; if one of them must not be shown, neither is the figure.

        Raises:
            InputError: it is missing, or must not be shown (not if partial); or it is no image.
        """
        there = [path for path in (png, png.with_suffix(".svg")) if path.exists()]
        unfit = [self.every[key].reason for key in made_of if key in self.every and self.every[key].reason]
        unfit += [f"{png}: {self._stale[png]}"] if png in self._stale else []
        if unfit or not there:
            why = unfit[0] if unfit else f"{png}: is not there; run snakemake to make it"
            if not self.partial:
                raise InputError(why)
            return Picture(name, title, caption, png, "", why)
        content, kind = min(((path.read_bytes(), path.suffix) for path in there), key=lambda each: len(each[0]))
        if len(content) > _LARGE and png in there:
            content, kind = _photographs(png), ".webp"
        source = f"data:{_KINDS[kind]};base64,{base64.b64encode(content).decode()}"
        return Picture(name, title, caption, png, source, "")

    def part(self, title: str, path: Path) -> Part:
        """Return a Markdown page. Its links to metrics lead to what this page says of them.

        Raises:
            InputError: it is missing (not if partial), or is not UTF-8.
        """
        if not path.exists() and self.partial:
            return Part(path.stem, title, Markup("<p>%s: is not there; run snakemake to make it.</p>") % str(path))
        if path in self._stale:
            return Part(path.stem, title, Markup("<p>%s: %s.</p>") % (str(path), self._stale[path]))
        parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
        tokens = parser.parse(read_text(path).replace(f"> {DEMO}\n", ""))  # this page says it once
        for token in tokens:
            if re.fullmatch("h[1-4]", token.tag):
                token.tag = f"h{int(token.tag[1]) + 2}"  # below the page's own
            for child in token.children or []:
                if child.type == "link_open":
                    child.attrSet("href", self._from(path.parent, str(child.attrGet("href"))))
        return Part(path.stem, title, _wide(parser.renderer.render(tokens, parser.options, {})))

    def _from(self, folder: Path, href: str) -> str:
        """Return a link of a page in another folder as one of this page; a metrics file's fragment names a value."""
        parts = urlsplit(href)
        if parts.scheme or href.startswith("#"):
            return href
        path = folder / unquote(parts.path)
        there = self._anchors.get(Path(os.path.normpath(path.absolute())))
        if not there:
            return self.link(path) or href
        return "#" + "/".join(quote(part) for part in (there, unquote(parts.fragment)) if part)


def paper_tables(
    results: Results, tables_yaml: Path, computed: Sequence[Pair], published: Path, scale: str
) -> list[LinkedTable]:
    """Fill and link the tables of the paper. Raises InputError as filled.fill."""
    found = []
    for number, table in read_tables(tables_yaml, computed).items():
        sources = {(source.run, source.evaluation) for source in table.sources().values()}
        paths = [results.evaluations[key].path for key in sorted(sources) if _fit(results.evaluations.get(key))]
        filled = fill(
            number, table, read_published(published, number, table), paths, scale, partial=results.partial,
            recipes=results.recipes,
        )  # fmt: skip
        found.append(paper_table(filled, results.evaluations, results.runs))
    return found


def _fit(evaluation: MetricsFile | None) -> bool:
    return evaluation is not None and evaluation.metrics is not None


def class_tables(results: Results, tables_yaml: Path, computed: Sequence[Pair], scale: str) -> list[LinkedTable]:
    """Link the numbers of every class. Raises InputError as per_class.read (not if partial)."""
    found = []
    for task in by_class(tables_yaml, computed):
        labels = shown_runs(tables_yaml, task, computed)
        try:
            every = per_class.read(task, results.metrics(task), labels, results.recipes)
        except InputError as error:
            if not results.partial:
                raise
            why = Markup("<strong>Not made yet</strong>: %s") % str(error)
            found.append(LinkedTable(f"classes/{task}", BY_CLASS[task].title, foot=[why]))
            continue
        found.append(class_table(task, every, labels, scale, results.evaluations))
    return found


def pictures(
    results: Results, tables_yaml: Path, computed: Sequence[Pair], further: Sequence[tuple[str, Path]]
) -> list[Picture]:
    """Read the paper's figures, those of sample images, and further ones (title, PNG). Raises as Results.picture."""
    folder = results.folder / "figures"
    found = []
    for number, figure in read_figures(tables_yaml).items():
        title, png = f"Fig. {number}. {figure.title}", folder / f"fig{number}.png"
        found.append(results.picture(f"fig{number}", title, figure.caption, png, [(figure.run, "clusters")]))
    for task in by_class(tables_yaml, computed):
        shown_of = [(run, task) for run in shown_runs(tables_yaml, task, computed)]
        facts = BY_CLASS[task].samples
        png = folder / f"{task}.png"
        found.append(results.picture(f"samples/{task}", facts.title, facts.caption, png, shown_of))
    return [*found, *(results.picture(f"figure/{png.stem}", title, "", png) for title, png in further)]


def _photographs(png: Path) -> bytes:
    """Return a figure with photographs as WebP, at most _WIDE pixels wide: about a tenth of its PNG's bytes."""
    try:
        with Image.open(png) as image:
            copy = image.convert("RGB")
    except OSError as error:
        raise InputError(f"{png}: is no image ({error}); delete it and run snakemake again") from error
    copy.thumbnail((_WIDE, 3 * _WIDE))
    content = io.BytesIO()
    copy.save(content, "WEBP", quality=85)
    return content.getvalue()


def jobs(results: Results) -> Markup:
    """Return what the jobs took, by rule. Raises InputError as times.page (not if partial)."""
    try:
        return _wide(fragment(times.page(results.folder / "benchmarks")))
    except InputError as error:
        if not results.partial:
            raise
        return Markup("<p>%s</p>") % str(error)


def _wide(html: str) -> Markup:
    """Let the tables of a page scroll by themselves where they are wider than the screen."""
    return Markup(
        html.replace("<table>", '<div class="wide" tabindex="0"><table>').replace("</table>", "</table></div>")
    )


def render(results: Results, **parts: Any) -> str:
    """Write the page, from its template. All that is not Markup is escaped, and what cannot be printed replaced."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        finalize=filters.printable, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "shown": filters.shown, "number": filters.number, "columns": filters.columns, "column": filters.column,
        "what": filters.what, "curve": filters.curve, "some": filters.some, "text": text,
        "to": lambda target: f"#{quote(target)}",
        "digest": lambda script: base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }  # fmt: skip
    template = environment.get_template("index_page.html.jinja")
    return template.render(results=results, anchor=anchor, demo=DEMO, **parts)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page. On an error, name it, write nothing and exit with 2."""
    parser = stage_parser("uic_core.report.index_page", __doc__)
    parser.add_argument("--results", type=Path, required=True, help="the results folder")
    parser.add_argument("--metrics", type=Path, nargs="*", default=[], help="metrics JSONs that the tables need")
    parser.add_argument("--tables", type=Path, required=True, help="config/tables.yaml")
    parser.add_argument("--computed", type=pair, nargs="*", default=[], help=COMPUTED)
    parser.add_argument("--published", type=Path, required=True, help="config/published.csv")
    add_scale(parser)
    add_recipes(parser)
    parser.add_argument("--page", nargs=2, action="append", default=[], metavar=("TITLE", "MARKDOWN"))
    parser.add_argument("--figure", nargs=2, action="append", default=[], metavar=("TITLE", "PNG"))
    add_partial(parser)
    parser.add_argument("--out", type=Path, required=True, help="HTML")
    options = parser.parse_args(arguments)
    with stage():
        results = Results(
            options.results, options.out, options.recipes, options.metrics, options.partial, options.stale
        )
        declared = options.tables, options.computed
        page = render(
            results,
            scale=options.scale,
            tables=paper_tables(results, *declared, options.published, options.scale),
            classes=class_tables(results, *declared, options.scale),
            parts=[results.part(title, Path(path)) for title, path in options.page],
            pictures=pictures(results, *declared, [(title, Path(path)) for title, path in options.figure]),
            jobs=jobs(results),
        )
        write_text(options.out, page)


if __name__ == "__main__":
    main()
