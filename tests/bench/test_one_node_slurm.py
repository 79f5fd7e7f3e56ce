"""Links of a one-node cluster that was killed are replaced; a SLURM that is this machine's is left alone."""

import os
from pathlib import Path

import pytest

from bench import one_node_slurm


@pytest.fixture
def link(tmp_path, monkeypatch) -> Path:
    """/etc/slurm/slurm.conf, as a cluster of ours makes it."""
    folder = tmp_path / "cluster"
    (folder / "run").mkdir(parents=True)
    (folder / "slurm.conf").touch()
    path = tmp_path / "slurm.conf"
    path.symlink_to(folder / "slurm.conf")
    monkeypatch.setattr(one_node_slurm, "_CONF", (path,))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(one_node_slurm.shutil, "which", lambda name: name)
    return path


def test_links_of_a_cluster_that_is_gone_do_not_matter(link, tmp_path):
    assert one_node_slurm.missing() == ""
    (tmp_path / "cluster/run/munged.pid").write_text("999999999\n")
    assert one_node_slurm.missing() == ""
    (tmp_path / "cluster").rename(tmp_path / "gone")  # and its folder with it
    assert one_node_slurm.missing() == ""


def test_links_of_one_that_runs_and_files_of_the_machine_do(link, tmp_path):
    # this very process, whose arguments do not name the folder, is no munged of it
    (tmp_path / "cluster/run/munged.pid").write_text(f"{os.getpid()}\n")
    assert one_node_slurm.missing() == ""
    link.unlink()
    link.write_text("ClusterName=theirs\n")
    assert "has a SLURM of its own" in one_node_slurm.missing()
    link.unlink()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/slurm.conf").touch()
    link.symlink_to(tmp_path / "theirs/slurm.conf")
    assert "has a SLURM of its own" in one_node_slurm.missing()
