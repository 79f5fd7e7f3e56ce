"""The index of a results folder counts what the tables say."""

from __future__ import annotations

from pathlib import Path

import pytest

from uic_core.report import cells, summary, tables

CONFIG = Path(__file__).parents[2] / "config"


def make(matrix: dict[tuple[str, str], Path], folder: Path, scale: str) -> list[Path]:
    """The CSVs of all tables."""
    made = []
    for number in range(1, 8):
        path = folder / f"table{number}.csv"
        arguments = ["--table", number, "--tables", CONFIG / "tables.yaml", "--published", CONFIG / "published.csv"]
        arguments += ["--scale", scale, "--metrics", *matrix.values(), "--out", folder / "t.md", "--csv", path]
        tables.main([str(argument) for argument in arguments])
        made.append(path)
    return made


def index(csvs: list[Path], out: Path, scale: str) -> str:
    arguments = ["--tables", CONFIG / "tables.yaml", "--csv", *csvs, "--scale", scale, "--out", out]
    arguments += [
        "--benchmarks",
        out.parent,
        "--times",
        out.parent / "times.html",
        "--all-runs",
        "knn",
        "curves",
        "speed",
    ]
    summary.main([str(argument) for argument in arguments])
    return out.read_text(encoding="utf-8")


def test_it_links_every_table_and_figure_and_counts_their_numbers(matrix, tmp_path) -> None:
    text = index(make(matrix, tmp_path, "paper"), tmp_path / "README.md", "paper")
    for number, table in cells.read_tables(CONFIG / "tables.yaml").items():
        (line,) = [line for line in text.splitlines() if f"[Table {number}](tables/table{number}.md)" in line]
        count, verdict = (cell.strip() for cell in line.split("|")[3:5])
        assert int(count) == len(table.sources())
        # values of thin air: some few are near the paper's, no row that the paper lacks is compared
        within, compared = map(int, verdict.split(" of "))
        extra = {row.name for row in table.rows if row.extra}
        assert within <= compared == sum(row not in extra for row, _ in table.sources())
        assert f"[tex](tables/table{number}.tex)" in line
    assert "[Fig. 3](figures/fig3.png)" in text
    for task in ("detection", "segmentation"):
        assert f"[{task.capitalize()}](figures/{task}.png)" in text
        assert f"[{task.capitalize()} by class](tables/{task}.md)" in text
    assert "[Nearest neighbours](tables/knn.md)" in text
    assert "[csv](tables/knn.csv)" in text
    assert "[Training curves](figures/curves.png)" in text
    assert "[Speed](tables/speed.md)" in text
    assert "Demo data" not in text


def test_the_demo_compares_nothing(matrix, tmp_path) -> None:
    text = index(make(matrix, tmp_path, "demo"), tmp_path / "README.md", "demo")
    assert "Demo data" in text
    assert " of " not in "".join(line for line in text.splitlines() if "[Table" in line and "NMI" in line).split("|")[4]


@pytest.mark.parametrize(
    "content", [b"row,column\nx,y\n", b"", b"ours,within\n1,2\n1,2,3,4\n", b"ours,within\n\xff,1\n"]
)
def test_a_file_that_is_no_table_is_named(content: bytes, matrix, tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    csvs = make(matrix, tmp_path, "demo")
    csvs[3].write_bytes(content)
    with pytest.raises(SystemExit) as caught:
        index(csvs, tmp_path / "README.md", "demo")
    assert caught.value.code == 2
    assert f"{csvs[3]}: is no table" in capsys.readouterr().err
