"""Pretraining over two nodes: torchrun on each, under srun. Both are this machine, under two names."""

from collections.abc import Iterator

import pytest

from bench import one_node_slurm
from bench.one_node_slurm import Cluster
from bench.site import Site
from bench.small_dag import small_config


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory) -> Iterator[Cluster]:
    if reason := one_node_slurm.missing():
        pytest.skip(reason)
    with one_node_slurm.one_node(tmp_path_factory.mktemp("slurm") / "cluster", nodes=2) as cluster:
        yield cluster


def test_a_run_takes_the_gpus_of_two_nodes(two_nodes, tmp_path):
    """As profiles/slurm/config.yaml says it is asked for."""
    resources = {"gpu": 0, "gres": "gpu:2", "nodes": 2, "tasks": 2, "tasks_per_gpu": 0, "mpi": "srun"}
    site = Site(tmp_path / "site", two_nodes, small_config(), pretrain=resources)
    process = site.run("results/runs/uic_10k/checkpoint.safetensors")
    assert process.returncode == 0, process.stdout[-4000:]
    log = (site.folder / "results/logs/uic_10k/pretrain.log").read_text()
    assert "uic, alexnet: 48 images, 4 process(es) on cpu" in log


def test_a_run_takes_the_gpus_of_one_node(two_nodes, tmp_path):
    """GPUs counted by --gpus, and by --gres."""
    for resources in ({"gpu": 2}, {"gpu": 0, "gres": "gpu:2"}):
        site = Site(tmp_path / str(len(resources)), two_nodes, small_config(), pretrain=resources)
        process = site.run("results/runs/uic_10k/checkpoint.safetensors")
        assert process.returncode == 0, process.stdout[-4000:]
        log = (site.folder / "results/logs/uic_10k/pretrain.log").read_text()
        assert "uic, alexnet: 48 images, 2 process(es) on cpu" in log
