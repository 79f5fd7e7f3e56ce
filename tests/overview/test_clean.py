"""`make clean RESULTS=1` removes results of generated data sets, and nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.small_dag import small_config
from tests.workflow import stand_in
from uic_core.config import validate
from uic_core.overview import clean
from uic_core.recipe import save

ROOT = Path(__file__).parents[2]


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished demo's, as git has the folder."""
    stand_in.make(validate(small_config(), "small.yaml"), tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in (".gitignore", ".lock", "report.html", "made_from.json"):
        Path("results", name).touch()
    return Path("results")


def recorded(folder: Path, generated: bool) -> None:
    """Make a results folder with a training in it, and what it records of its data."""
    dataset = validate(small_config(), "small.yaml").datasets.one("imagenet")
    save(dataset.model_copy(update={"generated": generated}), folder / "data" / "imagenet.yaml")
    file(folder / "runs" / "uic_128" / "checkpoint.safetensors")


def file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("weeks")


def cleaned(results: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    clean.main(["--results", str(results)])
    return capsys.readouterr().out.splitlines()


def files(results: Path) -> set[Path]:
    return {path for path in results.rglob("*") if path.is_file()}


def test_of_a_demo_nothing_is_left(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = cleaned(results, capsys)
    assert line == (
        "removed from results: .lock, README.md, data, figures, index, index.html, made_from.json, metrics, proposals, "
        "protocols, report.html, runs, tables, times.html"
    )
    assert list(results.iterdir()) == [results / ".gitignore"]
    for empty in (results, Path("nowhere")):
        assert cleaned(empty, capsys) == [f"{empty}: nothing to remove"]


def test_results_of_real_data_inside_and_what_nobody_knows_are_kept(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo = files(results) - files(results / "tables")
    for real in ("cifar10", "studies/seeds", "tables/mine"):
        recorded(results / real, False)
    recorded(results / "damaged", True)
    for path in (
        "damaged/data/imagenet.yaml",
        "old/.lock",
        "old/runs/uic_128/labels.npy",
        "backup/runs/a",
        "notes.txt",
    ):
        file(results / path)
    kept = files(results) - demo | {results / ".gitignore"}
    for generated in ("small_demo", "cifar10/small_demo"):
        recorded(results / generated, True)
    lines = cleaned(results, capsys)
    assert files(results) == kept
    assert not (results / "small_demo").exists()
    assert [line for line in lines if line.startswith("removed")] == [
        "removed from results/small_demo: .lock, data, runs",
        "removed from results/cifar10/small_demo: .lock, data, runs",
        "removed from results: .lock, README.md, data, figures, index, index.html, made_from.json, metrics, proposals, "
        "protocols, report.html, runs, times.html",
    ]
    real, by_hand = "holds results of real data sets", "remove it by hand if you want to"
    assert {*lines} >= {
        f"kept: results/cifar10 {real}; {by_hand}",
        f"kept: results/studies/seeds {real}; {by_hand}",
        f"kept: results/tables/mine {real}; {by_hand}",
        f"kept: results/old does not say of which data sets it is (data/*.yaml); {by_hand}",
        "kept: results/backup: the workflow did not make it",
        "kept: results/notes.txt: the workflow did not make it",
        "kept: results/tables: a folder that is kept lies in it",
    }
    assert any(line.startswith("kept: results/damaged/data/imagenet.yaml: ") for line in lines)


def test_results_of_real_data_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded(tmp_path, False)
    before = files(tmp_path)
    (line,) = cleaned(tmp_path, capsys)
    assert line.startswith(f"kept: {tmp_path} holds results of real data sets")
    assert files(tmp_path) == before


@pytest.mark.parametrize("inside", ["", "cifar10"])
def test_nothing_is_removed_where_a_snakemake_works(
    results: Path, inside: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded(results / "cifar10", False)
    code = "import sys; from pathlib import Path; from uic_core.files import hold; hold(Path(sys.argv[1]))"
    code += "; print(1, flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(results / inside)]
    before = files(results)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"1\n"
        with pytest.raises(SystemExit) as stop:
            clean.main(["--results", str(results)])
        holder.communicate()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert re.match(rf"error: {results / inside}: process {holder.pid} on .* works in it; wait for its end", error)
    assert before <= files(results)


def test_what_the_workflow_makes_is_known() -> None:
    texts = [path.read_text() for path in (ROOT / "workflow" / "rules").glob("*.smk")]
    names = {name for text in texts for name in re.findall(r'\{RESULTS\}/([\w.]+)|RESULTS, "([\w.]+)"', text)}
    made = {name for pair in names for name in pair if name}
    assert len(made) > 10
    assert made <= clean._MADE
