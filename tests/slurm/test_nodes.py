"""Pretraining over two nodes: torchrun on each, under srun. Both are this machine, under two names."""

from collections.abc import Iterator
from typing import Any

import pytest

from bench import one_node_slurm
from bench.one_node_slurm import Cluster
from bench.site import Site, until
from bench.small_dag import small_config

SIGNAL = {"slurm_extra": "'--signal=USR1@60'"}


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory) -> Iterator[Cluster]:
    if reason := one_node_slurm.missing():
        pytest.skip(reason)
    with one_node_slurm.one_node(tmp_path_factory.mktemp("slurm") / "cluster", nodes=2) as cluster:
        yield cluster


def config() -> dict[str, Any]:
    config = small_config()
    # So long that SLURM's signal, which may be half a minute late, comes before its end.
    config["runs"]["uic_10k"]["epochs"] = 60
    return config


def through_a_time_limit(site: Site) -> str:
    """Train until the run's job is told that its time is up, and to the end; its log."""
    process = site.start("results/runs/uic_10k/checkpoint.safetensors")
    log = site.folder / "results/logs/uic_10k/pretrain.log"
    until(lambda: log.exists() and "\nepoch " in log.read_text(), process)
    (job,) = site.jobs()
    site.end_time_of(job)
    until(lambda: site.jobs().get(job) == "PENDING", process)
    assert "goes back into the queue" in log.read_text()
    site.cluster.ask("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    site.release()
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output[-4000:]
    assert "Trying to restart" not in output  # no retry is spent
    assert "going on from" in log.read_text()
    return log.read_text()


def test_a_run_takes_the_gpus_of_two_nodes_and_outlives_its_time_limit(two_nodes, tmp_path, prepared):
    """As profiles/slurm/config.yaml says it is asked for. Only srun's processes are signalled."""
    resources = {"gpu": 0, "gres": "gpu:2", "nodes": 2, "tasks": 2, "tasks_per_gpu": 0, "mpi": "srun"}
    site = Site(tmp_path / "site", two_nodes, config(), prepared, pretrain=resources | SIGNAL)
    assert "uic, alexnet: 48 images, 4 process(es) on cpu" in through_a_time_limit(site)


def test_a_run_takes_the_gpus_of_one_node_and_outlives_its_time_limit(two_nodes, tmp_path, prepared):
    site = Site(tmp_path / "site", two_nodes, config(), prepared, pretrain={"gpu": 2} | SIGNAL)
    assert "uic, alexnet: 48 images, 2 process(es) on cpu" in through_a_time_limit(site)
