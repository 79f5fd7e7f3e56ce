"""What is wrong before the first job ends in one line of our own, which names file, line, key and remedy."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.small_dag import small_config
from tests import forked
from uic_core.models import with_fc6

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TARGET = "protocols/fewshot.yaml"  # a job of a second


@pytest.fixture
def start(tmp_path: Path, seen: Callable[[object], None]) -> Callable[..., str]:
    """Start Snakemake in a folder with a config; return what it says: '' if it ends well, else our one line."""

    def start(
        *arguments: str, config: dict[str, Any] | str = "", profile: str = "profiles/demo", **variables: str
    ) -> str:
        text = config if isinstance(config, str) else yaml.safe_dump(config)
        file = tmp_path / "mine.yaml"
        file.write_text(text or yaml.safe_dump(small_config()), encoding="latin-1")
        given = [*arguments, "--snakefile", str(ROOT / "Snakefile"), "--directory", str(tmp_path)]
        given += ["--profile", profile, "--configfile", str(file)] if profile else ["--cores", "1"]
        if variables:
            command = [sys.executable, "-m", "snakemake", *given]
            process = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | variables
            )
        else:
            process = forked.snakemake(*given)
        if process.returncode == 0:
            return ""
        said = process.stderr.replace(f"Using profile {profile} for setting default command line arguments.\n", "")
        first, *lines = [line for line in said.splitlines() if line.startswith("error: ") or "Traceback" in line]
        assert not lines
        assert said.splitlines()[-1] == first  # Snakemake adds nothing
        seen(first)
        return first

    return start


@pytest.mark.parametrize("name", ["demo", "slurm"])
def test_fault_42_a_profile_is_read_strictly(start, tmp_path, name):
    """YAML would take the second of two keys, and 8:00:00 for 20 days: a job that no partition starts."""
    text = (ROOT / "profiles" / name / "config.yaml").read_text()
    if name == "demo":
        text += "default-resources:\n  runtime: 1440\n"
    file = tmp_path / "site" / "config.yaml"
    file.parent.mkdir()
    file.write_text(text.replace("runtime: 1440", "runtime: 8:00:00"))
    line = text[: text.index("runtime: 1440")].count("\n") + 1
    told = start("-n", profile=str(file.parent))
    assert told.startswith(f"error: {file}:{line}: is not valid YAML: runtime: 8:00:00 means the number 28800; ")
    file.write_text(f"{text}default-resources: {{mem_mb: 9000}}\n")
    line = text.count("\n") + 1
    told = start("-n", profile=str(file.parent))
    assert told.startswith(f"error: {file}:{line}: is not valid YAML: key 'default-resources' stands twice; remove one")


def test_fault_42_a_wrong_limit_is_told_before_the_first_job(start, tmp_path):
    """However the profile is named. The remedy works, and so do the expressions that a profile may hold."""
    text = (ROOT / "profiles/demo/config.yaml").read_text()
    file = tmp_path / "site" / "config.yaml"
    file.parent.mkdir()
    file.write_text(f"{text}jobs: 1\njobs: 2\n")
    assert "key 'jobs' stands twice" in start("-n", profile="", SNAKEMAKE_PROFILE=str(file))
    assert "key 'jobs' stands twice" in start("-n", "--workflow-profile", str(file.parent), profile="")
    file.write_text(f"{text}default-resources: {{runtime: 08:00:00}}\n")
    told = start("-n", profile=str(file))
    assert told.startswith("error: default-resources.runtime of the profile: 08:00:00 is no whole number of minutes")
    for limit in ("8h", "?8 * 60"):
        file.write_text(f"{text}default-resources:\n  ?if True:\n    runtime: {limit}\n  ?else:\n    runtime: 0\n")
        assert start("-n", f"results/{TARGET}", profile=str(file)) == ""


def test_fault_50_where_nothing_can_be_written_no_job_starts(start, tmp_path):
    """Each remedy leads to the job's end. /proc is a folder in which nobody makes a file."""
    (tmp_path / "taken").touch()
    told = start("-n", config=small_config() | {"results": "taken"})
    assert told.startswith("error: taken: nothing can be written there (Not a directory); name another folder")
    told = start(f"results/{TARGET}", TMPDIR="/proc")
    assert told.startswith("error: /proc: nothing can be written there (")
    assert told.endswith("; set TMPDIR to another folder")
    told = start(f"results/{TARGET}", HOME="/proc")
    assert told.startswith("error: /proc/.cache/snakemake: nothing can be written there (")
    assert told.endswith("; set XDG_CACHE_HOME to a folder that can be written")
    assert not (tmp_path / "results" / TARGET).exists()
    there = str(tmp_path / "cache")
    assert start(f"results/{TARGET}", HOME="/proc", XDG_CACHE_HOME=there, TMPDIR=str(tmp_path)) == ""
    assert (tmp_path / "results" / TARGET).exists()


def test_fault_50_a_part_of_the_results_that_links_to_a_purged_folder_is_named(start, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results/protocols").symlink_to(tmp_path / "purged")
    for arguments in (["-n"], [f"results/{TARGET}"]):
        assert start(*arguments) == (
            "error: results/protocols: nothing can be written there (No such file or directory: results/protocols "
            f"links to {tmp_path}/purged); make what it links to again, or move it away"
        )
    (tmp_path / "purged").mkdir()
    assert start(f"results/{TARGET}") == ""


def test_a_result_that_is_named_behind_the_config_is_not_read_as_one(start, tmp_path):
    """Snakemake takes every path after --configfile for a config."""
    named = ["--configfile", str(tmp_path / "mine.yaml"), "results/tables/table1.md"]
    assert start("-n", "--profile", "profiles/demo", *named, profile="") == (
        "error: --configfile results/tables/table1.md: is neither .yaml nor .json; name results before --configfile"
    )


def test_fault_51_tables_and_numbers_are_checked_with_the_config(start, tmp_path):
    published = tmp_path / "published.csv"
    published.write_bytes((ROOT / "config/published.csv").read_bytes()[:-40])
    told = start("-n", config=small_config() | {"published": str(published)})
    line = len(published.read_text().splitlines())
    assert told.startswith(f"error: {published}:{line}: ")
    tables = tmp_path / "tables.yaml"
    text = (ROOT / "config/tables.yaml").read_text()
    tables.write_text(text.replace("{name: ", "{{name: ", 1))
    told = start("-n", config=small_config() | {"tables": str(tables)})
    line = text[: text.index("{name: ")].count("\n") + 1
    assert told.startswith(f"error: {tables}:{line + 1}: is not valid YAML: ")
    assert told.endswith(f" that begins in line {line}; mend one of these lines")


def test_fault_52_a_config_that_snakemake_cannot_read_is_named_with_its_line(start, tmp_path):
    """The default one, and one that is given; whatever is wrong with it (tests/test_strict_yaml.py)."""
    text = yaml.safe_dump(small_config())
    file = tmp_path / "mine.yaml"
    line = len(text.splitlines()) + 1
    for wrong, told in (
        ("\tx: 1\n", "is not valid YAML: found character '\\t' that cannot start any token; indent with spaces"),
        ("x: \xe9\n", "is not UTF-8 (byte 0xe9); save the file as UTF-8"),
    ):
        assert start("-n", config=text + wrong).startswith(f"error: {file}:{line}: {told}")
    (tmp_path / "config").mkdir()
    (tmp_path / "config/paper.yaml").write_text("scale: paper\n\tresults: x\n")
    assert start("-n", profile="").startswith("error: config/paper.yaml:2: is not valid YAML: found character '\\t'")
    (tmp_path / "config/paper.yaml").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert start("-n", f"results/{TARGET}", profile="") == ""


def test_fault_53_a_path_with_quotes_works_and_a_slash_too_many_does_no_harm(start, tmp_path):
    """Through the rules' shells, into the file that stages read."""
    config = small_config() | {"results": "results/"}
    config["datasets"]["voc07"]["root"] = root = """data/it's "mine", `x` * \\ & y"""
    assert start("results/data/voc07.yaml", config=config) == ""
    assert yaml.safe_load((tmp_path / "results/data/voc07.yaml").read_text())["section"]["root"] == root


def test_fault_60_an_evaluation_that_cannot_be_is_refused_when_the_plan_is_made(start, tmp_path):
    (tmp_path / "their.pth").touch()
    config = small_config()
    config["runs"]["theirs"] = {
        "method": "external", "path": "their.pth", "format": "torchvision", "arch": "resnet50", "sobel": False,
        "image_size": 64, "resize": 73,
    }  # fmt: skip
    for target, reason in (
        ("theirs/clusters", "run theirs was trained elsewhere and has no pseudo-labels; name another run"),
        (
            "uic_resnet50_strong/detection",
            f"detection takes {with_fc6()}, and run uic_resnet50_strong is resnet50; ",
        ),
    ):
        file = f"results/metrics/{target}.json"
        assert start("-n", file, config=config).startswith(f"error: {file}: {reason}")
    assert (
        start("-n", "results/metrics/theirs/linear_probe.json", "results/metrics/uic_3k/detection.json", config=config)
        == ""
    )
