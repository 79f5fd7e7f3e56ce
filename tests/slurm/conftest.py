"""A real one-node SLURM cluster, for the tests of this folder: `make test-slurm`."""

from collections.abc import Iterator

import pytest

from bench import one_node_slurm
from bench.one_node_slurm import Cluster
from bench.site import Site
from bench.small_dag import small_config


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    if reason := one_node_slurm.missing():
        pytest.skip(reason)
    with one_node_slurm.one_node(tmp_path_factory.mktemp("slurm") / "cluster") as cluster:
        yield cluster


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Site:
    """A site without a cluster, up to the index of ImageNet's training images: where tests of training start from."""
    site = Site(tmp_path_factory.mktemp("prepared") / "site", None, small_config())
    process = site.run("results/index/imagenet_train.npz")
    assert process.returncode == 0, process.stdout
    return site
