"""Snakemake, which stays for the days of a training, rests while nothing happens."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bench.small_dag import small_config

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
COUNTED = """
import sys, threading

class Timer(threading.Timer):
    def __init__(self, delay, *arguments):
        super().__init__(delay, *arguments)
        print("looks again", file=sys.stderr)

threading.Timer = Timer
from snakemake.cli import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize(("limit", "looks"), [([], False), (["--max-jobs-per-timespan", "90/1s"], True)])
def test_it_looks_for_jobs_when_one_has_ended_unless_their_number_is_limited(tmp_path, limit, looks):
    """By itself it looks each second, and once more a second for every job that has ended."""
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(small_config()))
    targets = [f"results/protocols/{name}.yaml" for name in ("fewshot", "clusters")]
    process = subprocess.run(
        [
            sys.executable, "-c", COUNTED, *targets, "--snakefile", str(ROOT / "Snakefile"),
            "--profile", str(ROOT / "profiles" / "demo"), "--directory", str(tmp_path), "--cores", "1", *limit,
            "--configfile", str(config),
        ],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert all((tmp_path / target).exists() for target in targets)
    assert ("looks again" in process.stderr) == looks
