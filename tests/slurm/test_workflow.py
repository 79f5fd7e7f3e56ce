"""The whole DAG through the queue of a real one-node cluster: every table, with nobody's help."""

import csv
import json
import re

import pytest
import safetensors
import safetensors.torch

from bench.site import Site
from bench.small_dag import papers_config
from uic_core.run import metrics


@pytest.fixture(scope="module")
def finished(cluster, tmp_path_factory, bars) -> Site:
    """A site whose `snakemake --profile slurm` has run to its end, once."""
    site = Site(tmp_path_factory.mktemp("dag") / "site", cluster, papers_config())
    process = site.run()
    bars.at_least("whole_dag_in_the_queue_is_green", [float(process.returncode == 0)], 1)
    assert process.returncode == 0, process.stdout[-6000:]
    (site.folder / "output").write_text(process.stdout)
    return site


def test_every_table_and_figure_is_there(finished):
    results = finished.folder / "results"
    for number in range(1, 8):
        rows = list(csv.reader((results / f"tables/table{number}.csv").read_text().splitlines()))
        assert len(rows) > 2
    for number in (3, 4):
        assert (results / f"figures/fig{number}.png").stat().st_size > 1000
    for file in results.glob("metrics/*/*.json"):
        assert metrics.read(file).run == file.parent.name
    assert finished.jobs() == {}


def test_no_job_was_started_twice(finished):
    """Shows the last lines of the log of each that was."""
    output = (finished.folder / "output").read_text()
    logs = re.findall(r"^Error in rule .*?^    log: (\S+?),? ", output, flags=re.MULTILINE | re.DOTALL)
    slurm = re.findall(r"^SLURM job .*failed.*|SLURM status.*", output, flags=re.MULTILINE)
    told = "\n".join((finished.folder / log).read_text()[-2000:] for log in logs if (finished.folder / log).exists())
    assert "Trying to restart" not in output, f"{slurm}\n{told}"


def test_logs_are_where_snakemake_says_they_are(finished):
    said = re.findall(r"^    log: (\S+)", (finished.folder / "output").read_text(), flags=re.MULTILINE)
    assert len(said) > 60
    assert [log for log in said if not (finished.folder / log).exists()] == []
    kept = list((finished.folder / ".snakemake/slurm_logs").rglob("*.log"))
    assert len(kept) > 40  # of the jobs themselves, also of those that succeeded


def test_jobs_asked_for_what_the_rules_and_the_profile_say(finished):
    """The GPU of a training; the memory and the CPUs that the site set."""
    (log,) = (finished.folder / ".snakemake/slurm_logs/rule_pretrain/uic_3k").glob("*.log")
    text = log.read_text()
    assert "gpu=1" in text
    assert "mem_mb=3000" in text
    assert "slurm_partition=gpu" in text


def test_a_second_call_submits_nothing(finished):
    process = finished.run()
    assert process.returncode == 0
    assert "Nothing to be done" in process.stdout


def test_an_exchanged_checkpoint_reruns_its_evaluations_and_what_shows_it_alone(finished):
    """Other weights of the same recipe: those of another recipe, or beside a training.json, are refused.

    Without their training.json nobody knows their times: curves and the table of speed are made again, too.
    """
    mine = finished.folder / "results/runs/uic_5k/checkpoint.safetensors"
    before = json.loads((finished.folder / "results/metrics/uic_5k/linear_probe.json").read_text())
    with safetensors.safe_open(mine, "pt") as file:
        header = file.metadata()
    weights = safetensors.torch.load_file(mine)
    weights["features.conv1.weight"] = weights["features.conv1.weight"].flip(0).contiguous()
    safetensors.torch.save_file(weights, mine, header)
    mine.with_name("training.json").unlink()
    process = finished.run()
    assert process.returncode == 0, process.stdout[-4000:]
    ran = re.findall(r"^(?:local)?rule (\w+):", process.stdout, flags=re.MULTILINE)
    again = ["all", "clusters", "fig_curves", "index_page", "linear_probe", "summary", "table1", "table_speed"]
    assert sorted(ran) == again
    after = json.loads((finished.folder / "results/metrics/uic_5k/linear_probe.json").read_text())
    assert after["provenance"]["checkpoint_hash"] != before["provenance"]["checkpoint_hash"]
