"""The table of what each rule's jobs took."""

from pathlib import Path

import pytest

from uic_core.errors import InputError
from uic_core.report import times
from uic_core.report.page import Grid

HEAD = "s\th:m:s\tmax_rss\tmax_vms\n"


def bench(path: Path, seconds: float, memory: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{HEAD}{seconds}\t0:00:01\t{memory}\t9\n")


def test_jobs_are_summed_by_rule_the_longest_work_first(tmp_path):
    bench(tmp_path / "uic_3k/pretrain.tsv", 100.4, "900.5")
    bench(tmp_path / "uic_5k/pretrain.tsv", 30, "1000.6")
    bench(tmp_path / "data/index_imagenet_train.tsv", 5, "NA")
    bench(tmp_path / "data/index_imagenet_val.tsv", 2, "40")
    bench(tmp_path / "data/voc_segmentation.tsv", 1, "30")
    bench(tmp_path / "protocols/fewshot.tsv", 1.6, "31")
    bench(tmp_path / "uic_3k/seeds_fewshot.tsv", 0.6, "32")
    _, grid = times.page(tmp_path)
    assert isinstance(grid, Grid)
    assert grid.lines == [
        ["`pretrain`", "2", "130", "100", "1001"],
        ["`index`", "2", "7", "5", "40"],
        ["`protocol`", "1", "2", "2", "31"],
        ["`dataset`", "1", "1", "1", "30"],
        ["`seeds`", "1", "1", "1", "32"],
    ]


def test_a_file_that_is_no_benchmark_is_named(tmp_path):
    (tmp_path / "half.tsv").write_text(HEAD)
    with pytest.raises(InputError, match=r"half\.tsv: is no benchmark"):
        times.page(tmp_path)
