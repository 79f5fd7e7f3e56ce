"""docs/changing.md's table, line by line: what was changed, and what a dry run on finished results would make again."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from bench.small_dag import small_config
from tests import forked
from tests.resealed import resealed
from tests.workflow import stand_in
from uic_core.config import validate
from uic_core.files import sha256
from uic_core.overview import outdated
from uic_core.recipe import save
from uic_core.report import seeds as seeds_stage
from uic_core.report.cells import all_needed
from uic_core.run import trained

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TABLES = {f"table{number}" for number in range(1, 8)}
PAGES = {f"{kind}_{task}" for kind in ("fig", "table") for task in ("detection", "segmentation")}
OF_ALL_RUNS = {"table_knn", "fig_curves", "table_speed"}
EXTERNAL = {
    "method": "external", "path": "their.pth", "format": "torchvision", "arch": "alexnet", "sobel": False,
    "image_size": 64, "resize": 73,
}  # fmt: skip

Config = dict[str, Any]


def base() -> Config:
    """The small DAG with real data sets, a checkpoint from elsewhere, and two seeds."""
    config = small_config()
    config["datasets"]["generated"] = False
    config["runs"]["supervised"] = dict(EXTERNAL)
    return config


def evaluations(*runs: str) -> set[str]:
    """The evaluations of some runs: those that tables need, and kNN, 'rule:run'."""
    needed = all_needed(ROOT / "config/tables.yaml", validate(base(), "small.yaml").computable)
    pairs = [(run, name) for run, name in needed if run in runs]
    pairs += [(run, "knn") for run in runs]
    return {f"{re.sub('_(fc6_8|all)$', '', name)}:{run}" for run, name in pairs}


def options(folder: Path, clone: Path = ROOT) -> list[str]:
    """Snakemake's, for the config in a folder."""
    return [
        "--snakefile", str(clone / "Snakefile"), "--profile", str(clone / "profiles/demo"), "--directory", str(folder),
        "--configfile", str(folder / "small.yaml"),
    ]  # fmt: skip


def plan(folder: Path, *arguments: str, clone: Path = ROOT, path: str = "") -> tuple[set[str], str]:
    """What a dry run would do ('rule' or 'rule:run', without the tables' summary and page), and all that it says."""
    arguments = ("-n", *arguments, *options(folder, clone))
    if clone == ROOT:
        process = forked.snakemake(*arguments, CI="true")
    else:
        process = subprocess.run(
            [sys.executable, "-m", "snakemake", *arguments],
            cwd=clone, text=True, capture_output=True, check=False,
            env=os.environ | {"CI": "true", "PATH": f"{path}{os.environ['PATH']}"},
        )  # fmt: skip
    jobs: set[str] = set()
    for block in re.findall(r"^(?:local)?rule \w+:\n(?: +.*\n)*", process.stdout, flags=re.MULTILINE):
        rule, run = re.match(r"(?:local)?rule (\w+)", block)[1], re.search(r"wildcards: .*\brun=(\w+)", block)
        jobs.add(f"{rule}:{run[1]}" if run else rule)
    return jobs - {"all", "summary", "index_page"}, process.stdout + process.stderr


def write(folder: Path, config: Config) -> None:
    file = folder / "small.yaml"
    file.unlink(missing_ok=True)
    file.write_text(yaml.safe_dump(config))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished results, and what Snakemake records of them."""
    folder = tmp_path_factory.mktemp("finished")
    write(folder, base())
    for name in ("their.pth", "other.pth"):
        (folder / name).write_text(name)
    stand_in.make(validate(base(), "small.yaml"), folder)
    process = forked.snakemake("--touch", "--forceall", *options(folder))
    assert process.returncode == 0, process.stderr[-3000:]
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """The same again: a test replaces files, it never writes into them."""
    return Path(shutil.copytree(finished, tmp_path / "copy", copy_function=os.link))


def recipe(config: Config) -> None:
    config["runs"]["uic_3k_center_crop"]["lr"] = 0.03


def evaluation(config: Config) -> None:
    config["evaluations"]["fewshot"]["episodes"] = 30


def proposals(config: Config) -> None:
    config["evaluations"]["proposals"]["max_boxes"] = 51


def elsewhere(config: Config) -> None:
    config["datasets"]["folders"]["imagenet"]["root"] = config["datasets"]["voc07"]["root"] = "/elsewhere"


def other_data(config: Config) -> None:
    config["datasets"]["miniimagenet"]["images_per_class"] = 21


def other_checkpoint(config: Config) -> None:
    config["runs"]["supervised"]["path"] = "other.pth"


def seeds(config: Config) -> None:
    config["seeds"] = {"uic_5k": [1]}


CENTER = ("uic_3k_center_crop", "uic_3k_center_crop_fft")
SEED = {f"{rule}:uic_5k_seed1" for rule in ("recipe", "pretrain", "linear_probe", "clusters", "knn")}
FILE_FROM_ELSEWHERE = "the file of a run from elsewhere: its bytes, at the same `path` or another"
LINES: dict[str, tuple[Callable[[Config], None], set[str]]] = {
    "a recipe under `runs`": (
        recipe,
        {f"recipe:{CENTER[0]}", f"pretrain:{CENTER[0]}", f"finetune:{CENTER[1]}", "table1", "table2"}
        | evaluations(*CENTER)
        | OF_ALL_RUNS,
    ),
    "a section of `evaluations`": (evaluation, {"protocol", "fewshot:uic_3k", "fewshot:deepcluster", "table5"}),
    "`evaluations.proposals`": (
        proposals,
        {"protocol", "proposals", "table4", "fig_detection", "table_detection"}
        | {each for each in evaluations(*base()["runs"]) if each.startswith("detection")},
    ),
    "where a data set is: `root`, `sbd`, `source`": (elsewhere, {"dataset", "check", "index"}),
    "what a data set holds: its other keys": (
        other_data,
        {"dataset", "check", "index", "fewshot:uic_3k", "fewshot:deepcluster", "table5"},
    ),
    FILE_FROM_ELSEWHERE: (
        other_checkpoint,
        {"recipe:supervised", "external:supervised", "table3", "table4", "table_knn"}
        | PAGES
        | evaluations("supervised"),
    ),
    "`seeds`": (seeds, {*SEED, "seeds:uic_5k", "table1", "table_knn"}),
}
OTHERS = {
    "code; installed software, the lock, conda; what a profile requests": "test_fault_34",
    "a method's new key": "test_fault_36",
    "only times, of recipes, protocols and indexes; results copied to another machine with theirs": "test_fault_34",
    "a setting put back": "test_fault_65",
    "with its `source`: the folder, same files; the keys of the search": "test_fault_35_published",
    "where that file is: `path`": "test_fault_35_a_checkpoint_moved",
    "the bytes of a checkpoint, whatever its time": "test_fault_63_metrics",
    "the bytes of proposals, whatever their time": "test_fault_63_detections",
    "the bytes of metrics or a history, whatever their time": "test_fault_63_tables_and_figures",
    "`tables`, `published`, `scale`, or the folder of the clone": "test_other_tables",
    "`datasets.cache`": "test_a_cache_in_another_folder",
}
"""Lines that tests of their own hold, by the beginnings of their names."""


def of(*lines: str) -> tuple[Config, set[str]]:
    """A config with the changes of some lines, and the jobs of all of them."""
    config, jobs = base(), set[str]()
    for line in lines:
        change, expected = LINES[line]
        change(config)
        jobs |= expected
    return config, jobs


def test_every_line_of_the_document_has_a_test() -> None:
    text = (ROOT / "docs/changing.md").read_text()
    lines = re.findall(r"^\| (.+?) \|", text, flags=re.MULTILINE)[1:]
    assert sorted(lines) == sorted({*LINES, *OTHERS})
    assert all(any(name.startswith(test) for name in globals()) for test in OTHERS.values())


@pytest.fixture(scope="module")
def elsewhere_planned(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], str]:
    """The plan of a clone elsewhere: a space in every shell, a newer lock, other environments and requests, conda.

    DeepCluster has a new key there. All settings and indexes are newer than what was made from them.
    """
    folder, clone, config = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("clone"), base()
    shutil.copytree(finished, folder, symlinks=True, dirs_exist_ok=True)
    for part in ("data", "index", "protocols", "runs"):
        for file in (folder / "results" / part).rglob("*.*"):
            if file.suffix != ".safetensors":
                file.touch()
    for name in ("workflow", "config", "uic_core", "envs", "profiles"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    (clone / "Snakefile").write_text((ROOT / "Snakefile").read_text())
    for file in (clone / "workflow/rules").glob("*.smk"):
        changed = re.sub(r'"(python|launch) ', r'"\1  ', file.read_text())
        file.write_text(changed.replace("mem_mb=megabytes(64000)", "mem_mb=megabytes(65000)"))
    for file in (clone / "envs").iterdir():
        file.write_text(file.read_text() + "# newer\n")
    method = clone / "uic_core/methods/deepcluster.py"
    method.write_text(method.read_text().replace("    pca: int =", "    power: int = Field(ge=1)\n    pca: int ="))
    config["runs"]["deepcluster"]["power"] = 2
    write(folder, config)
    conda = clone / "bin/conda"
    conda.parent.mkdir()
    said = {"conda_version": "24.11.0", "platform": "linux-64", "get": {"channel_priority": "strict"}}
    conda.write_text(f"#!/bin/sh\necho '{json.dumps(said | dict.fromkeys(('conda_prefix', 'root_prefix'), '/no'))}'\n")
    conda.chmod(0o755)
    return plan(folder, "--software-deployment-method", "conda", clone=clone, path=f"{conda.parent}:")


OWN = {"recipe:deepcluster", "pretrain:deepcluster"} | evaluations("deepcluster")
"""What DeepCluster's new key makes again."""


def test_fault_34_code_software_times_and_the_clones_folder_make_nothing_but_tables_again(elsewhere_planned, seen):
    jobs, _ = elsewhere_planned
    assert jobs - OWN == TABLES | PAGES | OF_ALL_RUNS
    seen(f"again: {', '.join(sorted(jobs - OWN))}")


def test_fault_36_a_new_key_of_one_method_makes_its_runs_again_alone(elsewhere_planned, seen):
    jobs, told = elsewhere_planned
    assert jobs >= OWN
    assert not {job for job in jobs - OWN if ":" in job}
    assert "results/runs/deepcluster/checkpoint.safetensors: power is null there, 2 now" in told
    seen(f"again: {', '.join(sorted(OWN))}")


@pytest.mark.parametrize("records", [True, False])
def test_fault_63_what_a_changed_setting_makes_again_with_snakemakes_records_and_without(copy, records, seen):
    config, jobs = of(*LINES)
    write(copy, config)
    if not records:
        shutil.rmtree(copy / ".snakemake")
    found, told = plan(copy)
    assert found == jobs
    assert "metrics/deepcluster/fewshot.json: episodes is 20 there, 30 now; it is made again where it is needed" in told
    seen(next(line for line in told.splitlines() if "made again" in line))


def test_fault_35_another_folder_of_the_same_data_is_listed_again_and_no_more(copy, seen):
    """And once it is listed, at the time of now, nothing is left to do; where it holds other images, much."""
    shutil.rmtree(copy / ".snakemake")
    config, jobs = of("where a data set is: `root`, `sbd`, `source`")
    write(copy, config)
    (copy / "results/tables/table7.md").unlink()  # what is behind the index is looked at all the same
    assert plan(copy)[0] == jobs | {"table7"}
    stand_in.data(validate(config, "small.yaml"), copy / "results")
    assert plan(copy)[0] == {"table7"}
    stand_in.data(validate(config, "small.yaml"), copy / "results", mark="other")
    found, told = plan(copy)
    assert {
        "pretrain:uic_3k",
        "linear_probe:supervised",
        "clusters:uic_3k",
        "proposals",
        "segmentation:deepcluster",
    } <= found
    assert "runs/uic_3k/checkpoint.safetensors: imagenet is" in told
    seen(next(line for line in told.splitlines() if "imagenet is" in line))


def test_fault_64_a_missing_checkpoint_from_elsewhere_is_refused_by_what_takes_its_numbers(copy, seen):
    config = base()
    config["runs"]["supervised"]["path"] = "gone.pth"
    write(copy, config)
    for target in ([], ["table4"]):
        jobs, told = plan(copy, *target)
        assert not jobs
        assert "runs.supervised.path: gone.pth is not there; correct it in the config" in told
        assert "Nothing to be done" not in told
    seen(next(line.strip() for line in told.splitlines() if "gone.pth" in line and "not there" in line))
    assert "is not there" not in plan(copy, "table5")[1]


def test_fault_64_published_proposals_that_are_missing_are_refused_by_what_takes_their_numbers(copy, tmp_path, seen):
    """Of finished results and before the first; as a checkpoint from elsewhere is."""
    config = base()
    config["evaluations"]["proposals"]["source"] = "gone"
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    (fresh / "their.pth").touch()
    for folder in (copy, fresh):
        write(folder, config)
        line = (folder / "small.yaml").read_text().partition("source: gone")[0].count("\n") + 1
        for target in ([], ["table4"]):
            jobs, told = plan(folder, *target)
            assert not jobs
            assert re.search(
                rf"^error: small\.yaml:{line}: evaluations\.proposals\.source: gone/voc_2007_\w+\.mat is not there; "
                r"correct it in the config\Z",
                told.rstrip(), re.M,
            )  # fmt: skip
        assert "is not there" not in plan(folder, "table5")[1]
    seen(told.splitlines()[-1])


def older(file: Path, content: bytes, by: float = 1000) -> None:
    """Put another file in the place of one, some seconds older, as `cp -p` and `rsync -a` do."""
    time = file.stat().st_mtime_ns - int(by * 10**9)
    file.unlink()
    file.write_bytes(content)
    os.utime(file, ns=(time, time))


def trained_elsewhere(run: Path) -> None:
    """Put a checkpoint of the same recipe from another machine in a run's folder, with its training.json."""
    checkpoint, beside = run / "checkpoint.safetensors", run / trained.NAME
    older(checkpoint, checkpoint.read_bytes() + b"\0")
    named = json.loads(beside.read_text())
    named["files"][checkpoint.name] = sha256(checkpoint)
    older(beside, json.dumps(named).encode())


@pytest.mark.parametrize("records", [True, False])
def test_fault_63_metrics_of_another_checkpoint_or_recipe_are_made_again_whatever_their_times(copy, records, seen):
    """Also those that record no size and time of their checkpoint, as earlier versions did."""
    if not records:
        shutil.rmtree(copy / ".snakemake")
    metrics = copy / "results/metrics"
    earlier = json.loads((metrics / "uic_10k/knn.json").read_text())
    del earlier["provenance"]["checkpoint_stamp"]
    older(metrics / "uic_10k/knn.json", resealed(json.dumps(earlier)).encode(), by=0)
    assert plan(copy)[0] == {"table_knn"}
    trained_elsewhere(copy / "results/runs/uic_10k")
    theirs = json.loads((metrics / "uic_5k/knn.json").read_text())
    theirs["provenance"]["recipe_hash"] = "0" * 16
    older(metrics / "uic_5k/knn.json", resealed(json.dumps(theirs)).encode(), by=-1)
    older(metrics / "uic_5k/clusters.json", (metrics / "uic_3k/clusters.json").read_bytes())  # another run's
    jobs, told = plan(copy)
    assert jobs == {"knn:uic_5k", "clusters:uic_5k", "table1"} | OF_ALL_RUNS | evaluations("uic_10k")
    assert 'metrics/uic_5k/knn.json: recipe is "0000000000000000" there, "' in told
    assert 'metrics/uic_5k/clusters.json: run is "uic_3k" there, "uic_5k" now' in told
    seen(next(line for line in told.splitlines() if "uic_10k/knn.json: the checkpoint of uic_10k is" in line))


def test_fault_63_detections_of_other_proposals_are_made_again_and_a_touch_makes_none(copy, seen):
    """Other boxes of the same settings and data, as another version of OpenCV finds them."""
    boxes = copy / "results/proposals/voc07_test.npz"
    content = boxes.read_bytes()
    for by in (1, -2):
        older(boxes, content, by=by)
        assert plan(copy)[0] == set()
    older(boxes, content + b"\0")
    jobs, told = plan(copy)
    again = {each for each in evaluations(*base()["runs"]) if each.startswith("detection")}
    assert jobs == again | {"table4", "fig_detection", "table_detection"}
    seen(next(line for line in told.splitlines() if "voc07_test.npz is" in line))


@pytest.mark.parametrize("records", [True, False])
def test_fault_63_a_killed_trainings_history_is_none_and_a_checkpoints_time_makes_no_figure_again(copy, records, seen):
    if not records:
        shutil.rmtree(copy / ".snakemake")
    touched = copy / "results/runs/uic_10k/checkpoint.safetensors"
    older(touched, touched.read_bytes(), by=-1)
    assert not plan(copy)[0] & {"fig_curves", "table_speed"}
    run = copy / "results/runs/uic_5k"
    for name in ("checkpoint.safetensors", "labels.npy", trained.NAME):
        (run / name).unlink()
    older(run / "history.jsonl", b"{}\n", by=-1)
    for target in ("fig_curves", "table_speed"):
        jobs = plan(copy, target)[0]
        assert jobs == {"pretrain:uic_5k", target}
    seen(f"for {target}: {', '.join(sorted(jobs))}")


@pytest.mark.parametrize("records", [True, False])
def test_fault_63_tables_and_figures_of_other_numbers_are_made_again_whatever_their_times(copy, records, seen):
    """Metrics of the same run that were made elsewhere and copied with their times."""
    if not records:
        shutil.rmtree(copy / ".snakemake")
    metrics = copy / "results/metrics/uic_10k/linear_probe.json"
    older(metrics, metrics.read_bytes(), by=1e-6)
    assert plan(copy)[0] == set()
    older(metrics, resealed(metrics.read_text().replace("50.0", "51.0")).encode(), by=0)
    assert plan(copy)[0] == {"table1"}
    history = copy / "results/runs/uic_5k/history.jsonl"
    older(history, history.read_bytes() + b"\n", by=0)
    again = plan(copy)[0]
    assert again == {"clusters:uic_5k", "table1", "fig_curves", "table_speed"}
    seen(f"again: {', '.join(sorted(again))}")
    older(history, history.read_bytes()[:-1], by=0)
    beside = copy / "results/runs/uic_5k" / trained.NAME
    made_from = copy / "results/made_from.json"
    noted = made_from.read_bytes()
    for damaged in (b"null", b"[1]", noted[:-9]):  # then times count
        older(made_from, damaged, by=0)
        assert plan(copy)[0] == set()
    older(made_from, noted, by=0)
    older(beside, beside.read_bytes() + b" ", by=0)  # the same training elsewhere: other times
    assert plan(copy)[0] == {"table1", "fig_curves", "table_speed"}


def test_fault_63_a_checkpoint_that_came_alone_is_noticed_and_labels_are(copy, seen):
    """Without its training.json the evaluation then refuses it."""
    checkpoint = copy / "results/runs/uic_10k/checkpoint.safetensors"
    older(checkpoint, checkpoint.read_bytes() + b"\0")
    beside = copy / "results/runs/uic_5k" / trained.NAME
    named = json.loads(beside.read_text())
    named["files"]["labels.npy"] = "0" * 64
    older(beside, json.dumps(named).encode())
    jobs, told = plan(copy)
    again = {"clusters:uic_5k", "table1", "table_knn", "fig_curves", "table_speed"}
    assert jobs == again | evaluations("uic_10k")
    labels = copy / "results/runs/uic_3k/labels.npy"
    older(labels, labels.read_bytes() + b"\0")  # alone
    assert plan(copy)[0] == jobs | {"clusters:uic_3k", "table6", "fig3", "fig4"}
    seen(next(line for line in told.splitlines() if "labels.npy is" in line))


def test_fault_63_a_fine_tuning_of_another_start_is_made_again(copy, seen):
    trained_elsewhere(copy / "results/runs/uic_3k_center_crop")
    jobs, told = plan(copy)
    tuned = CENTER[1]
    assert jobs == {f"finetune:{tuned}", "table2"} | evaluations(*CENTER) | OF_ALL_RUNS
    seen(next(line for line in told.splitlines() if f"{tuned}/checkpoint.safetensors: the checkpoint of" in line))
    beside = copy / "results/runs" / tuned / trained.NAME
    earlier = {key: value for key, value in json.loads(beside.read_text()).items() if not key.startswith("start")}
    older(beside, json.dumps(earlier).encode())  # an earlier version does not say, and its results are kept
    assert f"finetune:{tuned}" not in plan(copy)[0]


def test_fault_63_a_fine_tuning_is_not_made_again_for_the_time_of_its_start(copy, seen):
    """Of results that were copied without times and records. Where jobs are forced, it follows them."""
    shutil.rmtree(copy / ".snakemake")
    start, tuned = (copy / "results/runs" / run for run in CENTER)
    content = (start / "checkpoint.safetensors").read_bytes()
    older(start / "checkpoint.safetensors", content, by=0)
    os.utime(start / "checkpoint.safetensors")  # newer than all that was made, however long that took
    assert plan(copy)[0] == {f"knn:{CENTER[0]}", "table_knn"}  # by its time
    assert f"finetune:{CENTER[1]}" in plan(copy, "--forcerun", "pretrain")[0]
    checkpoint = "results/runs/{}/checkpoint.safetensors".format
    assert f"finetune:{CENTER[1]}" in plan(copy, "--force", checkpoint(CENTER[0]), checkpoint(CENTER[1]))[0]
    assert f"finetune:{CENTER[1]}" not in plan(copy, "--forcerun", "table_speed")[0]
    (start / "history.jsonl").rename(copy / "aside")  # it is trained again
    assert {f"pretrain:{CENTER[0]}", f"finetune:{CENTER[1]}"} <= plan(copy)[0]
    (copy / "aside").rename(start / "history.jsonl")
    whole = (tuned / trained.NAME).read_bytes()
    earlier = {key: value for key, value in json.loads(whole).items() if not key.startswith("start")}
    older(tuned / trained.NAME, json.dumps(earlier).encode())  # does not say what it started from
    assert f"finetune:{CENTER[1]}" in plan(copy)[0]
    (tuned / trained.NAME).unlink()  # as of a checkpoint that came alone
    assert f"finetune:{CENTER[1]}" in plan(copy)[0]
    (tuned / trained.NAME).write_bytes(whole)
    older(tuned / trained.NAME, whole)
    config, _ = of("a recipe under `runs`")
    write(copy, config)
    jobs = plan(copy)[0]
    assert {f"pretrain:{CENTER[0]}", f"finetune:{CENTER[1]}"} <= jobs
    seen(f"with a start of another recipe: {', '.join(sorted(job for job in jobs if job.endswith(CENTER)))}")


def test_fault_63_an_export_of_another_checkpoint_is_made_again_whatever_its_time(copy, seen):
    """Of a run without metrics, which would make it again, too."""
    config, run = base(), copy / "results/runs" / CENTER[0]
    config["evaluations"]["knn"] = None
    write(copy, config)
    folder = copy / "results/export" / CENTER[0]
    folder.mkdir(parents=True)
    for name in ("torchvision.safetensors", "openmmlab.safetensors"):
        (folder / name).touch()
    line = "| checkpoint.safetensors (the source) | `{}` |\n"
    (folder / "README.md").write_text(line.format(sha256(run / "checkpoint.safetensors")))
    target = f"results/export/{CENTER[0]}/README.md"
    assert plan(copy, target)[0] == set()
    trained_elsewhere(run)
    jobs, told = plan(copy, target)
    assert jobs == {f"export:{CENTER[0]}"}
    seen(next(line for line in told.splitlines() if "README.md: the checkpoint of" in line))


def test_fault_63_a_history_that_cannot_be_read_ends_no_start_and_its_table_is_made_again(copy):
    history = copy / "results/runs" / CENTER[0] / "history.jsonl"
    history.unlink()
    history.mkdir()
    jobs, told = plan(copy)
    assert "Traceback" not in told
    assert {"table_speed", "fig_curves"} <= jobs


def test_fault_63_a_touch_calls_no_old_table_new(finished, tmp_path):
    folder = Path(shutil.copytree(finished, tmp_path / "own"))  # files of its own: a touch changes their times
    text, tables = (ROOT / "config/tables.yaml").read_text(), folder / "tables.yaml"
    tables.write_text(text.replace("title: Few-shot", "title: Our few-shot"))
    write(folder, base() | {"tables": str(tables)})
    made_from = json.loads((folder / "results/made_from.json").read_text())
    assert forked.snakemake("--touch", *options(folder)).returncode == 0
    assert json.loads((folder / "results/made_from.json").read_text()) == made_from
    assert plan(folder)[0] == TABLES | PAGES


def test_fault_63_a_seed_taken_away_leaves_the_mean(tmp_path, seen):
    """Without Snakemake's records, which say that the files behind it are others. And a part with other numbers."""
    config = base()
    config["seeds"] = {"uic_5k": [1, 2]}
    write(tmp_path, config)
    (tmp_path / "their.pth").write_text("their.pth")
    stand_in.make(validate(config, "small.yaml"), tmp_path)
    assert plan(tmp_path)[0] == set()
    part = tmp_path / "results/metrics/uic_5k_seed1/knn.json"
    whole = part.read_text()
    older(part, resealed(whole.replace('"peak_memory_mb": 0.0', '"peak_memory_mb": 7.0')).encode(), by=0)
    assert plan(tmp_path)[0] == {"seeds:uic_5k", "table_knn"}
    older(part, whole.encode(), by=0)
    config["seeds"] = {"uic_5k": [1]}
    write(tmp_path, config)
    jobs, told = plan(tmp_path)
    assert jobs == {"seeds:uic_5k", "table1", "table_knn"}
    seen(next(line for line in told.splitlines() if "seeds.json: runs is" in line))


def test_fault_64_another_file_under_the_same_path_with_an_older_time_is_converted_again(copy, seen):
    """A mere touch changes nothing; nor does it in results of an earlier version, which names the bytes alone."""
    theirs, beside = copy / "their.pth", copy / "results/runs/supervised" / trained.NAME
    theirs.touch()
    assert plan(copy)[0] == set()
    earlier = {key: value for key, value in json.loads(beside.read_text()).items() if not key.startswith("start")}
    for made in (beside.read_bytes(), json.dumps(earlier).encode()):
        older(beside, made)
        older(theirs, b"their.pth")
        assert plan(copy)[0] == set()
        older(theirs, b"other.pth")
        jobs, told = plan(copy)
        assert jobs == {"external:supervised", "table3", "table4", "table_knn"} | PAGES | evaluations("supervised")
    seen(next(line for line in told.splitlines() if "supervised/checkpoint.safetensors: its file is" in line))


@pytest.mark.parametrize("records", [True, False])
def test_fault_35_a_checkpoint_moved_elsewhere_is_evaluated_no_second_time(copy, records, seen):
    """Copied, in fact, so that it is newer. Nor are results of an earlier version, whose recipes' hashes hold the path.

    These hashes are among what tables are made with.
    """
    if not records:
        shutil.rmtree(copy / ".snakemake")
    (copy / "elsewhere").mkdir()
    (copy / "elsewhere/their.pth").write_text("their.pth")
    config = base()
    earlier = validate(config, "small.yaml").runs["supervised"].hashes()[1]
    config["runs"]["supervised"]["path"] = "elsewhere/their.pth"
    write(copy, config)
    again = plan(copy)[0]
    assert again == {"recipe:supervised", "table3", "table4", "table_knn"} | PAGES
    write(copy, base())
    for file in (copy / "results/metrics/supervised").glob("*.json"):
        text = re.sub(r'(recipe_hash": )"\w+"', rf'\1"{earlier}"', file.read_text())
        older(file, resealed(text).encode(), by=0)
    assert plan(copy)[0] == again - {"recipe:supervised"}
    seen(f"again: {', '.join(sorted(again))}")


def test_fault_35_published_proposals_in_another_folder(tmp_path, seen):
    """The bytes count, not where they lie, nor what searching would need; also for files made by the folder's name."""
    config, again = base(), {"proposals", "table4", "fig_detection", "table_detection"}
    again |= {each for each in evaluations(*config["runs"]) if each.startswith("detection")}
    section = config["evaluations"]["proposals"]
    section["source"] = "published"
    for name in ("their.pth", "published/voc_2007_trainval.mat", "published/voc_2007_test.mat"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    write(tmp_path, config)
    stand_in.make(validate(config, "small.yaml"), tmp_path)
    assert plan(tmp_path)[0] == set()
    (tmp_path / "published").rename(tmp_path / "moved")
    section |= {"source": "moved", "mode": "quality", "seed": 3, "max_boxes": 7}
    write(tmp_path, config)
    assert plan(tmp_path)[0] == {"protocol"}
    mat = tmp_path / "moved/voc_2007_test.mat"
    whole = mat.read_bytes()
    older(mat, whole[::-1])
    jobs, told = plan(tmp_path)
    assert jobs == {"protocol"} | again
    seen(next(line for line in told.splitlines() if "voc_2007_test.mat is" in line))
    older(mat, whole)
    section["source"] = ""
    write(tmp_path, config)
    assert plan(tmp_path)[0] == {"protocol"} | again
    section["source"] = "moved"
    write(tmp_path, config)
    for split in ("trainval", "test"):
        path = tmp_path / f"results/proposals/voc07_{split}.npz"
        settings = json.dumps(section | {"seed": 4})
        with np.load(path) as arrays:
            kept = dict(arrays) | {"settings": np.array(settings)}
        time = path.stat().st_mtime_ns
        np.savez(path, **kept)
        os.utime(path, ns=(time, time))
    for file in tmp_path.glob("results/metrics/*/detection.json"):  # of an earlier version, too
        found = json.loads(file.read_text())
        del found["provenance"]["stamps"]
        older(file, resealed(json.dumps(found)).encode(), by=0)
    assert plan(tmp_path)[0] == {"protocol"}


def test_fault_65_a_setting_put_back_makes_again_what_was_made_meanwhile(copy, seen):
    """And other bytes of a checkpoint: its evaluations."""
    for file in (copy / "results/metrics/uic_3k/fewshot.json", copy / "results/protocols/fewshot.yaml"):
        text = re.sub(r'(episodes"?): 20', r"\1: 30", file.read_text())
        file.unlink()
        file.write_text(resealed(text) if file.suffix == ".json" else text)
    checkpoint = copy / "results/runs/uic_10k/checkpoint.safetensors"
    content = checkpoint.read_bytes()
    checkpoint.unlink()
    checkpoint.write_bytes(content + b"\0")
    jobs, told = plan(copy)
    assert jobs == {"protocol", "fewshot:uic_3k", "table5", "table1", "table_knn"} | evaluations("uic_10k")
    seen(next(line for line in told.splitlines() if "episodes" in line))


def out_of_date(folder: Path, config: Config) -> dict[str, str]:
    """run/evaluation → why `partial` does not show its numbers, for a config over finished results."""
    made = validate(config, "small.yaml")
    made = made.model_copy(update={"results": str(folder / "results")})
    files = [*(folder / "results/metrics").glob("*/*.json")]
    with contextlib.chdir(folder):  # where a run from elsewhere has its file
        found = {f"{file.parent.name}/{file.stem}": outdated.of_metrics(made, file) for file in files}
    return {name: reason for name, reason in found.items() if reason}


def test_fault_33_what_is_out_of_date_by_what_was_changed(copy):
    """A setting, a recipe, a run to start from, proposals, data, a cache, a training that is newer."""
    assert out_of_date(copy, base()) == {}
    config, _ = of("a recipe under `runs`", "a section of `evaluations`", FILE_FROM_ELSEWHERE)
    found = out_of_date(copy, config)
    assert {name.split("/")[0] for name in found if "/fewshot" not in name} == {*CENTER, "supervised"}
    assert {name for name in found if "/fewshot" in name} == {"uic_3k/fewshot", "deepcluster/fewshot"}
    assert found[f"{CENTER[1]}/knn"] == f"run {CENTER[0]}: lr is 0.02 there, 0.03 now; run snakemake to train it again"
    assert found["uic_3k/fewshot"] == "fewshot: episodes is 20 there, 30 now; run snakemake to evaluate it again"
    found = out_of_date(copy, of("`evaluations.proposals`", "what a data set holds: its other keys")[0])
    assert {name.split("/")[1] for name in found} == {"detection", "fewshot"}
    assert found["uic_3k_fft/detection"].startswith("voc07_trainval: max_boxes is 50 there, 51 now")
    assert found["uic_3k/fewshot"].startswith("miniimagenet is to be listed again")
    assert out_of_date(copy, of("where a data set is: `root`, `sbd`, `source`")[0]) == {}
    config = base()
    config["datasets"]["cache"]["format"] = "jpeg"
    assert "uic_3k/knn" in out_of_date(copy, config)
    digest = "f" * 64
    described = {"commit": "", "dirty": False, "date": "", "versions": {}, "hardware": "", "processes": 1}
    described |= {"wall_seconds": 0.0, "files": {"checkpoint.safetensors": digest}}
    described_in = copy / "results/runs/uic_5k/training.json"
    described_in.unlink()
    described_in.write_text(json.dumps(described))
    found = out_of_date(copy, base())
    assert {name.split("/")[0] for name in found} == {"uic_5k"}
    assert f'"{digest[:16]}" now' in found["uic_5k/knn"]


def begun(folder: Path, config: Config, *made: str) -> None:
    """Let the recipes, data sets and protocols of a config be written, and remove what jobs make again from them."""
    checked = validate(config, "small.yaml")
    for section, file in (
        *((recipe, f"runs/{run}/recipe.yaml") for run, recipe in checked.runs.items()),
        *((checked.datasets.one(data), f"data/{data}.yaml") for data in checked.datasets.names),
        *((section, f"protocols/{name}.yaml") for name, section in checked.evaluations.present.items()),
    ):
        (folder / "results" / file).unlink()
        save(section, folder / "results" / file)
    for file in made:
        (folder / "results" / file).unlink()


@pytest.mark.parametrize("kept", [False, True])
def test_fault_33_a_run_is_out_of_date_while_one_that_it_starts_from_is_trained_again(copy, kept, seen):
    """By what the start's training has left: training.json, and perhaps a link to its checkpoint."""
    start = copy / "results/runs" / CENTER[0]
    if kept:
        link = start / ".checkpoint.finished/0" / "checkpoint.safetensors"
        link.parent.mkdir(parents=True)
        link.hardlink_to(start / link.name)
        (link.parent / trained.NAME).hardlink_to(start / trained.NAME)
    gone = [f"runs/{CENTER[0]}/{name}" for name in ("checkpoint.safetensors", "labels.npy", "history.jsonl")]
    begun(copy, base(), *gone)
    assert out_of_date(copy, base()) == {}  # removed to save room
    config, _ = of("a recipe under `runs`")
    begun(copy, config)
    found = out_of_date(copy, config)
    assert {name.split("/")[0] for name in found} == set(CENTER)
    what = "lr is 0.02 there, 0.03 now" if kept else "recipe is"
    assert found[f"{CENTER[1]}/knn"].startswith(f"run {CENTER[0]}: {what}")
    seen(found[f"{CENTER[1]}/knn"])
    if kept:  # and of other data
        stand_in.data(validate(base(), "small.yaml"), copy / "results", mark="other")
        assert found[f"{CENTER[1]}/knn"] != out_of_date(copy, base())[f"{CENTER[1]}/knn"]


def test_fault_33_a_run_is_out_of_date_while_it_is_trained_again_from_another_start(copy):
    trained_elsewhere(copy / "results/runs" / CENTER[0])
    (copy / "results/runs" / CENTER[1] / "checkpoint.safetensors").unlink()
    reason = out_of_date(copy, base())[f"{CENTER[1]}/knn"]
    assert reason.startswith(f"run {CENTER[1]}: the checkpoint of {CENTER[0]} is")


def test_fault_33_detections_are_out_of_date_while_their_proposals_are_made_again(copy, seen):
    config, _ = of("`evaluations.proposals`")
    begun(copy, config, "proposals/voc07_trainval.npz", "proposals/voc07_test.npz")
    found = out_of_date(copy, config)
    assert {name.split("/")[1] for name in found} == {"detection"}
    assert all("results/proposals/voc07_trainval.npz is not there; wait for its job" in each for each in found.values())
    seen(next(iter(found.values())))


@pytest.mark.parametrize("gone", ["data/imagenet.checked", "index/imagenet_val.npz", ""])
def test_fault_33_metrics_are_out_of_date_until_their_data_set_is_listed_again(copy, gone, seen):
    """Before its check, between that and its index, while an index is made. What reads other data is not."""
    config = base()
    config["datasets"]["folders"]["imagenet"]["val_images"] = 15
    begun(copy, config, *filter(None, [gone]))
    found = out_of_date(copy, config)
    read = {each.replace(":", "/") for each in evaluations(*base()["runs"])}
    of_imagenet = {each for each in read if re.match("(linear_probe|knn)/", each)}
    assert {"/".join(reversed(name.split("/"))) for name in found} >= of_imagenet
    assert not any("supervised/detection" in name for name in found)
    seen(found["supervised/knn"])
    shutil.rmtree(copy / "results/data")  # metrics that were copied alone are shown
    shutil.rmtree(copy / "results/index")
    assert out_of_date(copy, config) == {}


def test_fault_33_a_mean_over_seeds_is_out_of_date_when_a_seed_was_evaluated_again(copy):
    config = base()
    config["seeds"] = {"uic_5k": [1]}
    folders = [copy / "results/metrics" / run for run in ("uic_5k", "uic_5k_seed1")]
    own, other = (folder / "knn.json" for folder in folders)
    folders[1].mkdir()
    text = own.read_text().replace('"run": "uic_5k"', '"run": "uic_5k_seed1"')
    made = validate(config, "small.yaml").runs["uic_5k_seed1"].hash()
    other.write_text(resealed(re.sub(r'(recipe_hash": )"\w+"', rf'\1"{made}"', text)))
    seeds_stage.main(["--metrics", str(own), str(other), "--out", str(folders[0] / "knn.seeds.json")])
    assert out_of_date(copy, config) == {}
    other.write_text(resealed(other.read_text().replace("50.0", "60.0")))
    ((name, reason),) = out_of_date(copy, config).items()
    assert name == "uic_5k/knn.seeds"
    assert reason.startswith("knn.seeds: the mean.")


def test_fault_33_partial_leaves_out_what_another_setting_made(copy, seen):
    config = base()
    config["evaluations"]["detection"]["lr"] = 0.5
    config["runs"]["uic_10k"]["lr"] = 0.03
    write(copy, config)
    process = forked.snakemake("partial", *options(copy))
    made = copy / "results/tables/partial"
    assert process.returncode == 0, process.stderr[-3000:]
    assert "Partial" not in (made / "table5.md").read_text()
    numbers = {"table1": 4, "table4": sum(each.startswith("detection") for each in evaluations(*base()["runs"]))}
    for name, reason in {
        "table1": "uic_10k/",
        "table4": "/detection.json: detection: lr is 0.001 there, 0.5 now",
    }.items():
        text = (made / f"{name}.md").read_text()
        seen(next(line for line in text.splitlines() if reason in line))
        assert f"**Partial.** {numbers[name]} of our numbers are missing (–):" in text
    assert (
        "knn.json: run uic_10k: lr is 0.02 there, 0.03 now; run snakemake to train it" in (made / "knn.md").read_text()
    )
    page = (made / "index.html").read_text()
    for shown in ("results/tables/speed.md: run uic_10k: lr", "results/figures/curves.png: run uic_10k: lr"):
        assert shown in page


@pytest.mark.parametrize("records", [True, False])
def test_other_tables_numbers_or_scale_make_what_shows_them_again(copy, records):
    """However old the files are, with Snakemake's records and without."""
    if not records:
        shutil.rmtree(copy / ".snakemake")
    assert plan(copy)[0] == set()
    changes = {
        "tables": ("config/tables.yaml", "title: Few-shot", "title: Our few-shot", TABLES | PAGES),
        "published": ("config/published.csv", "UIC 3k,conv3,41.2", "UIC 3k,conv3,41.3", TABLES),
    }
    for key, (source, old, new, jobs) in changes.items():
        text, file = (ROOT / source).read_text(), copy / Path(source).name
        assert text.count(old) >= 1
        file.write_text(text.replace(old, new))
        os.utime(file, (0, 0))
        write(copy, base() | {key: str(file)})
        assert plan(copy)[0] == jobs
    write(copy, base() | {"scale": "study"})
    assert plan(copy)[0] == TABLES | PAGES | OF_ALL_RUNS | {"fig3", "fig4"}


def test_an_optional_run_with_an_architecture_of_its_own_comes_and_goes_alone(copy):
    """As config/peers.yaml over config/paper.yaml: what other runs have is kept, their tables are made again."""
    config = base()
    del config["runs"]["rotnet"]
    for section, keys in {"linear_probe": ("layers", "crop", "images", "val_images"), "fewshot": ("layers",)}.items():
        for key in keys:
            del config["evaluations"][section][key]["alexnet_rotnet"]
    write(copy, config)
    shutil.rmtree(copy / ".snakemake")
    of_all_runs = {"table_knn", "table_speed", "fig_curves"}
    assert plan(copy)[0] == {"protocol", "table3", "table4"} | of_all_runs | PAGES


def test_a_cache_is_made_and_all_that_trains_on_it(copy):
    config = base()
    config["datasets"]["cache"]["format"] = "jpeg"
    write(copy, config)
    trained = {
        f"pretrain:{run}" for run, each in config["runs"].items() if each["method"] not in ("finetune", "external")
    }
    jobs, _ = plan(copy)
    assert trained | {"cache", "finetune:uic_3k_fft", "linear_probe:supervised"} <= jobs
    assert not jobs & {"dataset", "check", "index", "external:supervised"}


def test_a_cache_in_another_folder_is_made_there_and_nothing_that_reads_it(tmp_path):
    """It holds the same pixels. Another format makes all that trains on it again."""
    config = base()
    config["datasets"]["cache"] |= {"format": "jpeg", "root": str(tmp_path / "cache")}
    write(tmp_path, config)
    (tmp_path / "their.pth").touch()
    stand_in.make(validate(config, "small.yaml"), tmp_path)
    assert forked.snakemake("--touch", "--forceall", *options(tmp_path)).returncode == 0
    assert plan(tmp_path)[0] == set()
    for records in (True, False):
        if not records:
            shutil.rmtree(tmp_path / ".snakemake")
        moved = base()
        moved["datasets"]["cache"] |= {"format": "jpeg", "root": str(tmp_path / "elsewhere")}
        write(tmp_path, moved)
        jobs, told = plan(tmp_path)
        assert jobs == {"cache"}
        assert "datasets.cache.root is" in told
        moved["datasets"]["cache"] |= {"format": "device", "root": str(tmp_path / "cache")}
        write(tmp_path, moved)
        jobs, _ = plan(tmp_path)
        assert {"cache", "pretrain:uic_3k", "finetune:uic_3k_fft", "linear_probe:supervised"} <= jobs


def test_a_peers_probe_is_made_by_the_rule_of_the_papers_if_the_config_has_its_section(copy):
    target = "results/metrics/uic_3k/linear_probe_rotnet.json"
    jobs, told = plan(copy, target)
    assert not jobs
    assert f"error: {target}: the config has no evaluations.linear_probe_rotnet; add the section" in told
    config = base()
    section = dict(config["evaluations"]["linear_probe"])
    section |= {key: {"alexnet": section[key]["alexnet"]} for key in ("layers", "crop", "images", "val_images")}
    section |= {"lr_factor": 5.0, "nesterov": True, "start": "he", "test": "center_crop"}
    config["evaluations"]["linear_probe_rotnet"] = section
    write(copy, config)
    assert plan(copy)[0] == set()  # no table takes a cell from it
    jobs, told = plan(copy, target)
    assert jobs == {"protocol", "linear_probe:uic_3k"}
    refused = plan(copy, "results/metrics/uic_vgg16_strong/linear_probe_rotnet.json")[1]
    assert "run uic_vgg16_strong is vgg16, and this probe is of alexnet; name another run" in refused


def test_a_config_without_nearest_neighbours_has_none_of_their_jobs(copy):
    config = base()
    config["evaluations"]["knn"] = None  # as left out: a config of several files cannot remove a section otherwise
    write(copy, config)
    (copy / "results/tables/knn.md").unlink()
    assert plan(copy)[0] == set()
    assert "the config has no evaluations.knn" in plan(copy, "results/metrics/uic_3k/knn.json")[1]
