"""Killed, interrupted, started twice: real Snakemakes and real stages."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from bench.small_dag import small_config
from tests.workflow import stand_in
from uic_core.config import validate
from uic_core.data import index
from uic_core.run import finished

ROOT = Path(__file__).parents[2]
RUN = "results/runs/uic_10k/checkpoint.safetensors"


@pytest.fixture
def place(tmp_path: Path, demo_data: SimpleNamespace) -> SimpleNamespace:
    """Finished results (tests/workflow/stand_in.py), in which the run uic_10k is still to be trained on real images."""
    config = small_config()
    config["datasets"]["miniimagenet"] |= {"root": str(demo_data.miniimagenet), "train_classes": 1}
    config["runs"]["uic_10k"] |= {"epochs": 5, "classes": 4, "images": 8, "batch_size": 4}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(config))
    stand_in.make(validate(config, "small.yaml"), tmp_path)
    index.build_folder(demo_data.imagenet, "train", "imagenet").save(tmp_path / "results/index/imagenet_train.npz")
    for file in (tmp_path / "results/runs/uic_10k").iterdir():
        file.unlink()
    return SimpleNamespace(
        folder=tmp_path, miniimagenet=demo_data.miniimagenet, log=tmp_path / "results/logs/uic_10k/pretrain.log"
    )


def start(place: SimpleNamespace, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    """Start Snakemake there."""
    return subprocess.Popen(
        [
            sys.executable, "-m", "snakemake", *arguments, "--snakefile", str(ROOT / "Snakefile"), "--profile",
            str(ROOT / "profiles/demo"), "--directory", str(place.folder), "--configfile",
            str(place.folder / "small.yaml"),
        ],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=os.environ | {"CI": "true"} | variables,
    )  # fmt: skip


def wait(until: Callable[[], object]) -> None:
    """Wait, but not for ever."""
    deadline = time.monotonic() + 200
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def owner(place: SimpleNamespace) -> int:
    """The process that trains."""
    claim = (place.folder / "results/runs/uic_10k/owner").read_text()
    return int(re.search(r"process (\d+)", claim)[1])


def ended(pid: int) -> bool:
    """True if a process is gone, or ended and waits for nobody's answer."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def stand(place: SimpleNamespace, snakemake: str) -> subprocess.Popen[bytes]:
    """Start what looks like the stage of another Snakemake (host:process:start) in this folder."""
    mark = {"UIC_WORKS_FOR": f"{snakemake}:{place.folder}/results"}
    code = "import time; time.sleep(100)"
    return subprocess.Popen([sys.executable, "-c", code, "uic_core.evaluate.fewshot"], env=os.environ | mark)


def test_fault_37_what_a_killed_snakemake_left_is_ended_and_gone_on_from(place, seen):
    """FAULTS rows 37 and 61: a second Snakemake is refused; the first is killed; the third ends its training."""
    first = start(place, RUN)
    wait(lambda: place.log.exists() and "epoch 2/" in place.log.read_text())
    stage = owner(place)
    os.kill(stage, signal.SIGSTOP)  # a training of days
    second = start(place, RUN)
    told = second.communicate()[0]
    assert second.returncode != 0
    assert f"results: process {first.pid} on {os.uname().nodename}, started in {place.folder}, since " in told
    assert "works in it; wait for its end, or stop it, or name another folder" in told
    assert "can be removed with the --unlock" not in told
    first.kill()
    first.wait()
    assert not ended(stage)
    own = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    dead, alive = (stand(place, f"{os.uname().nodename}:{os.getpid()}:{began}") for began in (1, own))
    assert start(place, "--unlock").wait() == 0
    third, told = start(place, RUN), ""
    while "ending process" not in told:
        told += third.stdout.readline()
    os.kill(stage, signal.SIGCONT)
    told += third.communicate()[0]
    assert third.returncode == 0, told
    assert f"ending process {stage}, which a killed one left; it saves first: python -m uic_core.pretrain" in told
    assert ended(stage)
    assert "going on from epoch" in place.log.read_text()
    assert (place.folder / RUN).exists()
    assert dead.wait(10) == -signal.SIGTERM  # an evaluation of the same or another Snakemake that is gone
    assert alive.poll() is None
    alive.kill()
    alive.wait()
    seen(next(line for line in told.splitlines() if line.startswith("ending process")))


def test_fault_37_a_finished_training_that_snakemake_removed_is_put_back(place, seen):
    """It removes the files of a job killed after its stage has ended. If forced, it makes a whole result again."""

    def trained(*arguments: str) -> str:
        place.log.unlink(missing_ok=True)
        process = start(place, RUN, *arguments)
        told = process.communicate()[0]
        assert process.returncode == 0, told
        return place.log.read_text()

    trained()
    before = (place.folder / RUN).read_bytes()
    (place.folder / RUN).unlink()
    said = trained()
    assert "an earlier process finished this, and it was removed since: it is put back" in said
    assert "epoch" not in said
    assert (place.folder / RUN).read_bytes() == before
    seen(said.splitlines()[-1])
    assert "epoch 5/5" in trained("--forcerun", "pretrain")
    assert (place.folder / RUN).read_bytes() == before


def test_a_file_system_without_locks_forgets_what_is_forced_and_mends_times(place, seen):
    """Nothing is looked for in SLURM's queue: those jobs may be another Snakemake's."""
    (place.folder / "sitecustomize.py").write_text(
        "import errno, fcntl\ndef refuse(*_):\n    raise OSError(errno.ENOLCK, 'No locks available')\n"
        "fcntl.flock = refuse\n"
    )
    path = f"{place.folder}:{os.environ.get('PYTHONPATH', '')}"
    first = start(place, RUN)
    told = first.communicate()[0]
    assert first.returncode == 0, told
    ahead = time.time() + 10_000
    os.utime(place.folder / "results/index/imagenet_train.npz", (ahead, ahead))
    forced = start(place, RUN, "--forcerun", "pretrain", PYTHONPATH=path)
    told = forced.communicate()[0]
    assert forced.returncode == 0, told
    assert "results: its file system has no locks. See to it that no other Snakemake works in it" in told
    assert "1 files had times in the future, results/index/imagenet_train.npz among them" in told
    said = place.log.read_text()
    assert "it is put back" not in said
    assert "epoch 5/5" in said
    seen(next(line for line in told.splitlines() if "no locks" in line))


def test_other_images_that_a_start_lists_itself_end_it_with_an_error_and_the_next_mends_it(place, seen):
    """Its plan was made from the earlier list, and agreed with it."""
    config, target = place.folder / "small.yaml", "results/metrics/uic_3k/fewshot.json"
    settings = yaml.safe_load(config.read_text())
    stand_in.data(validate(settings, "small.yaml"), place.folder / "results")
    settings["datasets"]["miniimagenet"]["root"] = "moved"
    (place.folder / "moved").symlink_to(place.miniimagenet)
    config.write_text(yaml.safe_dump(settings))
    first = start(place, target)
    told = first.communicate()[0]
    line = next(line for line in told.splitlines() if "made from other data" in line)
    seen(line)
    assert "1 results were made from other data than their data sets hold now, " in line
    assert f"{target} among them; start snakemake again, and they are made again" in told
    assert first.returncode == 1
    second = start(place, target, "-n")
    assert "rule fewshot" in second.communicate()[0]


def test_fault_65_a_recipe_put_back_finds_its_finished_training(place, seen):
    """And what is kept of the evaluations stays, which would run again behind another training."""
    config, probe = place.folder / "small.yaml", place.folder / "results/metrics/uic_10k/linear_probe.json"
    settings = config.read_text()
    first = start(place, RUN)
    told = first.communicate()[0]
    assert first.returncode == 0, told
    before = (place.folder / RUN).read_bytes()
    finished.folder(probe).mkdir()
    other = yaml.safe_load(settings)
    other["runs"]["uic_10k"]["epochs"] = 5000
    config.write_text(yaml.safe_dump(other))
    second = start(place, RUN, str(probe.relative_to(place.folder)))
    wait(lambda: place.log.exists() and "epoch 1/5000" in place.log.read_text())
    os.kill(owner(place), signal.SIGTERM)  # as Snakemake's end does
    told = second.communicate()[0]
    assert "epochs is 5 there, 5000 now; it is made again where it is needed" in told
    assert not (place.folder / RUN).exists()
    assert finished.folder(probe).exists()
    config.write_text(settings)
    third = start(place, RUN)
    told = third.communicate()[0]
    assert third.returncode == 0, told
    said = place.log.read_text()
    seen(said)
    assert "an earlier process finished this, and it was removed since: it is put back" in said
    assert "epoch" not in said
    assert (place.folder / RUN).read_bytes() == before


def test_fault_39_files_of_the_future_are_said_to_be_and_what_is_made_from_them_is_kept(place, seen):
    ahead = time.time() + 10_000
    for file in (place.folder / "results").rglob("*.*"):
        os.utime(file, (ahead, ahead))
    target = "results/data/miniimagenet.checked"
    (place.folder / target).unlink()
    process = start(place, target)
    told = process.communicate()[0]
    assert process.returncode == 0, told
    assert (
        "files had times in the future, results/data/miniimagenet.generated among them: they come from another" in told
    )
    assert "5 classes" in (place.folder / target).read_text()
    seen(next(line for line in told.splitlines() if "in the future" in line))
