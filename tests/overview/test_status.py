"""Status and data check tell what is there, and what is not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from bench.small_dag import small_config
from tests.workflow import stand_in
from uic_core.config import Config, validate
from uic_core.overview import datasets, status
from uic_core.strict_yaml import read_yaml

CONFIG = Path(__file__).parents[2] / "config"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    content = read_yaml(CONFIG / "demo.yaml") | {"results": str(tmp_path / "results")}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    return validate(content, "config.yaml")


def state(folder: Path, epoch: int) -> Path:
    """A state as safetensors writes it: eight bytes of length, then the head."""
    folder.mkdir(parents=True, exist_ok=True)
    head = json.dumps({"__metadata__": {"state": json.dumps({"position": {"epoch": epoch}})}}).encode()
    path = folder / f"state.{epoch}.safetensors"
    path.write_bytes(len(head).to_bytes(8, "little") + head + b"tensors")
    return path


def shown(config: Config, run: str) -> status.RunStatus:
    (found,) = [each for each in status.runs(config) if each.name == run]
    return found


def test_a_run_goes_from_nothing_to_trained_and_evaluated(config: Config) -> None:
    folder = Path(config.results) / "runs" / "uic_3k"
    total = config.runs["uic_3k"].epochs
    assert shown(config, "uic_3k") == status.RunStatus(
        "uic_3k", False, 0, total, (), ("linear_probe", "clusters", "fewshot", "knn")
    )
    state(folder, 7)
    state(folder, 9)
    assert shown(config, "uic_3k").epochs == 9
    (folder / "checkpoint.safetensors").touch()
    (Path(config.results) / "metrics" / "uic_3k").mkdir(parents=True)
    (Path(config.results) / "metrics" / "uic_3k" / "clusters.json").touch()
    found = shown(config, "uic_3k")
    assert (found.trained, found.epochs) == (True, total)
    assert (found.present, found.missing) == (("clusters",), ("linear_probe", "fewshot", "knn"))


@pytest.mark.parametrize("content", [b"", b"1234", b"\xff" * 8, b"\x05\0\0\0\0\0\0\0{nope", b"\x02\0\0\0\0\0\0\0{}"])
def test_a_state_that_is_being_written_is_passed_over(config: Config, content: bytes) -> None:
    folder = Path(config.results) / "runs" / "uic_3k"
    state(folder, 4)
    (folder / "state.9.safetensors").write_bytes(content)
    assert shown(config, "uic_3k").epochs == 4


def test_runs_that_no_table_of_the_paper_shows_are_there(config: Config) -> None:
    assert shown(config, "uic_3k_center_crop").missing == ("knn",)  # which every run has


def test_what_another_config_made_is_out_of_date_and_its_runs_have_no_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = small_config()
    stand_in.make(validate(content, "small.yaml"), tmp_path)
    monkeypatch.chdir(tmp_path)
    content["runs"]["uic_3k_center_crop"]["epochs"] += 1
    content["evaluations"]["fewshot"]["episodes"] += 1
    del content["runs"]["rotnet"]
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(content))
    for run in ("rotnet", "uic_5k"):
        log = tmp_path / "results/logs" / run / "linear_probe_rotnet.log"
        log.parent.mkdir(parents=True)
        log.write_text("error: no such image; get it\n")
    status.main(["--config", str(tmp_path / "small.yaml")])
    told = capsys.readouterr().out
    lines = {line.split()[0]: line.split("  ", 1)[1].split() for line in told.splitlines() if "  " in line}
    assert lines["uic_3k_center_crop"] == ["out", "of", "date", "0/1", "knn"]
    assert lines["uic_3k_center_crop_fft"] == ["out", "of", "date", "0/2", "linear_probe,", "knn"]
    assert lines["uic_3k"] == ["trained", "3/4", "fewshot"]
    assert [line for line in told.splitlines() if line.startswith("failed: ")] == [
        "failed: results/logs/uic_5k/linear_probe_rotnet.log"
    ]
    assert "out of date: run uic_3k_center_crop: epochs is 1 there, 2 now; run snakemake to train it again" in told
    runs = len(content["runs"])
    assert f"{runs - 2} of {runs} runs trained, " in told


def test_the_papers_status_on_the_demos_results_names_the_way_out(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`make status` after `make demo`: nothing is out of date, the config is another one."""
    stand_in.make(validate(small_config(), "small.yaml"), tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        status.main(["--config", str(Path(__file__).parents[2] / "config/paper.yaml")])
    assert stop.value.code == 2
    told = "results holds results of generated data sets; name the config that they are of, as CONFIG=config/demo.yaml"
    assert capsys.readouterr().err == f"error: {told}\n"


def test_failures_are_told_until_the_job_is_done(config: Config) -> None:
    log = Path(config.results) / "logs" / "uic_3k" / "linear_probe.log"
    log.parent.mkdir(parents=True)
    log.write_text("one\ntwo\nthree\nerror: no such image; get it\n")
    (log.parent / "pretrain.log").write_text("epoch 1/9\n")  # runs
    assert list(status.failures(config)) == [(log, ["two", "three", "error: no such image; get it"])]
    made = Path(config.results) / "metrics" / "uic_3k" / "linear_probe.json"
    made.parent.mkdir(parents=True)
    made.touch()
    assert list(status.failures(config)) == []


@pytest.mark.parametrize(
    "word",
    [
        "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks have been OOM Killed.",
        "slurmstepd: error: *** STEP 7.0 ON vm CANCELLED AT 2026-11-26T10:00:00 DUE TO TIME LIMIT ***",
    ],
)
def test_a_job_that_slurm_killed_has_failed(config: Config, tmp_path: Path, monkeypatch, word: str) -> None:
    monkeypatch.chdir(tmp_path)
    log = Path(config.results) / "logs" / "uic_3k" / "fewshot.log"
    log.parent.mkdir(parents=True)
    log.write_text("episode 1\n")
    slurm = tmp_path / ".snakemake/slurm_logs/rule_fewshot/uic_3k"
    slurm.mkdir(parents=True)
    (slurm / "6.log").write_text("rule fewshot:\n    log: results/logs/uic_3k/fewshot.log\n")
    assert list(status.failures(config)) == []
    (slurm / "7.log").write_text(f"rule fewshot:\n    log: results/logs/uic_3k/fewshot.log\n{word}\n")
    assert list(status.failures(config)) == [(log, ["episode 1", word])]
    assert list(status.failures(config, ["7"])) == []  # in the queue again
    made = Path(config.results) / "metrics" / "uic_3k" / "fewshot.json"
    made.parent.mkdir(parents=True)
    made.touch()
    assert list(status.failures(config)) == []


def test_a_queue_that_does_not_answer_is_said(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "squeue").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert status.jobs() is None


def test_the_command_prints_all_of_it_and_the_queue(config: Config, tmp_path: Path) -> None:
    """squeue is a stand-in; tests/slurm has a real one."""
    state(Path(config.results) / "runs" / "uic_3k", 7)
    (tmp_path / "squeue").write_text(
        f"#!/bin/sh\necho '12|RUNNING|1:02|rule_pretrain_wildcards_uic_3k|None|{CONFIG.parent}'\n"
        f"echo '13|PENDING|0:00|other|None|{CONFIG.parent}'\n"
        "echo '14|RUNNING|0:00|rule_index|None|/another/clone'\n"
        f"echo '15|PENDING|0:00|rule_check|PartitionTimeLimit|{CONFIG.parent}'\n"
    )
    (tmp_path / "squeue").chmod(0o755)
    before = sorted(Path(config.results).rglob("*"))
    process = subprocess.run(
        [
            sys.executable, "-m", "uic_core.overview.status", "--config", str(tmp_path / "config.yaml"),
        ],
        cwd=CONFIG.parent, capture_output=True, text=True, check=True,
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert "7/" in process.stdout
    assert re.search("^12 +RUNNING +1:02 +rule_pretrain_wildcards_uic_3k$", process.stdout, re.MULTILINE)
    assert re.search("^15 +PENDING: PartitionTimeLimit +0:00 +rule_check$", process.stdout, re.MULTILINE)
    assert "other" not in process.stdout
    assert "rule_index" not in process.stdout
    assert process.stdout.rstrip().endswith("65 evaluations made, 2 jobs in the queue, 0 failed")
    assert sorted(Path(config.results).rglob("*")) == before


def test_it_imports_no_torch() -> None:
    code = "import sys, uic_core.overview.status, uic_core.overview.datasets; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=CONFIG.parent)
    assert done.stdout.strip() == "False"


def test_every_data_set_is_checked_though_the_first_is_missing(
    config: Config, demo_data: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = config.model_dump(mode="json") | {"seeds": {}}
    content["datasets"] = demo_data.datasets.model_dump() | {"generated": False}
    content["datasets"]["folders"]["imagenet"]["root"] = str(tmp_path / "nowhere")
    content["evaluations"]["fewshot"]["ways"] = 5
    for recipe in content["runs"].values():
        recipe |= {"classes": 4, **({"images": 0} if "images" in recipe else {})}
    for name in ("linear_probe", "knn"):
        section = content["evaluations"][name]
        section |= {key: dict.fromkeys(section[key], 0) for key in ("images", "val_images")}
    content["evaluations"]["knn"]["neighbours"] = [10]
    content["evaluations"]["fewshot"] |= {"shots": 5, "queries": 15}
    path = tmp_path / "real.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(SystemExit) as caught:
        datasets.main(["--config", str(path), "--threads", "1"])
    assert caught.value.code == 2
    told = capsys.readouterr().out
    assert "imagenet: MISSING" in told
    assert "datasets.folders.imagenet.root" in told
    assert "get ILSVRC-2012" in told
    for name in ("voc07", "voc_segmentation", "miniimagenet"):
        assert f"{name}: ok" in told
