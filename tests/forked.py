"""Processes that are forks of one that has imported what they import: Snakemake, stages that are killed, and ranks.

Imports are half of a dry run's two CPU seconds and of a small training's five, and tests start hundreds. A fork is a
process of its own: its arguments, environment, output, signals and exit status are its own. What it is forked from has
only imported, and nothing of ours for Snakemake, whose Snakefile may be another clone's. Only the seed of Python's
hashes is common to forks: what they make is held against what a process makes that was started afresh.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import random
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

ROOT = Path(__file__).parents[1]
_MMDET = ("uic_core.openmmlab.runner", "uic_core.openmmlab.backbones", "uic_core.openmmlab.observe")
_PRETRAIN = (
    "uic_core.pretrain.loop", "uic_core.run.cpus", "uic_core.run.parallel", "torch._dynamo", "torch.utils.tensorboard",
    "PIL.JpegImagePlugin",
)  # fmt: skip
_IMPORTED = {
    "snakemake": (
        "snakemake.cli", "snakemake.executors.dryrun", "snakemake.executors.local", "yte", "docutils.core", "jinja2",
        "numpy.typing", "PIL.Image", "platformdirs", "pydantic", "pygments.formatters", "requests", "safetensors.numpy",
    ),
    "uic_core.pretrain": _PRETRAIN,
    "tests.run.same_statistics": _PRETRAIN,
    "tests.evaluate.small_probes": (
        "uic_core.evaluate.probes", "uic_core.evaluate.ten_crop", "uic_core.run.cpus", "torch._dynamo",
        "PIL.JpegImagePlugin",
    ),
    "uic_core.openmmlab.detection": (*_MMDET, "uic_core.openmmlab.fast_rcnn"),
    "uic_core.openmmlab.segmentation": (*_MMDET, "uic_core.openmmlab.fcn"),
}  # fmt: skip
"""By module that `python -m` would run: what it imports, and not itself."""


class Process:
    """A fork that runs `python -m module` from the clone's root, in a session of its own; used as a Popen.

    Args:
        ranks: if several, it forks again for each, as torchrun starts them: the first that fails ends the others, and
            a signal to its group reaches all of them.
        out: file of both output streams; without it `communicate` returns them.
    """

    def __init__(self, module: str, *arguments: str, ranks: int = 1, out: Path | None = None, **variables: str) -> None:
        self._server = _server(module)
        self._files = [out, out] if out else [_folder() / uuid.uuid4().hex for _ in range(2)]
        self.returncode: int | None = None
        files = [str(file) for file in self._files]
        environment = dict(os.environ) | variables
        self.pid = int(self._ask(arguments=arguments, environment=environment, files=files, ranks=ranks))

    def _ask(self, **order: object) -> str:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        return self._server.stdout.readline().strip()

    def poll(self) -> int | None:
        if self.returncode is None and (status := self._ask(ended=self.pid)):
            self.returncode = int(status)
        return self.returncode

    def wait(self, timeout: float = 600) -> int:
        end = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.005)
        return status

    def communicate(self, timeout: float = 600) -> tuple[str, str]:
        self.wait(timeout)
        out, err = (file.read_text() for file in self._files)
        return out, err

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def snakemake(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m snakemake` from the clone's root to its end; variables go over this process's environment.

    Tests that give it another HOME or TMPDIR, or signal it, start it themselves.
    """
    process = Process("snakemake", *arguments, **variables)
    out, err = process.communicate()
    assert process.returncode is not None
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


@functools.cache
def _folder() -> Path:
    """Return the folder of what forks print, which ends with this process."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return Path(folder.name)


@functools.cache
def _server(module: str) -> subprocess.Popen[str]:
    """Start the process that is forked; it ends with this one, which closes its stdin."""
    command = [sys.executable, "-m", "tests.forked", module]
    server = subprocess.Popen(command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    atexit.register(server.communicate)
    return server


def _serve(module: str) -> None:
    """Answer each line of stdin: fork, and say the number; or say how a fork ended, nothing if it has not."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what is imported may print
    for name in _IMPORTED[module]:
        importlib.import_module(name)
    for line in iter(sys.stdin.readline, ""):
        order = json.loads(line)
        if pid := order.get("ended"):
            ended, status = os.waitpid(pid, os.WNOHANG)
            print(os.waitstatus_to_exitcode(status) if ended else "", file=answers, flush=True)
        elif pid := os.fork():
            print(pid, file=answers, flush=True)
        else:
            answers.close()
            return _become(module, **order)
    return None


def _become(module: str, arguments: list[str], environment: dict[str, str], files: list[str], ranks: int) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    for number, file in enumerate((os.devnull, *files)):
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT if number else os.O_RDONLY
        descriptor = os.open(file, flags, 0o644)
        os.dup2(descriptor, number)
        os.close(descriptor)
    if ranks > 1:
        _fork_ranks(ranks)
    random.seed()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _fork_ranks(world: int) -> None:
    """Return in each of `world` forks; end with the status of the first that fails, and 0 if none does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
    os.environ["LOCAL_WORLD_SIZE"] = str(world)
    pids = set()
    for rank in range(world):
        if not (pid := os.fork()):
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            return
        pids.add(pid)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):  # the ranks' own affair
        signal.signal(number, signal.SIG_IGN)
    first = 0
    while pids:
        pid, status = os.wait()
        pids.remove(pid)
        if status and not first:
            first = status
            for other in pids:
                os.kill(other, signal.SIGTERM)
    os._exit(os.waitstatus_to_exitcode(first) % 256)


if __name__ == "__main__":
    _serve(sys.argv[1])
