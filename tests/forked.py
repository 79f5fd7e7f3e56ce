"""Processes that are forks of one that has imported what they import: Snakemake, and stages that are killed.

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
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

ROOT = Path(__file__).parents[1]
_MMDET = ("uic_core.openmmlab.runner", "uic_core.openmmlab.backbones", "uic_core.openmmlab.observe")
_IMPORTED = {
    "snakemake": (
        "snakemake.cli", "snakemake.executors.dryrun", "snakemake.executors.local", "yte", "docutils.core", "jinja2",
        "numpy.typing", "PIL.Image", "platformdirs", "pydantic", "pygments.formatters", "requests", "safetensors.numpy",
    ),
    "uic_core.pretrain": (
        "uic_core.pretrain.loop", "uic_core.run.cpus", "uic_core.run.parallel", "torch._dynamo",
        "torch.utils.tensorboard", "PIL.JpegImagePlugin",
    ),
    "uic_core.openmmlab.detection": (*_MMDET, "uic_core.openmmlab.fast_rcnn"),
    "uic_core.openmmlab.segmentation": (*_MMDET, "uic_core.openmmlab.fcn"),
}  # fmt: skip
"""By module that `python -m` would run: what it imports, and not itself."""


class Process:
    """A fork that runs `python -m module` from the clone's root, in a session of its own; used as a Popen.

    Args:
        out: file of both output streams; without it `communicate` returns them.
    """

    def __init__(self, module: str, *arguments: str, out: Path | None = None, **variables: str) -> None:
        self._server = _server(module)
        self._files = [out, out] if out else [_folder() / uuid.uuid4().hex for _ in range(2)]
        self.returncode: int | None = None
        files = [str(file) for file in self._files]
        self.pid = int(self._ask(arguments=arguments, environment=dict(os.environ) | variables, files=files))

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


def _become(module: str, arguments: list[str], environment: dict[str, str], files: list[str]) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    for number, file in enumerate((os.devnull, *files)):
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT if number else os.O_RDONLY
        descriptor = os.open(file, flags, 0o644)
        os.dup2(descriptor, number)
        os.close(descriptor)
    random.seed()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _serve(sys.argv[1])
