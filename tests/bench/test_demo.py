"""The demo's bars, on tables and benchmarks written by hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench import demo
from bench.measure import Bars
from uic_core.errors import InputError

HEAD = "table,scale,row,column,ours,paper,run\n"
LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5")


def written(folder: Path, scale: str = "demo", **changed: float) -> Path:
    """A results folder that meets every bar, but for what is changed: '<run>_<column>' or nmi."""
    rows = {"supervised": 70.0, "random_sobel": 60.0, "uic_3k": 65.0, "random_rgb": 50.0}
    rows |= {"selflabel_3k": 55.0, "rotnet": 55.0}
    cells = {(run, layer): changed.get(f"{run}_{layer}", value) for run, value in rows.items() for layer in LAYERS}
    lines = [f"3,{scale},x,{layer},{value},1.0,{run}\n" for (run, layer), value in cells.items()]
    (folder / "tables").mkdir(parents=True)
    (folder / "tables/table3.csv").write_text(HEAD + "".join(lines) + "3,demo,cited,conv1,,9.9,\n")
    (folder / "tables/table1.csv").write_text(
        HEAD + f"1,{scale},x,NMI t/labels,{changed.get('nmi', 23.0)},38.5,uic_3k\n"
    )
    for name, seconds, megabytes in (("first", 60, 512), ("last", changed.get("seconds", 800), 2048)):
        path = folder / "benchmarks" / name / "job.tsv"
        path.parent.mkdir(parents=True)
        path.write_text(f"s\tmax_rss\n{seconds}\t{changed.get('megabytes', megabytes)}\n")
        os.utime(path, (10_000, 10_000))
    return folder


def missed(folder: Path) -> list[str]:
    bars = Bars("demo")
    demo.report(bars, folder, 5.0)
    assert len(bars.lines) == 14
    return [line.split()[1] for line in bars.lines if line.startswith("MISS")]


def test_a_demo_as_it_should_be_meets_every_bar(tmp_path: Path) -> None:
    assert missed(written(tmp_path)) == []


@pytest.mark.parametrize(
    ("changed", "bar"),
    [
        (dict.fromkeys((f"supervised_{layer}" for layer in LAYERS), 65.0), "demo-supervised-above-uic"),
        ({"uic_3k_conv2": 60.0}, "demo-uic-above-random-conv2"),
        ({"rotnet_conv3": 50.0}, "demo-rotnet-above-random-conv3"),
        ({"nmi": 19.9}, "demo-nmi"),
        ({"megabytes": 7000}, "demo-memory-gb"),
        ({"seconds": 901}, "demo-minutes"),
    ],
)
def test_what_falls_short_is_a_missed_bar(tmp_path: Path, changed: dict[str, float], bar: str) -> None:
    assert missed(written(tmp_path, **changed)) == [bar]


def test_other_tables_than_the_demos_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"table3\.csv: is of scale paper, not of the demo's data; make demo"):
        missed(written(tmp_path / "paper", scale="paper"))
    folder = written(tmp_path / "torn")
    (folder / "tables/table3.csv").write_text("ours\n")
    with pytest.raises(InputError, match=r"table3\.csv: is no table .*; delete it and make demo"):
        missed(folder)
