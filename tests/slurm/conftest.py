"""A real one-node SLURM cluster, for the tests of this folder: `make test-slurm`."""

from collections.abc import Iterator

import pytest

from bench import one_node_slurm
from bench.one_node_slurm import Cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    if reason := one_node_slurm.missing():
        pytest.skip(reason)
    with one_node_slurm.one_node(tmp_path_factory.mktemp("slurm") / "cluster") as cluster:
        yield cluster
