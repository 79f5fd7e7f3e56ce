"""Every rule says where it runs, what it prints, what it took and what it may take."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from uic_core.files import read_yaml

ROOT = Path(__file__).parents[2]
RULE = re.compile(r"^( *)rule(?: (\w+))?:\n((?:\1 +.*\n|\n)+)", flags=re.MULTILINE)
FILES = sorted((ROOT / "workflow" / "rules").glob("*.smk"))


def rules():
    """(name, text) of every rule that runs a job."""
    for file in FILES:
        text = file.read_text()
        found = [(name or re.search(r'f"(\w+)\{', body)[1], body) for _, name, body in RULE.findall(text)]
        assert len(found) == len(re.findall(r"^ *rule\b", text, flags=re.MULTILINE))
        yield from found


@pytest.mark.parametrize(("name", "text"), list(rules()))
def test_a_rule_has_its_environment_log_benchmark_and_resources(name, text):
    directives = dict(re.findall(r"^ +(\w+):\n?((?: {4,}.*\n)|.*)", text, flags=re.MULTILINE))
    assert {"conda", "log", "benchmark", "resources", "shell"} <= set(directives)
    assert re.search(r"^ +mem_mb=", text, flags=re.MULTILINE)
    assert re.search(r"^ +runtime=", text, flags=re.MULTILINE)
    assert re.search(r'"\.\./\.\./envs/(core|openmmlab|report)\.yaml"', text)
    assert "{log} 2>&1" in text


@pytest.mark.parametrize(("name", "text"), list(rules()))
def test_what_a_rule_takes_it_hands_on(name, text):
    """Threads that are asked for reach the stage; several nodes and GPUs the launcher, which starts the processes."""
    assert ("threads:" in text) == ("{threads}" in text)
    assert ("nodes=" in text) == ("launch {resources.nodes} {resources.gpu}" in text)


def test_the_rules_are_those_of_the_workflow():
    names = {name for name, _ in rules()}
    assert {"pretrain", "finetune", "external", "linear_probe", "partial", "summary", "seeds", "table", "fig"} <= names
    for file in FILES:
        assert len(file.read_text().splitlines()) < 200


def test_the_profiles_examples_are_settings_of_rules():
    """Those in comments too; expressions of runs choose the runs that they mean."""
    text = (ROOT / "profiles" / "slurm" / "config.yaml").read_text()
    lines = [line[2:] for line in text.splitlines() if re.match(r"#   \w+: ", line)]
    settings = [yaml.safe_load(line) for line in lines]
    known = {name for name, _ in rules()}
    assert {rule for line in settings for rule in line} <= known
    (four,) = [line["pretrain"]["gpu"] for line in settings if "wildcards" in str(line.get("pretrain", ""))]
    chosen = {
        name for name in read_yaml(ROOT / "config" / "paper.yaml")["runs"]
        if eval(four, {"wildcards": SimpleNamespace(run=name)}) == 4  # as Snakemake does
    }  # fmt: skip
    assert chosen == {"uic_vgg16_strong", "uic_resnet50_strong", "uic_resnet50_mlp_strong"}
