"""A real one-node SLURM cluster, for the tests of this folder: `make test-slurm`. Bars are printed at the end."""

import os
from collections.abc import Iterator

import pytest

from bench import one_node_slurm
from bench.measure import Bars
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


_BARS = pytest.StashKey[Bars]()


@pytest.fixture(scope="session")
def bars(pytestconfig) -> Bars:
    """A line PASS or MISS for each that a test holds something against."""
    return pytestconfig.stash.setdefault(_BARS, Bars("cluster"))


def pytest_terminal_summary(terminalreporter, config) -> None:
    if _BARS in config.stash:
        terminalreporter.write_line("")
        for line in config.stash[_BARS].lines:
            terminalreporter.write_line(line)


def pytest_sessionfinish(session) -> None:
    """CI that has installed SLURM must not pass because its tests were skipped."""
    skipped = session.config.pluginmanager.get_plugin("terminalreporter").stats.get("skipped", [])
    if os.environ.get("UIC_REQUIRE_SLURM") and skipped:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
