"""Results that a killed job loses although its stage had ended (uic_core/run/finished.py)."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from uic_core.errors import InputError
from uic_core.run import finished
from uic_core.run.parallel import ALONE

ROOT = Path(__file__).parents[2]
IDENTITY = {"protocol": {"lr": 0.1}}


@pytest.fixture
def results(tmp_path: Path) -> list[Path]:
    """Results that are kept; the second was removed since."""
    files = [tmp_path / "one.json", tmp_path / "samples" / "two.npz"]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.write_text(file.name)
    finished.keep(files, IDENTITY)
    files[1].unlink()
    return files


def test_results_that_were_removed_are_put_back_as_often_as_needed(results, tmp_path):
    said = []
    for missing in (results, results[:1]):
        for file in missing:
            file.unlink(missing_ok=True)
        assert finished.put_back(results, IDENTITY, ALONE, said.append, Path.read_text)
        assert [file.read_text() for file in results] == ["one.json", "two.npz"]
    (kept,) = finished.folder(results[0]).iterdir()
    assert said[0].endswith(f"it is put back. To make it again, remove {kept}")
    assert not finished.put_back(results, IDENTITY, ALONE, said.append, Path.read_text), "none is missing"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".one.finished", "one.json", "samples"]


def test_results_are_kept_where_a_folder_cannot_be_removed(results, monkeypatch):
    """As NFS keeps that of a file which a process still reads."""
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    finished.keep(results[:1], IDENTITY)
    results[0].unlink()
    assert finished.put_back(results[:1], IDENTITY, ALONE, print, Path.read_text)


def refuse(path: Path) -> str:
    raise InputError(f"{path}: has no checksum")


@pytest.mark.parametrize(
    "change",
    ["other settings", "earlier version", "damaged", "half kept", "none kept", "hostile", "forgotten"],
)
def test_other_results_are_not_put_back(results, change):
    (kept,), identity, read = finished.folder(results[0]).iterdir(), IDENTITY, Path.read_text
    if change == "other settings":
        identity = {"protocol": {"lr": 0.2}}
    elif change == "earlier version":
        read = refuse
    elif change == "damaged":
        (kept / "two.npz").write_text("tw")
    elif change == "half kept":
        (kept / "two.npz").unlink()
    elif change == "none kept":
        (kept / "what.json").unlink()
    elif change == "hostile":
        (kept / "what.json").write_text("[1]")
    else:
        finished.forget(results[0])
    assert not finished.put_back(results, identity, ALONE, print, read)
    assert not results[1].exists()


def test_a_short_try_with_another_setting_costs_no_finished_result(tmp_path):
    """Whoever forgets `results` in a copied config would lose weeks. Forced, the result that is there is forgotten."""
    file, tried = tmp_path / "one.json", {"protocol": {"lr": 0.2}}
    for text, identity in (("of weeks", IDENTITY), ("a try", tried)):
        file.unlink(missing_ok=True)
        file.write_text(text)
        finished.keep([file], identity)
    file.unlink()
    assert finished.put_back([file], IDENTITY, ALONE, print, Path.read_text)
    assert file.read_text() == "of weeks"
    finished.forget(file)
    for identity in (IDENTITY, tried):
        file.unlink(missing_ok=True)
        assert finished.put_back([file], identity, ALONE, print, Path.read_text) == (identity == tried)


def test_fault_34_finished_results_outlive_other_code_and_packages(tmp_path, seen):
    """As the states of unfinished ones do: a training is killed, and started again after a `git pull`."""
    shutil.copytree(ROOT / "uic_core", tmp_path / "clone/uic_core", ignore=shutil.ignore_patterns("__pycache__"))

    head = """
from pathlib import Path
from uic_core.run import finished, metrics, parallel
file = Path("one.json")
"""
    evaluated = """
origin, dataset = metrics.Origin("run", "a", "b", 1.0, (0,), ""), metrics.Dataset(name="d", fingerprint="f", sizes={})
metrics.record(file, "knn", origin, dataset=dataset, values={}, protocol={}, seed=0)
finished.keep([file], {})
"""

    def process(code: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(tmp_path / "clone")}
        return subprocess.check_output([sys.executable, "-c", head + code], cwd=tmp_path, env=environment, text=True)

    process(evaluated)
    before = (tmp_path / "one.json").read_bytes()
    (tmp_path / "one.json").unlink()
    for edited, line in (("report/times.py", "# a comment"), ("run/metrics.py", "versions = lambda: {'torch': '0'}")):
        with (tmp_path / "clone/uic_core" / edited).open("a") as module:
            module.write(f"\n{line}\n")
    said = process("finished.put_back([file], {}, parallel.ALONE, print)")
    seen(said)
    assert said.startswith("one.json: an earlier process finished this, and it was removed since: it is put back. ")
    assert (tmp_path / "one.json").read_bytes() == before
