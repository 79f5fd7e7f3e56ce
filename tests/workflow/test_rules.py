"""Every rule says where it runs, what it prints, what it took and what it may take."""

import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from snakemake.resources import Resources
from snakemake.shell import shell

from tests import forked
from uic_core.config import validate
from uic_core.overview import limits
from uic_core.strict_yaml import read_yaml

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
    wanted = {"conda", "log", "benchmark", "resources", "shell"}
    if name == "partial":  # Snakemake takes a benchmark for an output: a second call would then do nothing
        wanted.remove("benchmark")
    assert wanted <= set(directives)
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
    ours = {"pretrain", "finetune", "external", "linear_probe"} | {"partial", "summary", "index_page", "seeds"}
    assert ours | {"table", "fig"} <= names
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


def functions(root: Path, **workflow) -> dict:
    """The functions of cluster.smk, for a Snakemake in `root`."""
    known = {
        "basedir": root, "remote_exec": False, "global_resources": Resources({}),
        "deployment_settings": SimpleNamespace(deployment_method=set()),
        "resource_settings": SimpleNamespace(_parsed_default_resources=Resources({})),
    }  # fmt: skip
    path = ROOT / "config" / "paper.yaml"
    config = validate(read_yaml(path), str(path))
    found = {"workflow": SimpleNamespace(**known | workflow), "shell": shell, "CONFIG": config, "FULL": config}
    exec((ROOT / "workflow/rules/cluster.smk").read_text(), found)
    found["LONGEST"] = found["longest"]()
    return found


@pytest.mark.parametrize("command", ["false; true", "false | true", 'echo "$unset"', "scontrol show nothing; true"])
def test_fault_45_every_rule_s_shell_ends_at_the_first_error(tmp_path, monkeypatch, seen, command):
    """A prefix replaces Snakemake's own strict mode. The checkout's folder has what shells and Snakemake expand."""
    root = tmp_path / "it's {a} $folder"
    (root / "workflow").mkdir(parents=True)
    shutil.copy(ROOT / "workflow/launch.sh", root / "workflow")
    monkeypatch.setattr(shell, "_process_prefix", None)
    functions(root)["prepare_shell"]()
    shell('[[ $PYTHONPATH == *"/it\'s {{a}} \\$folder" ]] && declare -F launch >/dev/null')
    with pytest.raises(subprocess.CalledProcessError) as error:
        shell(command)
    seen(f"status {error.value.returncode}")


def test_fault_42_a_job_asks_for_its_cost_and_at_most_for_the_site_s_limit(seen):
    """One key of the profile, as it is read there; 8h are 480 minutes."""
    for given, asked in (([], [913, 1440, 1440]), (["runtime=8h"], [480] * 3), (["runtime=3000"], [913, 1826, 2739])):
        defaults = Resources.parse(given, allow_expressions=True)
        found = functions(ROOT, resource_settings=SimpleNamespace(_parsed_default_resources=defaults))
        time = found["time_of"]("finetune")
        assert [time({"run": "uic_3k_fft"}, attempt) for attempt in (1, 2, 3)] == asked
        index = found["time_of"]("index")({"dataset": "imagenet", "split": "train"}, 1)
        classified = found["time_of"]("voc_classification_{train}")({"run": "uic_3k", "train": "all"}, 1)
        seen(f"{given}: finetune {asked}, index {index}, voc_classification {classified} minutes")
        assert 60 < index < 120  # it does not save, so it must fit into any limit
        assert 90 < classified < 240
        assert [found["minutes"](10)({}, attempt) for attempt in (1, 2, 3)] == [10, 20, 30]
    for amount, asked in ((2000, [2000, 4000, 6000]), (64000, [64000, 128000, 128000])):
        assert [found["megabytes"](amount)({}, attempt) for attempt in (1, 2, 3)] == asked


@pytest.mark.parametrize("given", ["08:00:00", "'8:00:00'", "7-00:00:00", "0", "43201", "86400", "60 * attempt"])
def test_fault_42_a_limit_in_other_notation_than_minutes_is_refused(capsys, seen, given):
    defaults = Resources.parse([f"runtime={given}"], allow_expressions=True)
    with pytest.raises(SystemExit):
        functions(ROOT, resource_settings=SimpleNamespace(_parsed_default_resources=defaults))
    said = capsys.readouterr().err
    seen(said)
    assert said.count("\n") == 1
    assert f"default-resources.runtime of the profile: {given} is no whole number of minutes from 1 to 43200" in said


def test_fault_42_rules_that_may_be_long_are_told_of_their_limit():
    """Those with a state to save; the other rules take less than two hours of the paper's matrix."""
    resumable = {"pretrain", "finetune", "linear_probe", "knn", "voc_classification", "detection", "segmentation"}
    assert {name for name, text in rules() if "slurm_extra=SIGNAL" in text} == resumable
    path = ROOT / "config/paper.yaml"
    config = validate(read_yaml(path), str(path))
    for rule, name in (("fewshot", "uic_vgg16_strong"), ("clusters", "uic_3k"), ("index", "imagenet"),
                       ("proposals", "trainval"), ("proposals", "test"), ("check", "voc07")):  # fmt: skip
        assert limits.minutes(config, rule, name) < 120


def test_an_error_of_an_input_function_ends_snakemake_though_its_file_is_there(tmp_path):
    """Snakemake takes a file that is there for one that no rule makes: nothing would be made again, without a word."""
    (tmp_path / "made").touch()
    (tmp_path / "Snakefile").write_text(
        f"""
RESULTS, CONFIG = "results", None
include: "{ROOT}/workflow/rules/reruns.smk"
@never_hidden
def broken(wildcards):
    return {{}}["a key"]
rule all:
    input: "made"
rule make:
    input: broken
    output: "made"
    shell: "touch {{output}}"
"""
    )
    process = forked.snakemake("--directory", str(tmp_path), "--snakefile", str(tmp_path / "Snakefile"), "-c1")
    assert process.returncode == 1
    assert "KeyError: 'a key'" in process.stderr
    assert "error: the workflow cannot say what runs again" in process.stderr
