"""A real SLURM cluster of one or two nodes on the loopback address, from Debian's packages, during a `with` block.

It has every mechanism of a large cluster: queue, time limits, requeueing, preemption, counted GPUs (none need exist),
and accounting with MariaDB and slurmdbd. It runs as root, with its own folder, ports, keys and processes. It does not
touch a SLURM that this machine is already part of.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_CONF = (Path("/etc/slurm/slurm.conf"), Path("/etc/slurm/gres.conf"))
_CPUS, _GPUS = 8, 4


def missing() -> str:
    """Return what prevents a cluster from starting here; '' if nothing does."""
    if os.geteuid():
        return "one must be root"
    absent = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if not shutil.which(name)]
    if absent:
        return f"{', '.join(absent)} not found: apt-get install slurm-wlm munge"
    there = [path for path in _CONF if (path.exists() or path.is_symlink()) and not _left_over(path)]
    if there:
        return f"{there[0]} is there: this machine has a SLURM of its own"
    return ""


def _left_over(path: Path) -> bool:
    """Return whether it is a link left by a killed cluster of ours: its munged is gone."""
    if not path.is_symlink():
        return False
    folder = path.readlink().parent
    pid = folder / "run" / "munged.pid"
    if not pid.exists():
        return not folder.exists() or (folder / "run").is_dir()
    process = Path("/proc", pid.read_text().strip(), "cmdline")
    return not (process.exists() and str(folder) in process.read_text())


def missing_accounting() -> str:
    """Return the same for accounting."""
    absent = [name for name in ("mariadbd", "mariadb-install-db", "slurmdbd") if not shutil.which(name)]
    return f"{', '.join(absent)} not found: apt-get install mariadb-server slurmdbd" if absent else ""


@dataclass
class Cluster:
    """The running cluster: its folder, node names, and processes by name (`slurmd` is the first node's)."""

    folder: Path
    nodes: tuple[str, ...]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """Environment of commands that talk to this cluster."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "UIC_NO_GPUS": "1"}  # no job must see a GPU

    def ask(self, *command: str) -> str:
        """Run a SLURM command; return its output.

        Raises:
            subprocess.CalledProcessError: it failed.
        """
        process = subprocess.run(
            command, capture_output=True, text=True, check=True, env=os.environ | self.environment, timeout=60
        )
        return process.stdout

    def start(self, name: str, *command: str) -> None:
        """Start one of the cluster's own processes; its output goes to <name>.out."""
        with (self.folder / f"{name}.out").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env=os.environ | self.environment, preexec_fn=_die_with_parent,
            )  # fmt: skip

    def kill(self, name: str) -> None:
        """Kill one of them at once, like a crash."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def start_controller(self) -> None:
        """Start slurmctld (again) and wait for its answer."""
        self.start("slurmctld", "slurmctld", "-D", "-f", str(self.folder / "slurm.conf"))
        self._wait("slurmctld", "scontrol", "ping", expected="UP")

    def start_node(self, number: int = 0) -> None:
        """Start a node's slurmd (again) and wait until jobs can run there."""
        name = f"slurmd{number or ''}"
        self.start(name, "slurmd", "-D", "-N", self.nodes[number], "-f", str(self.folder / "slurm.conf"))
        ready = ("idle", "mix", "alloc")
        self._wait(name, "sinfo", "-h", "-n", self.nodes[number], "-o", "%t", expected=ready)

    def resume_nodes(self) -> None:
        """Resume drained nodes, as an administrator does after a crash.

        A killed controller may reuse a job's number. The node that knows the first job is then drained ("Duplicate
        jobid").
        """
        for node in self.nodes:
            with contextlib.suppress(subprocess.SubprocessError):
                if "drain" in self.ask("sinfo", "-h", "-n", node, "-o", "%T"):
                    self.ask("scontrol", "update", f"NodeName={node}", "State=RESUME")

    def _wait(self, name: str, *command: str, expected: str | tuple[str, ...], seconds: float = 60) -> None:
        expected = (expected,) if isinstance(expected, str) else expected
        said = ""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(subprocess.SubprocessError):
                said = self.ask(*command)
                if any(word in said.split() or f"is {word}" in said for word in expected):
                    return
            if self.processes[name].poll() is not None:
                break
            time.sleep(0.2)
        log = (self.folder / f"{name}.out").read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{name} did not come up: {said}\n{log}")


@contextlib.contextmanager
def one_node(folder: Path, *, nodes: int = 1, accounting: bool = False, **settings: str) -> Iterator[Cluster]:
    """Run a cluster in `folder`, which is created; all its processes have ended after the block.

    Args:
        nodes: 1 or 2, both on this machine under names that resolve to it.
        accounting: with MariaDB and slurmdbd, so that sacct answers.
        settings: further keys of slurm.conf.

    Raises:
        RuntimeError: a part of it does not start; with the end of its log.
    """
    assert not missing(), missing()
    folder.mkdir(parents=True)
    for name in ("state", "spool", "run"):
        (folder / name).mkdir()
    cluster = Cluster(folder, (socket.gethostname(), "localhost")[:nodes])
    links = []
    try:
        _start_munge(cluster)
        if accounting:
            _start_accounting(cluster)
        _configure(cluster, accounting, settings)
        # Job steps lose SLURM_CONF: commands in them look here.
        for link in _CONF:
            link.unlink(missing_ok=True)  # a leftover link
            link.symlink_to(folder / link.name)
            links.append(link)
        if accounting:
            cluster.ask("sacctmgr", "-i", "add", "cluster", "one")
        cluster.start_controller()
        for number in range(nodes):
            cluster.start_node(number)
        yield cluster
    finally:
        with contextlib.suppress(subprocess.SubprocessError):
            cluster.ask("scancel", "--user", "root", "--signal", "KILL", "--full")
            cluster.ask("scancel", "--user", "root")
            time.sleep(1)
        for name in reversed(list(cluster.processes)):
            process = cluster.processes[name]
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for link in links:
            link.unlink(missing_ok=True)


def _die_with_parent() -> None:
    """End with the parent: a killed test run leaves no cluster behind (prctl, PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _start_munge(cluster: Cluster) -> None:
    folder = cluster.folder / "run"
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    cluster.start(
        "munged", "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket",
        f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/munged.seed",
    )  # fmt: skip
    _until((folder / "munge.socket").exists, "munged")


def _start_accounting(cluster: Cluster) -> None:
    folder, port, database_port = cluster.folder, _free_port(), _free_port()
    data, sock = folder / "database", folder / "run" / "mariadb.socket"
    subprocess.run(
        ["mariadb-install-db", f"--datadir={data}", "--auth-root-authentication-method=normal", "--user=root"],
        check=True, capture_output=True,
    )  # fmt: skip
    cluster.start(
        "mariadbd", "mariadbd", "--no-defaults", f"--datadir={data}", f"--socket={sock}", f"--port={database_port}",
        "--bind-address=127.0.0.1", "--user=root", f"--pid-file={folder}/run/mariadb.pid",
    )  # fmt: skip
    _until(sock.exists, "mariadbd")
    password = os.urandom(8).hex()
    statements = (
        f"create database slurm; create user slurm@localhost identified by '{password}'; "
        f"create user slurm@'127.0.0.1' identified by '{password}'; "
        "grant all on slurm.* to slurm@localhost; grant all on slurm.* to slurm@'127.0.0.1';"
    )
    subprocess.run(["mariadb", "--no-defaults", f"--socket={sock}", "-e", statements], check=True)
    conf = folder / "slurmdbd.conf"
    conf.write_text(
        f"AuthType=auth/munge\nAuthInfo=socket={folder}/run/munge.socket\nDbdHost=localhost\nDbdPort={port}\n"
        f"SlurmUser=root\nPidFile={folder}/run/slurmdbd.pid\nLogFile={folder}/slurmdbd.log\n"
        f"StorageType=accounting_storage/mysql\nStorageHost=127.0.0.1\nStoragePort={database_port}\n"
        f"StorageUser=slurm\nStoragePass={password}\nStorageLoc=slurm\n"
    )
    conf.chmod(0o600)
    (folder / "slurmdbd.port").write_text(str(port))
    # slurmdbd looks for its configuration only beside slurm.conf.
    (folder / "slurm.conf").touch()
    cluster.start("slurmdbd", "slurmdbd", "-D")
    _until(lambda: _listens(port), "slurmdbd")


def _configure(cluster: Cluster, accounting: bool, settings: dict[str, str]) -> None:
    folder = cluster.folder
    memory = max(4000, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20 - 1000)
    lines = {
        "ClusterName": "one",
        "SlurmctldHost": f"{cluster.nodes[0]}(127.0.0.1)",
        "SlurmctldPort": str(_free_port()),
        "SlurmUser": "root",
        "SlurmdUser": "root",
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={folder}/run/munge.socket",
        "StateSaveLocation": f"{folder}/state",
        "SlurmdSpoolDir": f"{folder}/spool/%n",
        "SlurmctldPidFile": f"{folder}/run/slurmctld.pid",
        "SlurmdPidFile": f"{folder}/run/%n.pid",
        "SlurmctldLogFile": f"{folder}/slurmctld.log",
        "SlurmdLogFile": f"{folder}/%n.log",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_CPU_Memory",
        "SlurmdParameters": "config_overrides",  # more CPUs than exist, so that jobs run in parallel
        "GresTypes": "gpu",
        "ReturnToService": "2",
        "JobRequeue": "1",
        "KillWait": "10",
        "SchedulerParameters": "batch_sched_delay=1,sched_interval=5,bf_interval=5",
        "MpiDefault": "none",
        "PreemptType": "preempt/partition_prio",
        "PreemptMode": "REQUEUE",
        "MailProg": "/bin/true",
    }
    if accounting:
        lines |= {
            "AccountingStorageType": "accounting_storage/slurmdbd",
            "AccountingStorageHost": "localhost",
            "AccountingStoragePass": f"{folder}/run/munge.socket",
            "AccountingStoragePort": (folder / "slurmdbd.port").read_text(),
            "JobAcctGatherType": "jobacct_gather/none",
        }
    lines |= settings
    for number in range(_GPUS):  # to SLURM, a GPU is a file
        (folder / f"gpu{number}").touch()
    # Otherwise jobs would see the machine's own GPUs; their results are compared with those of a CPU.
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-{_GPUS - 1}] Flags=no_gpu_env\n")
    (folder / "slurm.conf").write_text(
        "".join(f"{key}={value}\n" for key, value in lines.items())
        + "".join(
            f"NodeName={node} NodeHostname={cluster.nodes[0]} NodeAddr=127.0.0.1 Port={_free_port()} CPUs={_CPUS} "
            f"RealMemory={memory} Gres=gpu:{_GPUS} State=UNKNOWN\n"
            for node in cluster.nodes
        )
        + f"PartitionName=gpu Nodes={','.join(cluster.nodes)} Default=YES MaxTime=INFINITE PriorityTier=1 State=UP\n"
        + f"PartitionName=urgent Nodes={','.join(cluster.nodes)} PriorityTier=9 PreemptMode=OFF State=UP\n"
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _until(true: object, name: str, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        if time.monotonic() > end:
            raise RuntimeError(f"{name} did not come up in {seconds:.0f} s")
        time.sleep(0.05)


if __name__ == "__main__":
    reason = missing()
    print(f"tests/slurm, on a real one-node cluster: {f'skipped, {reason}' if reason else 'make test-slurm'}")
