"""A page says the same in Markdown and in HTML."""

from __future__ import annotations

from html.parser import HTMLParser

from uic_core.report.page import Grid, Points, Quote, Text, to_html, to_latex, to_markdown

BLOCKS = [
    Quote("**Look** here:", ["a < b"]),
    Text("A *title* with `code` & more", foot=True),
    Grid(["Methods", "conv3|x"], [["**Ours**", "**1.0** (2.0)"], ["*Others*"], ["A|B", "3.0"]], ["left", "right"]),
    Points(["one", "two"]),
]


def test_markdown() -> None:
    assert to_markdown(BLOCKS) == (
        "> **Look** here:\n>\n> - a < b\n\n"
        "A *title* with `code` & more\n\n"
        "| Methods   |      conv3\\|x |\n"
        "|:----------|--------------:|\n"
        "| **Ours**  | **1.0** (2.0) |\n"
        "| *Others*  |               |\n"
        "| A\\|B      |           3.0 |\n\n"
        "- one\n- two\n"
    )


def test_html_is_well_formed_and_escaped() -> None:
    class Reader(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []
            self.cells: list[str] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag != "meta":
                self.open.append(tag)
            if tag in ("td", "th"):
                self.cells.append("")

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

        def handle_data(self, data: str) -> None:
            if {"td", "th"} & set(self.open):
                self.cells[-1] += data

    page = to_html("<Table>", BLOCKS)
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert reader.cells == ["Methods", "conv3|x", "Ours", "1.0 (2.0)", "Others", "A|B", "3.0"]
    assert "<title>&lt;Table&gt;</title>" in page
    assert '<tr class="heading"><td colspan="2"><em>Others</em></td></tr>' in page
    assert "a &lt; b" in page


def test_latex() -> None:
    assert to_latex("tab:1", [BLOCKS[0], Text("**Table 1.** 5% of $a_b$"), *BLOCKS[2:]]) == (
        "\\begin{table}\n\\centering\n"
        "\\par{\\footnotesize \\textbf{Look} here:}\n\\par{\\footnotesize a < b}\n"
        "\\caption{5\\% of \\$a\\_b\\$}\n\\label{tab:1}\n"
        "\\begin{tabular}{lr}\n\\toprule\nMethods & conv3|x \\\\\n\\midrule\n"
        "\\textbf{Ours} & \\textbf{1.0} (2.0) \\\\\n\\multicolumn{2}{l}{\\emph{Others}} \\\\\nA|B & 3.0 \\\\\n"
        "\\bottomrule\n\\end{tabular}\n"
        "\\par{\\footnotesize one}\n\\par{\\footnotesize two}\n\\end{table}\n"
    )
