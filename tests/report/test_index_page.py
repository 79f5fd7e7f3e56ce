"""The one page to read: every link leads somewhere, every number is its JSON's, every gap has its reason."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from bench import browser
from tests import linked_page
from tests.resealed import rewrite
from uic_core.files import write_json, write_text
from uic_core.report import cells, index_page
from uic_core.report.tables import DEMO
from uic_core.run import metrics

CONFIG = Path(__file__).parents[2] / "config"
Matrix = dict[tuple[str, str], Path]
SEEN = "checkVisibility({contentVisibilityAuto: true})"
VOID = {"meta", "img", "br", "polyline"}


@pytest.fixture(scope="module")
def reader() -> Iterator[browser.Browser]:
    if reason := browser.missing():
        pytest.skip(reason)
    with browser.Browser() as started:
        yield started


@pytest.fixture
def results(matrix: Matrix, tmp_path: Path) -> Path:
    """The results folder of `matrix`, with values of classes, figures, a log and a history."""
    for (run, evaluation), path in matrix.items():
        if prefix := {"detection": "ap/", "segmentation": "iou/"}.get(evaluation):
            more = {f"{prefix}{name}": metrics.Value(value=len(run + name), unit="%") for name in ("bird", "cat")}
            found = metrics.read(path)
            metrics.write(path, found.model_copy(update={"values": found.values | more}))
    for name in ("fig3", "fig4", "detection", "segmentation"):
        (tmp_path / "figures").mkdir(exist_ok=True)
        Image.new("RGB", (30, 20), "navy").save(tmp_path / "figures" / f"{name}.png")
    lines = [{"epoch": epoch, "loss": 4 / (epoch + 1), "nmi_annotated": 0.5} for epoch in range(40)]
    write_text(tmp_path / "runs/uic_3k/history.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    write_text(tmp_path / "logs/uic_3k/pretrain.log", "uic, alexnet: 48 images\nepoch 40/40  loss 0.1\n")
    return tmp_path


def make(matrix: Matrix, results: Path, *more: str, scale: str = "demo", out: str = "index.html") -> str:
    """Run the stage on the whole matrix; return the page."""
    arguments = ["--results", results, "--metrics", *matrix.values(), "--tables", CONFIG / "tables.yaml"]
    arguments += ["--published", CONFIG / "published.csv", "--scale", scale, "--out", results / out]
    recipes = [f"{run}=r" for run in sorted({run for run, _ in matrix})]
    index_page.main([str(each) for each in (*arguments, *more, "--recipes", *recipes)])
    return (results / out).read_text(encoding="utf-8")


def fails(capsys: pytest.CaptureFixture[str], matrix: Matrix, results: Path, *more: str) -> str:
    """Run the stage, which must exit with 2 and write nothing; return what it says."""
    with pytest.raises(SystemExit) as caught:
        make(matrix, results, *more)
    assert caught.value.code == 2
    assert not (results / "index.html").exists()
    return capsys.readouterr().err


class Reader(HTMLParser):
    """Every id, every link, and whether each element is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []
        assert len(set(self.ids)) == len(self.ids)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        found = dict(attrs)
        self.ids += [found["id"]] if found.get("id") else []
        self.links += [found["href"]] if found.get("href") else []

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, self.getpos()


# --- the whole matrix ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["demo", "paper"])
def test_a_browser_follows_every_link_and_finds_every_number_in_its_json(
    scale: str, matrix: Matrix, results: Path, reader: browser.Browser
) -> None:
    make(matrix, results, scale=scale)
    numbers = linked_page.check(reader, results / "index.html")
    tables = cells.read_tables(CONFIG / "tables.yaml")
    for number, table in tables.items():
        shown = [each for each in numbers if each["table"] == f"table{number}"]
        assert [each["name"] for each in shown] == [source.value for source in table.sources().values()]
        held = [each for each in shown if each["below"]]
        assert len(held) == sum(not row.extra for row in table.rows for name, _ in table.sources() if name == row.name)
        assert all((each["below"][-1] in "✓✗") == (scale == "paper") for each in held)
    for task in ("detection", "segmentation"):
        assert len([each for each in numbers if each["table"] == f"classes/{task}"]) == 3 * 5


def test_a_link_into_a_closed_part_opens_it_and_a_phone_needs_no_scrolling_sideways(
    matrix: Matrix, results: Path, reader: browser.Browser
) -> None:
    make(matrix, results)
    reader.open(results / "index.html")
    reader.click("//section[@id='table1']//a[starts-with(@title, 'run uic_5k,')]")
    reader.wait(f"return document.getElementById('run/uic_5k/linear_probe/conv3').{SEEN}")
    reader.click("//section[@id='table1']//a[@title='run uic_3k']")
    reader.wait(f"return document.querySelector('#run\\\\/uic_3k > pre').{SEEN}")
    assert "epoch 40/40" in reader.see("//details[@id='run/uic_3k']/pre")
    reader.run("location.hash = 'run/uic_10k'; location.reload()")  # as a link from outside
    reader.wait("return document.readyState === 'complete' && document.getElementById('run/uic_10k').open")
    reader.run("for (const each of document.querySelectorAll('details')) each.open = true")
    reader.resize(400)
    assert reader.run("return document.documentElement.scrollWidth") <= 400
    reader.resize(1400)


def test_the_verdict_is_the_tables(matrix: Matrix, results: Path) -> None:
    """Table 6's NMI of UIC is 38.5 in the paper; the tolerance is one point."""
    text = matrix["uic_3k", "clusters"].read_text()
    value = re.search(r'"value": ([\d.]+)', text)
    assert value
    for ours, difference, verdict in (("37.5", "−1.0", "✓"), ("39.6", "+1.1", "✗")):
        rewrite(matrix["uic_3k", "clusters"], text.replace(value[1], ours))
        page = make(matrix, results, scale="paper")
        cell = re.search(rf'<strong>{ours}</strong></a><span class="paper">\(38.5\) (\S+) <span class="\w+">(.)<', page)
        assert cell
        assert cell.groups() == (difference, verdict)


def test_the_page_is_whole_loads_nothing_and_is_the_same_each_time(matrix: Matrix, results: Path) -> None:
    page = make(matrix, results)
    Reader(page)
    assert not re.search(r"(src|href)=\"?(https?:)?//", page)
    assert "default-src 'none'" in page
    assert page.count("Demo data.") == 1
    assert "Demo data." not in make(matrix, results, scale="paper")
    assert "Below it stand the paper's number" in make(matrix, results, scale="paper")
    assert "the paper's number" not in make(matrix, results, scale="study").partition("</header>")[0]
    assert make(dict(reversed(matrix.items())), results) == page


def test_a_history_of_many_epochs_is_short_and_has_its_ends(matrix: Matrix, results: Path) -> None:
    history = re.search(r"History, 40 epochs.*?</table>", make(matrix, results), re.DOTALL)
    assert history
    epochs = [int(each) for each in re.findall(r'<th scope="row" class="right">(\d+)<', history[0])]
    assert len(epochs) == 12
    assert (epochs[0], epochs[-1]) == (1, 40)
    assert epochs == sorted(set(epochs))
    points = re.findall(r'points="([^"]+)"', history[0])
    assert len(points) == 2
    assert len(points[0].split()) == 40
    assert points[0].split()[0] == "0.0,1.0"  # the largest loss, at the top
    assert points[0].split()[-1] == "120.0,25.0"


def test_the_mean_over_seeds_leads_to_its_own_file(
    matrix: Matrix, results: Path, make_metrics: Callable[..., metrics.Metrics]
) -> None:
    path = matrix["uic_5k", "clusters"]
    value = metrics.Value(value=41.0, unit="%", std=0.2, seeds=2)
    mean = make_metrics("uic_5k", "clusters", {"nmi": value}, recipe_hash="r", checkpoint_hash="c+c")
    matrix["uic_5k", "clusters"] = path.with_name("clusters.seeds.json")
    metrics.write(
        matrix["uic_5k", "clusters"], mean.model_copy(update={"protocol": {"runs": ["uic_5k", "uic_5k_seed1"]}})
    )
    matrix["uic_5k_seed1", "clusters"] = path.parent.with_name("uic_5k_seed1") / path.name
    metrics.write(matrix["uic_5k_seed1", "clusters"], make_metrics("uic_5k_seed1", "clusters", {"nmi": value}))
    page = make(matrix, results)
    assert 'href="#run/uic_5k/clusters.seeds/nmi" title="run uic_5k, clusters.seeds: nmi"><strong>41.0</strong>' in page
    assert " ± 0.2" in page
    ids = Reader(page).ids
    assert {"run/uic_5k/clusters", "run/uic_5k/clusters.seeds"} <= set(ids)
    assert 'The mean over the runs <a href="#run/uic_5k">uic_5k</a>, <a href="#run/uic_5k_seed1">' in page


# --- gaps ------------------------------------------------------------------------------------------------------------


def test_what_must_not_be_shown_fails_the_page_and_is_a_gap_with_its_reason_in_the_partial_one(
    matrix: Matrix, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent, edited, foreign, stale = (
        matrix[key]
        for key in (
            ("uic_10k", "clusters"),
            ("uic_5k", "clusters"),
            ("supervised", "linear_probe"),
            ("uic_3k", "fewshot"),
        )
    )
    absent.unlink()
    write_text(results / "logs/uic_10k/clusters.log", "one line\nerror: no history; run snakemake\n")
    edited.write_text(edited.read_text().replace("2026-01-02", "2026-01-03"))
    rewrite(foreign, foreign.read_text().replace('"recipe_hash": "r"', '"recipe_hash": "other"'))
    training = {
        "commit": "f", "dirty": False, "date": "2026-01-02", "versions": {}, "hardware": "cpu", "processes": 1,
        "wall_seconds": 1.0, "files": {"checkpoint.safetensors": "d" * 64},
    }  # fmt: skip
    write_json(results / "runs/uic_3k/training.json", training)
    told = fails(capsys, matrix, results)
    for path in (absent, edited, foreign, stale):
        assert f"{path}: " in told
    reasons = ("is not made yet", "its checksum is wrong", "is of recipe other", "is of checkpoint c, but the training")
    for reason in reasons:
        assert reason in told
    page = make(matrix, results, "--partial", out="tables/partial/index.html")
    found = Reader(page)
    for link in found.links:
        assert unquote(link[1:]) in found.ids if link.startswith("#") else (results / "tables/partial" / link).is_file()
    for name in ("run/uic_10k/clusters", "run/uic_5k/clusters", "run/supervised/linear_probe", "run/uic_3k/fewshot"):
        block = re.search(rf'<details class="evaluation" id="{name}">.*?</details>', page, re.DOTALL)
        assert block
        assert "Why there is no number" in block[0]
        assert "<td" not in block[0]
    assert "error: no history; run snakemake" in page
    assert page.count("data:image/png") == 2  # Figs. 3 and 4 are of uic_3k
    for reason in reasons[1:]:
        assert len(re.findall(rf'<li id="table\d/why/\d">[^<]*{reason}', page)) >= 1, reason
    # Of uic_3k, every checkpoint is another one. Table 1 lacks its four numbers, and the NMI of both others.
    gaps = {("uic_10k", "clusters"), ("uic_5k", "clusters"), ("supervised", "linear_probe")}
    every = [
        source for table in cells.read_tables(CONFIG / "tables.yaml").values() for source in table.sources().values()
    ]
    missing = [each for each in every if (each.run, each.evaluation) in gaps or each.run == "uic_3k"]
    assert page.count(">– why?</a>") == len(missing)
    assert "<strong>6 of 15 of our numbers are missing (–):</strong>" in page


def test_an_empty_folder_has_a_partial_page(tmp_path: Path, matrix: Matrix) -> None:
    empty = tmp_path / "empty"
    absent = {key: empty / path.relative_to(tmp_path) for key, path in matrix.items()}
    page = make(absent, empty, "--partial", "--page", "Speed", str(empty / "speed.md"))
    found = Reader(page)
    assert all(unquote(link[1:]) in found.ids for link in found.links)
    numbers = sum(len(table.sources()) for table in cells.read_tables(CONFIG / "tables.yaml").values())
    assert page.count(">– why?</a>") == numbers
    assert "speed.md: is not there" in page
    assert f"<p>{absent['uic_3k', 'clusters']}: is not made yet" in page  # in place of Figs. 3 and 4


@pytest.mark.parametrize("name", ["figures/fig4.png", "tables/speed.md"])
def test_a_part_that_is_missing_is_named(
    name: str, matrix: Matrix, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (results / name).unlink(missing_ok=True)
    more = ("--page", "Speed", str(results / name)) if name.endswith(".md") else ()
    assert f"error: {results / name}: " in fails(capsys, matrix, results, *more)


# --- further parts, and what others wrote ----------------------------------------------------------------------------


def test_further_pages_and_figures_are_parts_of_it(matrix: Matrix, results: Path) -> None:
    """A link to metrics leads to what the page says of them; HTML in a page is text."""
    table = "| run | k |\n|:--|--:|\n| a | [1.5](../metrics/uic_3k/fewshot.json) |"
    text = f"> {DEMO}\n\n# Speed\n\n{table}\n\n<b>x</b> [y](table1.md)\n"
    write_text(results / "tables/speed.md", text)
    write_text(results / "tables/table1.md", "x")
    Image.new("RGB", (4, 4)).save(results / "figures/curves.png")
    more = (
        "--page",
        "How fast",
        str(results / "tables/speed.md"),
        "--figure",
        "All curves",
        str(results / "figures/curves.png"),
    )
    page = make(matrix, results, *more)
    assert '<a href="#run/uic_3k/fewshot">1.5</a>' in page
    assert '<a href="tables/table1.md">y</a>' in page
    assert page.count("Demo data.") == 1
    assert "&lt;b&gt;x&lt;/b&gt;" in page
    assert '<h2 id="speed">How fast</h2>\n<h3>Speed</h3>' in page
    assert '<a href="#speed">How fast</a>' in page
    assert "<strong>All curves.</strong>" in page
    Reader(page)


def test_of_a_large_figure_the_page_holds_a_smaller_copy(
    matrix: Matrix, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (100, 2000, 3), np.uint8)
    Image.fromarray(pixels).save(results / "figures/fig4.png")
    page = make(matrix, results)
    source = re.search(r'<img src="data:image/webp;base64,([^"]+)" alt="Fig. 4', page)
    assert source
    assert Image.open(io.BytesIO(base64.b64decode(source[1]))).size == (1600, 80)
    assert page.count("data:image/png") == 3
    (results / "index.html").unlink()
    (results / "figures/fig4.png").write_bytes(b"no image" * 100_000)
    assert f"error: {results / 'figures/fig4.png'}: is no image" in fails(capsys, matrix, results)


def test_nothing_that_others_wrote_does_harm(
    matrix: Matrix, results: Path, make_metrics: Callable[..., metrics.Metrics], reader: browser.Browser
) -> None:
    """Log, history, recipe and metrics are text, whatever is in them; of a huge log only the end is read."""
    evil = "</script></pre><script>document.title = 'hacked'</script><img src=x onerror=\"document.title = 'hacked'\">"
    log = results / "logs/uic_3k/pretrain.log"
    with log.open("wb") as file:
        file.truncate(1 << 40)  # a hole: it takes no room, and could not be read
        file.seek(0, 2)
        file.write(
            f"\n\x1b[31mred\x1b[0m 10%\r 99%\r{evil}\r\n\x00\x07\xff\x80\u202ebidi\n".encode("latin-1", "replace")
        )
        file.write(b"\xff\xfe broken \xc3\n")
    write_text(results / "runs/uic_3k/history.jsonl", json.dumps({"epoch": 0, evil: 1e99}))
    write_text(results / "runs/uic_3k/recipe.yaml", f"method: |\n  {evil}\n'{evil.replace(chr(39), chr(39) * 2)}': 1\n")
    value = metrics.Value(value=1.0, unit=evil, remark=evil + "\x00\x1b\ud800".encode("utf-8", "replace").decode())
    values = metrics.read(matrix["uic_3k", "clusters"]).values | {f"a b\"'{evil}": value}
    found = make_metrics("uic_3k", "clusters", values)
    metrics.write(matrix["uic_3k", "clusters"], found.model_copy(update={"protocol": {evil: [evil, {evil: evil}]}}))
    page = make(matrix, results)
    Reader(page)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", page)
    reader.open(results / "index.html")
    reader.wait("return document.readyState === 'complete'")
    assert reader.run("return document.title") == "UIC: results"
    assert reader.run("return document.querySelectorAll('[onerror], script').length") == 1
    reader.run("for (const each of document.querySelectorAll('details')) each.open = true")
    shown = reader.see("//details[@id='run/uic_3k']/pre")
    assert evil in shown.splitlines()
    assert "99%" not in shown
    assert "broken" in shown
    assert reader.errors() == []
    assert len(page) < 3_000_000
