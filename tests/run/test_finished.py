"""Results that a killed job loses although its stage had ended (uic_core/run/finished.py)."""

from pathlib import Path

import pytest

from uic_core.run import finished
from uic_core.run.parallel import ALONE

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
        assert finished.put_back(results, IDENTITY, ALONE, said.append)
        assert [file.read_text() for file in results] == ["one.json", "two.npz"]
    assert said[0].endswith(f"it is put back. To make it again, remove {tmp_path}/.one.finished")
    assert not finished.put_back(results, IDENTITY, ALONE, said.append), "nothing is missing: it is made again"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".one.finished", "one.json", "samples"]


@pytest.mark.parametrize(
    "change",
    ["other settings", "other code", "other packages", "damaged", "half kept", "none kept", "hostile", "forgotten"],
)
def test_other_results_are_not_put_back(results, tmp_path, monkeypatch, change):
    kept, identity = finished.folder(results[0]), IDENTITY
    if change == "other settings":
        identity = {"protocol": {"lr": 0.2}}
    elif change == "other code":
        monkeypatch.setattr(finished, "_code", lambda: "other")
    elif change == "other packages":
        monkeypatch.setattr(finished, "versions", lambda: {"torch": "0"})
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
    assert not finished.put_back(results, identity, ALONE, print)
    assert not results[1].exists()
