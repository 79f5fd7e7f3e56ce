"""The same cluster with MariaDB and slurmdbd behind it, where Snakemake asks sacct."""

from collections.abc import Iterator

import pytest

from bench import one_node_slurm
from bench.one_node_slurm import Cluster
from bench.site import Site
from bench.small_dag import small_config

TARGET = "results/runs/uic_10k/checkpoint.safetensors"


@pytest.fixture(scope="module")
def accounted(tmp_path_factory) -> Iterator[Cluster]:
    if reason := one_node_slurm.missing() or one_node_slurm.missing_accounting():
        pytest.skip(reason)
    with one_node_slurm.one_node(tmp_path_factory.mktemp("slurm") / "cluster", accounting=True) as cluster:
        yield cluster


def test_a_run_is_seen_to_its_end_by_sacct(accounted, tmp_path):
    site = Site(tmp_path / "site", accounted, small_config())
    process = site.run(TARGET, "--slurm-status-command", "sacct")
    assert process.returncode == 0, process.stdout[-4000:]
    assert (site.folder / TARGET).exists()
    ended = accounted.ask("sacct", "-X", "-n", "-P", "--format=State").split()
    assert len(ended) == 4  # generate, check, index, pretrain
    assert set(ended) == {"COMPLETED"}


def test_a_job_that_somebody_cancelled_is_seen_and_started_again(accounted, tmp_path, prepared):
    """sacct calls it CANCELLED by 0, which the plugin does not know."""
    config = small_config()
    config["runs"]["uic_10k"]["epochs"] = 20
    site = Site(tmp_path / "site", accounted, config, prepared)
    process = site.start(TARGET, "--slurm-status-command", "sacct")
    while not (site.folder / "results/runs/uic_10k/owner").exists():
        assert process.poll() is None, process.stdout.read()
    (job,) = site.jobs()
    accounted.ask("scancel", str(job))
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output[-4000:]
    assert f"SLURM-job '{job}' failed, SLURM status is: 'CANCELLED'" in output
    assert (site.folder / TARGET).exists()
