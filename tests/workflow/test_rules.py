"""Every rule says where it runs, what it prints, what it took and what it may take."""

import re
from pathlib import Path

import pytest

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
