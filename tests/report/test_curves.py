"""Training curves show the histories' numbers, leave out what a run has not, and refuse another training's history."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from uic_core.errors import InputError
from uic_core.report import curves
from uic_core.run import trained


def line(epoch: int, **changes: Any) -> dict[str, Any]:
    """A line as uic_core/pretrain/loop.py writes it."""
    return {
        "epoch": epoch, "loss": 4.0 - epoch / 10, "lr": 0.1, "nmi_previous": 0.5 + epoch / 100,
        "nmi_annotated": 0.2 + epoch / 100, "empty_classes": 30 - epoch, "coverage": 0.63,
    } | changes  # fmt: skip


HISTORIES = {
    "uic": [line(epoch) for epoch in range(20)],
    "fine_tuned": [line(epoch, nmi_previous=1.0) for epoch in range(3)],
    "rotations": [{key: line(epoch)[key] for key in ("epoch", "loss", "lr", "coverage")} for epoch in range(5)],
}


def write(folder: Path, name: str, history: list[dict[str, Any]]) -> Path:
    path = folder / "runs" / name / "history.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(each) + "\n" for each in history))
    return path


def make(folder: Path, scale: str = "paper") -> tuple[bytes, bytes]:
    paths = [folder / "runs" / name / "history.jsonl" for name in HISTORIES]
    arguments = ["--history", *paths, "--scale", scale, "--out", folder / "c.png", "--svg", folder / "c.svg"]
    curves.main([str(each) for each in arguments])
    return (folder / "c.png").read_bytes(), (folder / "c.svg").read_bytes()


@pytest.fixture
def histories(tmp_path: Path) -> dict[str, curves.History]:
    return {name: curves.read(write(tmp_path, name, history), {}) for name, history in HISTORIES.items()}


def panels(histories: dict[str, curves.History]) -> dict[str, Axes]:
    """The axes by quantity."""
    return dict(zip(curves.PANELS, curves.figure(histories).axes, strict=False))


def test_every_panel_has_the_histories_numbers_of_the_runs_that_have_them(histories: dict[str, curves.History]) -> None:
    found = panels(histories)
    shown = {
        name: [[list(drawn.get_xdata()), list(drawn.get_ydata())] for drawn in axes.lines]
        for name, axes in found.items()
    }
    epochs = list(range(1, 21))
    np.testing.assert_allclose(shown["nmi_previous"], [[epochs, 50 + np.arange(20)]])  # in percent; of `uic` alone
    np.testing.assert_allclose(shown["nmi_annotated"], [[epochs, 20 + np.arange(20)]])
    np.testing.assert_allclose(shown["empty_classes"], [[epochs, 30 - np.arange(20)]])
    assert found["empty_classes"].get_ylim()[1] > 1.3 * 30  # on a logarithmic scale less would cut the marker
    for quantity, values in (("coverage", lambda epoch: 63), ("loss", lambda epoch: 4 - epoch / 10)):
        for (x, y), history in zip(shown[quantity], HISTORIES.values(), strict=True):
            assert x == list(range(1, len(history) + 1))
            np.testing.assert_allclose(y, [values(epoch) for epoch in range(len(history))])


def test_a_long_note_stays_in_the_figure_and_below_the_panels(histories: dict[str, curves.History]) -> None:
    note = ", ".join(f"Wide_Name_Of_Run_{number}" for number in range(30))
    for figure in (curves.figure(histories, "short"), curves.figure(histories, note)):
        (text,) = figure.texts
        foot, page = text.get_window_extent(), figure.bbox
        assert page.xmin < foot.xmin < foot.xmax < page.xmax
        assert page.ymin < foot.ymin
        assert foot.ymax < min(axes.xaxis.get_tightbbox().ymin for axes in figure.axes if axes.axison)


def test_a_run_looks_alike_in_all_panels_and_the_legend_and_unlike_every_other() -> None:
    many = {f"run_{number}": [line(epoch) for epoch in range(9)] for number in range(20)}
    axes = curves.figure(many).axes
    looks = [[(drawn.get_color(), str(drawn._dash_pattern)) for drawn in panel.lines] for panel in axes[:5]]
    assert all(look == looks[0] for look in looks)
    assert len(set(looks[0])) == 20
    legend = axes[-1].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == list(many)
    assert [drawn.get_color() for drawn in legend.get_lines()] == [color for color, _ in looks[0]]


def test_few_epochs_are_marked(histories: dict[str, curves.History]) -> None:
    markers = {len(drawn.get_xdata()): drawn.get_marker() for drawn in panels(histories)["loss"].lines}
    assert markers == {20: "None", 3: "o", 5: "o"}


def test_stage_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    for name, history in HISTORIES.items():
        write(tmp_path, name, history)
    png, svg = make(tmp_path)
    assert make(tmp_path) == (png, svg)
    assert Image.open(tmp_path / "c.png").size == (2070, 1350)
    assert png.startswith(b"\x89PNG")
    assert b"<svg" in svg
    assert make(tmp_path, "demo") != (png, svg)


@pytest.mark.parametrize("broken", ["{", '{"epoch": 1, "loss": "x"}', '{"loss": 1.0}', "[1]", "\x00"])
def test_a_line_that_is_no_epoch_is_named(tmp_path: Path, broken: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name, history in HISTORIES.items():
        path = write(tmp_path, name, history)
    path.write_text(path.read_text() + broken + "\n")
    with pytest.raises(SystemExit) as stop:
        make(tmp_path)
    assert stop.value.code == 2
    assert f"{path}:6: is no epoch of a history" in capsys.readouterr().err
    assert not (tmp_path / "c.png").exists()


def test_a_history_that_the_training_did_not_write_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, history in HISTORIES.items():
        path = write(tmp_path, name, history)
    trained.write(path.parent, [path.name])
    make(tmp_path)
    path.write_text(path.read_text().replace("4.0", "3.0"))
    with pytest.raises(SystemExit):
        make(tmp_path)
    assert f"{path}: is not the file that the run's training wrote" in capsys.readouterr().err
    trained.write(path.parent, [path.name], recipe="a")
    curves.read(path, {path.parent.name: "a", "another": "b"})
    with pytest.raises(InputError, match="is of recipe a, but run 'rotations' of the config has b; run snakemake"):
        curves.read(path, {path.parent.name: "b"})
    path.unlink()
    with pytest.raises(InputError, match=r"history\.jsonl: cannot be read"):
        curves.read(path, {})
