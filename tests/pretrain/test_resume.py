"""A run that ends early goes on as if nothing was: real processes, killed and told to end, one and two of them.

Most are forks (tests/forked.py). What an undisturbed one leaves is made by a process that was started afresh, two by
torchrun; and torchrun starts those whose end it decides.
"""

import contextlib
import glob
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests import forked
from tests.recipes import recipe
from uic_core import checkpoint
from uic_core.data.index import build_folder
from uic_core.errors import INTERRUPTED
from uic_core.recipe import save
from uic_core.run import signals

ROOT = Path(__file__).parents[2]
OUTPUTS = ("checkpoint.safetensors", "labels.npy", "history.jsonl")
SETTINGS = {"epochs": 4, "batch_size": 8}


class Run:
    """A run in a folder of its own, as processes."""

    def __init__(self, folder: Path, index: Path, ranks: int = 1, **changes: object) -> None:
        self.folder, self.index, self.ranks = folder, index, ranks
        self.recipe = recipe(**SETTINGS | changes)
        save(self.recipe, folder / "recipe.yaml")

    def arguments(self) -> list[str]:
        paths = {"recipe": self.folder / "recipe.yaml", "train-index": self.index, "out": self.folder}
        return [text for name, path in paths.items() for text in (f"--{name}", str(path))]

    def start(self, *arguments: str, afresh: bool = False) -> subprocess.Popen[str] | forked.Process:
        stage = ["uic_core.pretrain", *self.arguments(), *arguments]
        if not afresh:
            return forked.Process(*stage, ranks=self.ranks, OMP_NUM_THREADS="1")
        command = [sys.executable, "-m"]
        if self.ranks > 1:
            command += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(self.ranks), "-m"]
        return subprocess.Popen(
            [*command, *stage],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def launch(self, *arguments: str) -> subprocess.Popen[str]:
        """Start it as a rule's job does, without SLURM."""
        shell = 'set -euo pipefail; source workflow/launch.sh; launch "$@"'
        stage = ["uic_core.pretrain", *self.arguments(), *arguments]
        return subprocess.Popen(
            ["bash", "-c", shell, "_", "1", str(self.ranks), "", *stage],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        )  # fmt: skip

    def finish(self, *arguments: str, afresh: bool = False) -> str:
        """Run to the end; what it printed."""
        process = self.start(*arguments, afresh=afresh)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, out + err
        return out

    def states(self) -> list[Path]:
        return [path for path in self.folder.glob("state.*.safetensors") if ".previous." not in path.name]

    def until_state(self, process: subprocess.Popen[str] | forked.Process, step: int = 0) -> None:
        """Wait for a state, and for `step` further ones."""
        seen: set[int] = set()
        while len(seen) <= step:
            assert process.poll() is None, process.communicate()
            with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
                seen |= {path.stat().st_mtime_ns for path in self.states()}
            time.sleep(0.005)

    def outputs(self) -> list[bytes]:
        assert not list(self.folder.glob("*state*"))
        assert not (self.folder / "interrupted").exists()
        return [(self.folder / name).read_bytes() for name in OUTPUTS]


@pytest.fixture(scope="session")
def index(demo_data, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("index") / "index.npz"
    build_folder(demo_data.imagenet, "train", "imagenet").save(path)
    return path


@pytest.fixture(scope="session")
def undisturbed_run(index, tmp_path_factory):
    """An undisturbed run that has ended; each kind is run once."""
    known: dict[str, Run] = {}

    def run(ranks: int = 1, **changes: object) -> Run:
        key = f"{ranks} {changes}"
        if key not in known:
            known[key] = Run(tmp_path_factory.mktemp("undisturbed"), index, ranks, **changes)
            known[key].finish(afresh=True)
        return known[key]

    return run


@pytest.fixture(scope="session")
def undisturbed(undisturbed_run):
    """What it leaves."""
    return lambda ranks=1, **changes: undisturbed_run(ranks, **changes).outputs()


@pytest.mark.parametrize(
    ("ranks", "changes"),
    [
        (1, {}),
        (1, {"augmentation": "strong", "epochs": 3}),
        (1, {"label_view": "center_crop"}),
        (1, {"method": "deepcluster", "schedule": "constant"}),
        (1, {"method": "selflabel", "heads": 2}),
        (2, {}),
        (2, {"method": "deepcluster", "schedule": "constant"}),
    ],
    ids=lambda value: "-".join(map(str, value.values())) or "uic" if isinstance(value, dict) else f"{value} processes",
)
def test_killed_at_a_random_step_it_ends_with_the_bytes_of_an_undisturbed_run(
    tmp_path, index, undisturbed, ranks, changes
):
    broken = Run(tmp_path, index, ranks, **changes)
    threads = ["--threads", "3"] if "augmentation" in changes else []  # two processes that decode, killed as well
    process = broken.start("--save-every", "0.1", *threads)
    broken.until_state(process, random.randrange(3))
    time.sleep(random.uniform(0, 0.2))  # in a step, or while a state is written
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert "going on from epoch " in broken.finish()
    assert broken.outputs() == undisturbed(ranks, **changes)


@pytest.mark.parametrize(
    ("number", "ranks", "threads"), [(signal.SIGTERM, 1, 1), (signal.SIGUSR1, 1, 3), (signal.SIGTERM, 2, 1)]
)
def test_told_to_end_it_saves_and_says_so(tmp_path, index, undisturbed, number, ranks, threads):
    """Three threads: processes that decode get the signal too, and must neither die of it nor save."""
    told = Run(tmp_path, index, ranks)
    process = told.start("--save-every", "0.1", "--threads", str(threads), afresh=ranks > 1)
    told.until_state(process)
    os.killpg(process.pid, number)  # SLURM signals every process of a job
    out, err = process.communicate(timeout=60)
    if ranks == 1:
        assert process.returncode == INTERRUPTED, out + err
        assert f"interrupted: {number.name}, saved before epoch " in err
    else:
        assert process.returncode != 0  # torchrun's own
    marker = (told.folder / "interrupted").read_text()
    assert "saved before epoch " in marker
    assert "run the same command again" in marker
    assert not (told.folder / "checkpoint.safetensors").exists()
    assert "going on from epoch " in told.finish()
    assert told.outputs() == undisturbed(ranks)


@pytest.mark.parametrize(("ranks", "threads"), [(1, 3), (2, 1)])
def test_fault_38_ctrl_c_saves_and_ends_in_one_line(tmp_path, index, undisturbed, seen, ranks, threads):
    """A terminal sends it to every process: shells, torchrun, and processes that decode."""
    told = Run(tmp_path, index, ranks)
    process = told.launch("--save-every", "0.1", "--threads", str(threads))
    told.until_state(process)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)
    seen(err)
    assert process.returncode == (INTERRUPTED if ranks == 1 else 128 + signal.SIGINT), out + err
    assert err.startswith("interrupted: SIGINT, saved before epoch ")
    assert err.count("\n") == 1
    assert "Traceback" not in out
    assert told.states()
    if ranks == 1:  # of two processes, SIGTERM leaves the same state: above
        assert "going on from epoch " in told.finish()
        assert told.outputs() == undisturbed(ranks)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory, index) -> Run:
    """A run with two states."""
    run = Run(tmp_path_factory.mktemp("interrupted"), index)
    process = run.start("--save-every", "0")
    run.until_state(process, 2)
    os.killpg(process.pid, signal.SIGTERM)
    process.communicate()
    assert len(list(run.folder.glob("state.*"))) == 2
    return run


@pytest.fixture
def copied(interrupted, tmp_path) -> Run:
    shutil.copytree(interrupted.folder, tmp_path, dirs_exist_ok=True)
    return Run(tmp_path, interrupted.index)


def test_a_truncated_state_falls_back_to_the_previous_and_says_so(copied, undisturbed):
    """And what a killed process was writing is ignored and cleaned."""
    (state,) = copied.states()
    content = state.read_bytes()
    state.write_bytes(content[: random.randrange(len(content))])
    leftovers = [copied.folder / name for name in (".state.x.new.1.partial.safetensors", ".tmpr2TK69")]
    for leftover in leftovers:
        leftover.write_bytes(b"half")
    said = copied.finish()
    assert f"{state}: is no whole state (" in said
    assert "the previous state is used" in said
    assert copied.outputs() == undisturbed()
    assert not any(leftover.exists() for leftover in leftovers)


def refused(run: Run) -> str:
    process = run.start()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2, out + err
    assert not (run.folder / "checkpoint.safetensors").exists()
    assert "Traceback" not in err
    return err


def test_no_usable_state_is_named_and_nothing_is_started_over(copied):
    for state in copied.folder.glob("state.*"):
        state.write_bytes(state.read_bytes()[:100])
    err = refused(copied)
    assert err.count("is no whole state (") == 2
    assert f"remove {copied.folder}/state.{copied.recipe.hash()}.* to start this run afresh" in err


def test_a_state_of_another_recipe_is_refused_with_both_hashes(copied):
    """Hours of work under settings that were changed by mistake are not started over unseen."""
    other = copied.recipe.model_copy(update={"lr": 0.02})
    save(other, copied.folder / "recipe.yaml")
    err = refused(copied)
    assert f"hash: {copied.recipe.hash()} there, {other.hash()} here" in err
    assert "recipe.lr: 0.01 there, 0.02 here" in err
    pattern = re.search(r"or remove (\S+) to start afresh", err)[1]
    assert len(list(copied.folder.glob("state.*"))) == 2
    for state in glob.glob(pattern):
        os.unlink(state)
    assert "going on from" not in copied.finish()


def test_a_state_of_other_images_is_refused(copied, demo_data, tmp_path):
    found = build_folder(demo_data.imagenet, "val", "imagenet")
    found.save(tmp_path / "other.npz")
    copied.index = tmp_path / "other.npz"
    assert "data: " in refused(copied)


def test_another_number_of_processes_may_go_on(copied):
    """The state knows no ranks; batches are the same, batch norm's statistics are each process's own."""
    copied.ranks = 2
    assert "with 2 processes where there were 1" in copied.finish()
    checkpoint.load(copied.folder / "checkpoint.safetensors")


def test_processes_that_find_different_states_are_refused(copied, tmp_path_factory):
    """As on two nodes whose --out is not one folder: each would go on from a step of its own."""
    (copied.folder / "script.py").write_text(
        "import os, sys\nfrom uic_core.pretrain.__main__ import main\n"
        "main([*sys.argv[1:], '--out', os.environ['OUT'] + os.environ['RANK']])\n"
    )
    outs = tmp_path_factory.mktemp("nodes")
    for rank in "01":
        shutil.copytree(copied.folder, outs / rank)
    (state,) = Run(outs / "1", copied.index).states()
    state.write_bytes(b"")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(copied.folder / "script.py"), "--recipe", str(copied.folder / "recipe.yaml")]
    process = subprocess.run(
        [*command, "--train-index", str(copied.index)],
        cwd=ROOT, env=os.environ | {"OUT": f"{outs}/", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert process.returncode != 0
    assert "and another process something else; it must be one folder for all nodes of the job" in process.stderr
    assert not any((outs / rank / "checkpoint.safetensors").exists() for rank in "01")


def test_a_full_disk_is_named_and_saved_states_stay(copied, tmp_path_factory):
    """On a real file system with room for half a state more, mounted for this process alone."""
    kept = {path.name: path.read_bytes() for path in copied.folder.glob("state.*")}
    room = sum(path.stat().st_size for path in copied.folder.iterdir()) + len(next(iter(kept.values()))) // 2
    small, after = (tmp_path_factory.mktemp("disk") / name for name in ("small", "after"))
    small.mkdir()
    script = (
        f"mount -t tmpfs -o size={room} none {small} && cp -a {copied.folder}/. {small} || exit 99\n"
        f'"$@"; status=$?; cp -a {small} {after}; exit $status'
    )
    command = [sys.executable, "-m", "uic_core.pretrain", "--recipe", str(small / "recipe.yaml")]
    command += ["--train-index", str(copied.index), "--out", str(small), "--save-every", "0"]
    process = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "bash", "-c", script, "bash", *command],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "unshare" in process.stderr or "mount" in process.stderr:
        pytest.skip(f"no file system can be mounted here: {process.stderr.strip()}")
    assert process.returncode == 2, process.stderr
    assert "the disk is full; free some space" in process.stderr
    assert {path.name: path.read_bytes() for path in after.glob("*state*")} == kept


def test_a_rank_that_dies_ends_the_job(tmp_path, index):
    run = Run(tmp_path, index, 2, epochs=200)
    process = run.start("--save-every", "0", afresh=True)
    run.until_state(process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 2
    os.kill(int(children[-1]), signal.SIGKILL)
    started = time.monotonic()
    process.communicate(timeout=90)
    assert process.returncode != 0
    assert time.monotonic() - started < 60
    assert not (run.folder / "checkpoint.safetensors").exists()


def test_batches_do_not_divide_over_any_number_of_processes(tmp_path, index):
    run = Run(tmp_path, index, 2, batch_size=9)
    process = run.start()
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "batch_size: 9 images do not divide over 2 processes" in err


def test_history_is_that_of_all_epochs(undisturbed):
    """And so is that of a run that went on, whose bytes are these."""
    lines = [json.loads(line) for line in undisturbed()[OUTPUTS.index("history.jsonl")].splitlines()]
    assert [line["epoch"] for line in lines] == list(range(SETTINGS["epochs"]))
    assert np.isfinite([line["loss"] for line in lines]).all()


def test_a_process_given_up_for_dead_writes_nothing_into_its_successors_run(tmp_path, index, undisturbed):
    """Snakemake was killed, its job was not: the next Snakemake starts another in its place."""
    orphan = Run(tmp_path, index)
    process = orphan.start("--save-every", "0")
    orphan.until_state(process)
    process.send_signal(signal.SIGSTOP)
    successor = Run(tmp_path, index)
    taking_over = successor.start("--save-every", "0.3")
    while f"process {taking_over.pid} " not in (tmp_path / "owner").read_text():
        assert taking_over.poll() is None, taking_over.communicate()
        time.sleep(0.005)
    process.send_signal(signal.SIGCONT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    assert f"is now worked on by process {taking_over.pid} on" in err or "took it over and has ended" in err
    out, err = taking_over.communicate(timeout=120)
    assert taking_over.returncode == 0, out + err
    assert successor.outputs() == undisturbed()


def test_a_process_that_wakes_after_its_successor_has_finished_writes_nothing(tmp_path, index, undisturbed):
    orphan = Run(tmp_path, index)
    process = orphan.start("--save-every", "0")
    orphan.until_state(process)
    process.send_signal(signal.SIGSTOP)
    Run(tmp_path, index).finish()
    process.send_signal(signal.SIGCONT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "another process took it over and has ended; this one writes nothing" in err
    assert orphan.outputs() == undisturbed()


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_finished_training_whose_checkpoint_snakemake_removed_is_not_made_again(
    tmp_path, undisturbed_run, interrupted, ranks
):
    """As it does when a job is killed after its stage has ended, here before its states were removed."""
    made = undisturbed_run(ranks)
    for run in (interrupted, made):
        shutil.copytree(run.folder, tmp_path, dirs_exist_ok=True)
    run = Run(tmp_path, made.index, ranks)
    (tmp_path / "checkpoint.safetensors").unlink()
    said = run.finish()
    assert "an earlier process finished this, and it was removed since: it is put back" in said
    assert "epoch" not in said
    assert run.outputs() == made.outputs()
    if ranks == 1:  # the first of several decides alone
        other = Run(tmp_path, made.index, lr=0.02)
        (tmp_path / "checkpoint.safetensors").unlink()
        assert "epoch 1/4" in other.finish()


def test_a_signal_ends_a_process_forked_while_it_is_waited_for():
    """Decoding processes and pools are ended so; they have nothing to save."""
    with signals.Signals() as noted:
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
        time.sleep(0.2)
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGTERM
        assert noted.caught is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert noted.caught == "SIGTERM"


def test_a_time_limit_that_is_near_ends_no_process_that_decodes():
    """SLURM's USR1 reaches all of a job's processes; the one that saves may still need the others."""
    with signals.Signals() as noted:
        child = os.fork()
        if not child:
            time.sleep(0.5)
            os._exit(0)
        time.sleep(0.2)
        os.kill(child, signal.SIGUSR1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert noted.caught is None
