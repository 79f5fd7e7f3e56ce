"""The workflow on a real one-node SLURM cluster: the cost of the queue, and the results after 20 kills.

    make bench-cluster

Needs root and Debian's slurm-wlm and munge. The whole small DAG runs three times: without a queue; in
the queue while jobs, controller and Snakemake are killed; and without a queue while Snakemake alone is killed and its
jobs live on. The tables must be the same, and no finished training may be made again. (`make test-slurm` tests that it
runs in the queue undisturbed and without help.) If `make demo` has run, `make plan` is compared with it too.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from bench.measure import Bars
from bench.one_node_slurm import Cluster, missing, one_node
from bench.plan import spent
from bench.site import Site
from bench.small_dag import ROOT, papers_config
from uic_core.strict_yaml import read_yaml

QUEUE_KILLS, LOCAL_KILLS = 17, 3
SEEDS = 5
CHAIN = "results/metrics/uic_10k/linear_probe.json"
# Seconds between kills: from the first jobs to the last.
_QUEUE_PAUSE, _LOCAL_PAUSE = (10.0, 40.0), (40.0, 120.0)


def main() -> None:
    """Print the bars; exit status 1 if one is missed."""
    if reason := missing():
        print(f"bench.cluster: nothing measured, {reason}")
        return
    bars = Bars("cluster")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seconds, megabytes = dag_construction(folder)
        bars.at_most("dag_construction_seconds", [seconds], 10)
        bars.at_most("dag_construction_mb", [megabytes], 1000)
        with one_node(folder / "cluster") as cluster:
            bars.at_most("overhead_seconds_a_job", [overhead(folder, cluster)], 10)
            expected = tables(undisturbed(folder / "local"))
            queued, kills, repeated = killed(folder / "killed", cluster)
            bars.at_most("jobs_left_in_the_queue", [float(len(queued.jobs()))], 0)
        local, more, again = killed_locally(folder / "killed_locally")
        bars.at_least("kills", [float(kills + more)], QUEUE_KILLS + LOCAL_KILLS)
        bars.at_most("finished_trainings_made_again", [float(repeated + again)], 0)
        for name, site in (("in_the_queue", queued), ("here", local)):
            found = tables(site)
            differing = sorted(file for file in {*found, *expected} if found.get(file) != expected.get(file))
            print(f"  tables that differ after kills {name}: {', '.join(differing) or 'none'}")
            bars.at_most(f"tables_that_differ_after_kills_{name}", [float(len(differing))], 0)
    if spent(ROOT / "results" / "benchmarks"):
        bars.missed |= bool(subprocess.run([sys.executable, "-m", "bench.plan"]).returncode)
    bars.close()


def dag_construction(folder: Path) -> tuple[float, float]:
    """Return CPU seconds and megabytes of a dry run of config/paper.yaml with five seeds for every run."""
    config = read_yaml(ROOT / "config" / "paper.yaml")
    fixed = [name for name, recipe in config["runs"].items() if recipe["method"] == "external"]
    config["seeds"] = {name: list(range(1, SEEDS)) for name in config["runs"] if name not in fixed}
    path = folder / "paper.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "snakemake", "-n", "--quiet", "all", "--configfile", str(path)]
    command += ["--directory", str(folder), "--snakefile", str(ROOT / "Snakefile"), "--replace-workflow-config"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before, after.ru_maxrss / 1024


def overhead(folder: Path, cluster: Cluster) -> float:
    """Return how many seconds longer a job of a serial chain takes in the queue."""
    taken = {}
    for name, where in (("here", None), ("queue", cluster)):
        site = Site(folder / f"chain_{name}", where, papers_config())
        started = time.monotonic()
        output = _run(site, CHAIN)
        taken[name] = time.monotonic() - started
    # The two indexes are made in parallel: the longest chain has one job of each rule that went through the queue.
    jobs = len(set(re.findall(r"^rule (\w+):", output, flags=re.MULTILINE)))
    print(f"  chain of {jobs} jobs: {taken['here']:.0f} s here, {taken['queue']:.0f} s in the queue")
    return (taken["queue"] - taken["here"]) / jobs


def undisturbed(folder: Path) -> Site:
    """Run the whole DAG in one call of Snakemake, without a queue."""
    site = Site(folder, None, papers_config())
    started = time.monotonic()
    _run(site)
    print(f"  whole DAG here: {time.monotonic() - started:.0f} s", flush=True)
    return site


def tables(site: Site) -> dict[str, str]:
    """Return every table as text, without its date; not that of speed, which is of times."""
    return {
        path.name: re.sub(r"\d{4}-\d{2}-\d{2}", "", path.read_text())
        for pattern in ("*.md", "*.csv")
        for path in sorted((site.folder / "results" / "tables").glob(pattern))
        if path.stem != "speed"
    }


def checkpoints(site: Site) -> dict[str, tuple[int, int]]:
    """Return inode and time of each finished training's checkpoint."""
    found = {path: path.stat() for path in (site.folder / "results" / "runs").glob("*/checkpoint.safetensors")}
    return {path.parent.name: (state.st_ino, state.st_mtime_ns) for path, state in found.items()}


def _changed(before: list[dict[str, tuple[int, int]]], site: Site) -> int:
    """Count the trainings that were finished at some kill and made again since; print their names."""
    now = checkpoints(site)
    again = {run for each in before for run, file in each.items() if now.get(run) != file}
    print(f"  finished trainings that were made again: {', '.join(sorted(again)) or 'none'}")
    return len(again)


def killed_locally(folder: Path) -> tuple[Site, int, int]:
    """Run the whole DAG without a queue while Snakemake is killed now and then. Its jobs live on, as orphans.

    Returns:
        The site, the number of kills, and the number of finished trainings that were made again.
    """
    site, chance = Site(folder, None, papers_config()), random.Random(1)
    finished: list[dict[str, tuple[int, int]]] = []
    started = time.monotonic()
    while True:
        process = site.start()
        with (folder / "output").open("a") as log:
            copying = subprocess.Popen(["cat"], stdin=process.stdout, stdout=log)
        if len(finished) < LOCAL_KILLS and _wait(process, chance.uniform(*_LOCAL_PAUSE)):
            finished.append(checkpoints(site))
            process.kill()
            print(f"  killed: snakemake, without a queue; {len(finished[-1])} trainings were finished", flush=True)
        process.wait()
        if process.returncode == -signal.SIGKILL:
            _run(site, "--unlock")  # the orphans still hold the pipe: `copying` ends with them
            continue
        copying.wait()
        if process.returncode:
            raise RuntimeError(
                f"snakemake: exit status {process.returncode}\n{(folder / 'output').read_text()[-6000:]}"
            )
        print(f"  whole DAG here under {len(finished)} kills: {time.monotonic() - started:.0f} s")
        return site, len(finished), _changed(finished, site)


def killed(folder: Path, cluster: Cluster) -> tuple[Site, int, int]:
    """Run the whole DAG while something is killed every few seconds; call Snakemake again until it has finished.

    Returns:
        As `killed_locally`.
    """
    site, chance, kills, calls = Site(folder, cluster, papers_config()), random.Random(0), 0, 0
    finished: list[dict[str, tuple[int, int]]] = []
    started = time.monotonic()
    done = False
    while not done:
        calls += 1
        assert calls < 3 * QUEUE_KILLS, "it does not come to an end"
        process = site.start()
        with (folder / "output").open("a") as log:
            copying = subprocess.Popen(["cat"], stdin=process.stdout, stdout=log)
        while process.poll() is None:
            if kills < QUEUE_KILLS and _wait(process, chance.uniform(*_QUEUE_PAUSE)):
                finished.append(checkpoints(site))
                what = _kill(site, process, chance)
                kills += bool(what)
            else:
                _wait(process, 1)
            cluster.resume_nodes()
            site.release()
        copying.wait()
        done = process.returncode == 0
        if process.returncode == -signal.SIGKILL:
            _run(site, "--unlock")
    print(f"  whole DAG under {kills} kills: {time.monotonic() - started:.0f} s, {calls} calls of snakemake")
    return site, kills, _changed(finished, site)


def _kill(site: Site, process: subprocess.Popen[str], chance: random.Random) -> str:
    """Kill or cancel a job, or kill the controller or Snakemake; '' if there was nothing to kill."""
    cluster = site.cluster
    assert cluster is not None
    running = [job for job, state in site.jobs().items() if state == "RUNNING"]
    what = chance.choices(["job", "cancelled job", "controller", "snakemake"], [6, 6, 3, 2])[0]
    if "job" in what and not running:
        return ""
    if "job" in what:
        how = ["--signal=KILL", "--full"] if what == "job" else []
        try:
            cluster.ask("scancel", *how, str(chance.choice(running)))
        except subprocess.CalledProcessError:  # it has just ended by itself
            return ""
    elif what == "controller":
        cluster.kill("slurmctld")
        time.sleep(3)
        cluster.start_controller()
    else:
        os.killpg(process.pid, signal.SIGKILL)
    print(f"  killed: {what}", flush=True)
    return what


def _wait(process: subprocess.Popen[str], seconds: float) -> bool:
    """Return whether it still runs after `seconds`."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
        return False
    return True


def _run(site: Site, *arguments: Any) -> str:
    process = site.run(*arguments)
    if process.returncode:
        raise RuntimeError(
            f"snakemake {' '.join(arguments)}: exit status {process.returncode}\n{process.stdout[-6000:]}"
        )
    return process.stdout


if __name__ == "__main__":
    main()
