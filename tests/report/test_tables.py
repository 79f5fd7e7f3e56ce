"""Tables show exactly what the metrics and the paper say; what is missing is named."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from tests.resealed import resealed, rewrite
from uic_core.report import cells, tables
from uic_core.run import metrics
from uic_core.strict_yaml import read_yaml

ROOT = Path(__file__).parents[2]
TABLES, PUBLISHED = ROOT / "config" / "tables.yaml", ROOT / "config" / "published.csv"
Matrix = dict[tuple[str, str], Path]


def run(number: int, paths: list[Path], out: Path, *more: str, scale: str = "demo") -> tuple[str, list[dict[str, str]]]:
    """Run the stage; returns the Markdown and the CSV's records."""
    arguments = ["--table", number, "--tables", TABLES, "--published", PUBLISHED, "--scale", scale]
    arguments += ["--metrics", *paths, "--out", out / "t.md", "--csv", out / "t.csv", "--html", out / "t.html"]
    arguments += ["--tex", out / "t.tex", *more]
    tables.main([str(argument) for argument in arguments])
    with open(out / "t.csv", newline="", encoding="utf-8") as file:
        return (out / "t.md").read_text(encoding="utf-8"), list(csv.DictReader(file))


def fails(capsys: pytest.CaptureFixture[str], number: int, paths: list[Path], out: Path) -> str:
    """Run the stage, which must exit with 2 and leave nothing; returns what it says."""
    with pytest.raises(SystemExit) as caught:
        run(number, paths, out)
    assert caught.value.code == 2
    assert not (out / "t.md").exists()
    assert not (out / "t.csv").exists()
    return capsys.readouterr().err


def needed(matrix: Matrix, number: int) -> list[Path]:
    return [matrix[key] for key in cells.needed(TABLES, number)]


@pytest.mark.parametrize("number", range(1, 8))
def test_every_cell_is_the_metrics_value_beside_the_papers(number: int, matrix: Matrix, tmp_path: Path) -> None:
    # Reference: the Markdown grid is read back and each cell looked up by hand in the JSON and in the CSV of the paper.
    markdown, records = run(number, needed(matrix, number), tmp_path)
    table = cells.table(TABLES, number)
    with open(PUBLISHED, newline="", encoding="utf-8") as file:
        paper = {(r["row"], r["column"]): r["value"] for r in csv.DictReader(file) if r["table"] == str(number)}
    grid = [line.strip("|").split("|") for line in markdown.splitlines() if line.startswith("|")]
    grid = [[cell.strip() for cell in line] for line in grid]
    body = [line for line in grid[2:] if not line[0].startswith("*") or line[0].startswith("**")]
    assert len(body) == len(table.rows)
    sources = table.sources()
    for row, line in zip(table.rows, body, strict=True):
        assert line[0].strip("*ᵃᵇᶜᵈᵉᶠᵍ") == (row.shown or row.name)
        assert ("**" in line[0]) == bool(row.run)
        for column, cell in zip(table.columns, line[1:], strict=True):
            text = re.sub("[ᵃᵇᶜᵈᵉᶠᵍʰ]", "", cell)
            source = sources.get((row.name, column.name))
            if column.text:
                assert text == row.texts[column.name]
            elif source is None:
                assert text == paper.get((row.name, column.name), "-")
            else:
                content = json.loads(matrix[source.run, source.evaluation].read_text())
                ours = f"**{content['values'][source.value]['value']:.{table.decimals}f}**"
                ours += " ± 0.40" if number == 5 else ""
                assert text == (ours if row.extra else f"{ours} ({paper[row.name, column.name]})")
    assert {(r["row"], r["column"]) for r in records} == set(paper) | set(sources)
    assert {(r["table"], r["scale"]) for r in records} == {(str(number), "demo")}
    for record in records:
        assert record["paper"] == paper.get((record["row"], record["column"]), "")
        if record["ours"] and record["paper"]:
            assert float(record["difference"]) == pytest.approx(
                float(record["ours"]) - float(record["paper"]), abs=1e-9
            )
            assert record["commit"] == "0123456789ab"


def test_first_line_says_demo_and_last_line_where_it_is_from(matrix: Matrix, tmp_path: Path) -> None:
    markdown, _ = run(1, needed(matrix, 1), tmp_path)
    assert markdown.startswith("> **Demo data.** Our numbers come from generated images, not ImageNet")
    assert markdown.endswith(
        "Scale: demo. Commit: 0123456789ab. Date: 2026-01-02. Seeds of the training: 0. Seeds of the evaluation: 0.\n"
    )
    assert "Data: imagenet `00ff00ff00ff00ff` (train 2,000, val 400)." in markdown
    assert "**Demo data.**" not in run(1, needed(matrix, 1), tmp_path, scale="paper")[0]


def test_the_papers_number_is_explained_where_there_is_one(matrix: Matrix, tmp_path: Path) -> None:
    assert "**Bold**: computed here, with the paper's number in parentheses." in run(1, needed(matrix, 1), tmp_path)[0]
    own = read_yaml(TABLES)
    for row in own["tables"][1]["rows"]:
        row["extra"] = True  # the paper does not have it
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own))
    nothing = tmp_path / "nothing.csv"
    nothing.write_text(PUBLISHED.read_text(encoding="utf-8").splitlines()[0] + "\n")
    files = ["--tables", str(tmp_path / "own.yaml"), "--published", str(nothing)]
    assert "**Bold**: computed here. -: the paper has no number.\n" in run(1, needed(matrix, 1), tmp_path, *files)[0]


def test_same_bytes_whatever_the_order_of_the_files(matrix: Matrix, tmp_path: Path) -> None:
    # Property: a table is a function of its inputs' contents; files it does not need change nothing.
    files = [tmp_path / f"t.{kind}" for kind in ("md", "csv", "html", "tex")]
    run(4, needed(matrix, 4), tmp_path)
    first = [file.read_bytes() for file in files]
    run(4, list(reversed(matrix.values())), tmp_path)
    assert [file.read_bytes() for file in files] == first


def test_suspect_cells_and_switches_have_footnotes(matrix: Matrix, tmp_path: Path) -> None:
    markdown, _ = run(4, needed(matrix, 4), tmp_path)
    note = re.search(r"(\S) As the paper prints it; elsewhere it is given as 65\.3\.", markdown)
    assert note is not None
    assert f"63.1{note[1]}" in markdown
    assert "ᵃ Convolutions frozen, scale and shift of batch norm trained" in markdown
    for path in needed(matrix, 4):
        rewrite(path, path.read_text().replace("affine_trained", "frozen"))
    assert "ᵃ Convolutions and batch norm frozen" in run(4, needed(matrix, 4), tmp_path)[0]
    assert "The annotated classes of the miniImageNet test set" in run(5, needed(matrix, 5), tmp_path)[0]
    assert "splits its name in two" in run(7, needed(matrix, 7), tmp_path)[0]


def test_more_footnotes_than_letters_have_two() -> None:
    names = [SimpleNamespace(name=f"row {number}") for number in range(60)]
    notes = [(each.name, "column", f"text {number}") for number, each in enumerate(names)]
    table = SimpleNamespace(rows=names, columns=[SimpleNamespace(name="column")])
    marks, told = tables.marked(SimpleNamespace(table=table, notes=notes))
    found = [marks[each.name, "column"] for each in names]
    assert len(set(found)) == 60
    assert found[0] + found[24] + found[25] + found[50] == "ᵃ" + "ᶻ" + "ᵃᵃ" + "ᵃᵃᵃ"
    assert told == [f"{mark} text {number}" for number, mark in enumerate(found)]


def test_runs_that_differ_in_a_switch_are_told_apart(matrix: Matrix, tmp_path: Path) -> None:
    path = matrix["deepcluster", "voc_classification_fc6_8"]
    rewrite(path, path.read_text().replace("affine_trained", "frozen"))
    markdown, _ = run(4, needed(matrix, 4), tmp_path)
    assert "deepcluster: Convolutions and batch norm frozen" in markdown
    assert "supervised, random_rgb, random_sobel, uic_3k_fft: Convolutions frozen" in markdown


def test_an_unexplained_switch_is_named(matrix: Matrix, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = matrix["deepcluster", "voc_classification_fc6_8"]
    rewrite(path, path.read_text().replace("affine_trained", "melted"))
    message = fails(capsys, 4, needed(matrix, 4), tmp_path)
    assert "deepcluster/voc_classification_fc6_8: protocol.batch_norm is melted" in message
    assert "known: affine_trained, frozen" in message


def test_mixed_commits_dates_and_seeds_are_told(
    matrix: Matrix, tmp_path: Path, make_metrics: Callable[..., metrics.Metrics]
) -> None:
    path = matrix["deepcluster", "fewshot"]
    values = metrics.read(path).values
    metrics.write(
        path,
        make_metrics("deepcluster", "fewshot", values, commit="ffff", dirty=True, date="2026-02-03", seed=7),
    )
    markdown, records = run(5, needed(matrix, 5), tmp_path)
    assert "**Mixed commits**, 0123456789ab: uic_3k/fewshot; ffff (dirty): deepcluster/fewshot." in markdown
    assert "Date: 2026-01-02 to 2026-02-03. Seeds of the training: 0. Seeds of the evaluation: 0, 7." in markdown
    assert {record["commit"] for record in records} == {"0123456789ab", "ffff-dirty"}


def test_papers_scale_holds_ours_against_the_papers(matrix: Matrix, tmp_path: Path) -> None:
    # Table 6's NMI of UIC is 38.5 in the paper; the tolerance is one point, its border included.
    path = matrix["uic_3k", "clusters"]
    text = path.read_text()
    value = json.loads(text)["values"]["nmi"]["value"]
    for ours, shown, within in (
        (38.5, "+0.0 ✓", "yes"),
        (37.5, "−1.0 ✓", "yes"),
        (39.6, "+1.1 ✗", "no"),
        (30.0, "−8.5 ✗", "no"),
    ):
        rewrite(path, text.replace(str(value), str(ours)))
        markdown, records = run(6, needed(matrix, 6), tmp_path, scale="paper")
        assert f"**{ours:.1f}** (38.5, {shown})" in markdown
        (record,) = [record for record in records if record["ours"] == str(ours)]
        assert (record["tolerance"], record["within"]) == ("1.0", within)
    verdicts = [record["within"] for record in records if record["within"]]
    assert f"within 1 point (✓) or not (✗): {verdicts.count('yes')} of {len(verdicts)} are." in markdown


def test_the_demo_is_not_held_against_the_paper(matrix: Matrix, tmp_path: Path) -> None:
    markdown, records = run(6, needed(matrix, 6), tmp_path)
    assert not {"✗", "−"} & set(markdown)
    assert {(record["tolerance"], record["within"]) for record in records} == {("", "")}


def test_columns_have_tolerances_of_their_own(matrix: Matrix, tmp_path: Path) -> None:
    _, records = run(4, needed(matrix, 4), tmp_path, scale="paper")
    tolerances = {record["column"]: record["tolerance"] for record in records if record["within"]}
    assert tolerances["Segmentation ALL"] == "1.5"
    assert tolerances["Detection ALL"] == "1.0"


def test_latex_has_every_line_of_the_table(matrix: Matrix, tmp_path: Path) -> None:
    for number in range(1, 8):
        run(number, needed(matrix, number), tmp_path, scale="paper")
        tex = (tmp_path / "t.tex").read_text()
        table = cells.table(TABLES, number)
        assert tex.count(" \\\\\n") == 1 + len(table.rows) + sum(bool(row.heading) for row in table.rows)
        assert f"\\label{{tab:{number}}}" in tex
        assert tex.count("{") == tex.count("}")
        assert tex.isascii() or not set(tex) & set("×✓✗±−≤ᵃᵇᶜᵈ")
        assert not re.search(r"(?<!\\)[%#_$](?!\\|-)", re.sub(r"\$.*?\$", "", tex))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ('"recipe_hash": "r"', "**Mixed recipes** of uic_3k: `r`: linear_probe; `other`: clusters."),
        ('"checkpoint_hash": "c"', "**Mixed checkpoints** of uic_3k: `c`: linear_probe; `other`: clusters."),
    ],
)
def test_one_run_from_two_recipes_or_checkpoints_is_told(
    damage: str, told: str, matrix: Matrix, tmp_path: Path
) -> None:
    assert "**Mixed" not in run(1, needed(matrix, 1), tmp_path)[0]
    path = matrix["uic_3k", "clusters"]
    rewrite(path, path.read_text().replace(damage, re.sub(r'"\w"$', '"other"', damage)))
    assert told in run(1, needed(matrix, 1), tmp_path)[0]


def test_one_evaluation_with_two_settings_is_told(matrix: Matrix, tmp_path: Path) -> None:
    path = matrix["deepcluster", "voc_classification_all"]
    rewrite(path, path.read_text().replace("affine_trained", "frozen"))
    markdown, _ = run(4, needed(matrix, 4), tmp_path)
    assert '**Mixed settings** of voc_classification_all, batch_norm: "affine_trained": supervised' in markdown
    assert '; "frozen": deepcluster.' in markdown


@pytest.mark.parametrize("number", range(1, 8))
def test_the_papers_matrix_mixes_nothing(number: int, matrix: Matrix, tmp_path: Path) -> None:
    # Table 7's rows are of three architectures: other layers and crops by design.
    markdown, _ = run(number, needed(matrix, number), tmp_path, scale="paper")
    assert "Mixed" not in markdown
    assert "Different data" not in markdown


def test_probes_of_one_architecture_with_two_crops_are_told(matrix: Matrix, tmp_path: Path) -> None:
    path = matrix["uic_5k", "linear_probe"]
    rewrite(path, path.read_text().replace("random_crop", "resized_crop"))
    markdown, _ = run(1, needed(matrix, 1), tmp_path, scale="paper")
    assert '**Mixed settings** of linear_probe, crop: "random_crop": uic_3k, uic_10k' in markdown
    assert '; "resized_crop": uic_5k.' in markdown


def test_different_data_in_one_column_is_told(matrix: Matrix, tmp_path: Path) -> None:
    path = matrix["deepcluster", "fewshot"]
    rewrite(path, path.read_text().replace("00ff00ff00ff00ff", "1111111111111111"))
    markdown, _ = run(5, needed(matrix, 5), tmp_path)
    assert "**Different data in one column**: fewshot on miniimagenet_test" in markdown


def test_missing_metrics_fail_the_table_and_show_in_the_partial_one(
    matrix: Matrix, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [path for path in needed(matrix, 6) if path != matrix["uic_3k", "clusters"]]
    message = fails(capsys, 6, paths, tmp_path)
    assert "error: table 6: no metrics of run 'uic_3k', evaluation 'clusters'" in message
    assert "run snakemake" in message
    markdown, records = run(6, paths, tmp_path, "--partial")
    assert "**Partial.** 1 of our numbers is missing (–):" in markdown
    assert "> - no metrics of run 'uic_3k', evaluation 'clusters'" in markdown
    assert "– (38.5)" in markdown
    assert [r["column"] for r in records if r["run"] and not r["ours"]] == ["NMI t/labels"]
    assert run(6, [], tmp_path, "--partial")[0].count("– (") == 11


def test_no_room_is_named_and_leaves_no_half_table(matrix: Matrix, tmp_path: Path) -> None:
    """A limit on the size of files is what a test can have of a full disk without being root."""
    arguments = ["--table", "5", "--scale", "demo", "--tables", str(TABLES), "--published", str(PUBLISHED)]
    arguments += ["--metrics", *map(str, needed(matrix, 5)), "--out", "t.md", "--csv", "t.csv", "--html", "t.html"]
    program = f"""
import resource, signal
from uic_core.report import tables
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
tables.main({arguments!r})
"""
    folder = tmp_path / "tables"
    folder.mkdir()
    path = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, env=path)
    assert ended.returncode == 2
    assert re.fullmatch(r"error: t\.\w+: the disk is full; free some space .*\n", ended.stderr)
    written = [path.name for path in folder.iterdir()]
    assert all(path.stat().st_size < 2000 for path in folder.iterdir())
    assert not [name for name in written if "partial" in name]
    assert "t.md" not in written


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: re.sub(r'"value": [\d.]+', '"value": NaN', text, count=1), "not a finite number"),
        (lambda text: text[: len(text) // 2], "is not JSON"),
        (lambda text: "", "is not JSON"),
        (lambda text: text.replace('"unit": "%",', "", 1), "unit: Field required"),
        (
            lambda text: resealed(text.replace('"nmi"', '"ari"')),
            "no value 'nmi' (there are: ari); correct the cell in tables.yaml",
        ),
        (
            lambda text: resealed(text.replace('"unit": "%"', '"unit": "bits"')),
            "values.nmi: unit 'bits' is not %; correct the cell in",
        ),
    ],
)
def test_an_unfit_file_is_named(
    damage: Callable[[str], str],
    message: str,
    matrix: Matrix,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = matrix["uic_3k", "clusters"]
    path.write_text(damage(path.read_text()))
    told = fails(capsys, 6, needed(matrix, 6), tmp_path)
    assert str(path) in told
    assert message in told
    markdown, _ = run(6, needed(matrix, 6), tmp_path, "--partial")
    assert "– (38.5)" in markdown
    assert str(path) in markdown
    assert message in markdown


def test_an_absent_file_and_a_double_one_are_named(
    matrix: Matrix, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = fails(capsys, 5, [*needed(matrix, 5), tmp_path / "absent.json"], tmp_path)
    assert f"{tmp_path / 'absent.json'}: cannot be read" in told
    copy = tmp_path / "copy.json"
    copy.write_bytes(matrix["uic_3k", "fewshot"].read_bytes())
    told = fails(capsys, 5, [*needed(matrix, 5), copy], tmp_path)
    assert f"{copy}: uic_3k/fewshot is also in {matrix['uic_3k', 'fewshot']}" in told


def test_an_unknown_table_is_answered_with_the_known_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no table 8; known: 1, 2, 3, 4, 5, 6, 7" in fails(capsys, 8, [], tmp_path)


def test_imports_no_torch() -> None:
    code = "import sys; from uic_core.report import figures, index_page, tables; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"
