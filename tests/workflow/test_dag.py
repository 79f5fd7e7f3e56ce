"""From nothing to every table and figure, and what reruns when something changes.

The whole DAG runs once, at a scale still smaller than the demo's: real files, real training, real processes.
"""

import base64
import contextlib
import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision
import yaml

from bench import browser
from bench.small_dag import small_config
from tests import forked, linked_page
from tests.workflow.test_rules import rules
from uic_core import checkpoint
from uic_core.config import validate
from uic_core.data.index import Index
from uic_core.errors import InputError
from uic_core.layout import Layout, rule_of
from uic_core.overview import recorded
from uic_core.recipe import save
from uic_core.report.cells import read_tables
from uic_core.run import metrics

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def options(folder: Path, config: Path) -> list[str]:
    """Snakemake's, for `config`, with everything that is made in `folder`."""
    return [
        "--snakefile", str(ROOT / "Snakefile"), "--profile", str(ROOT / "profiles" / "demo"),
        "--directory", str(folder), "--configfile", str(config),
    ]  # fmt: skip


def snakemake(*arguments: str, folder: Path, config: Path) -> subprocess.CompletedProcess[str]:
    """Run Snakemake on `config` with everything that is made in `folder`."""
    return forked.snakemake(*arguments, *options(folder, config), CI="true")


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> SimpleNamespace:
    """A folder in which the whole small DAG has run: folder, config (path)."""
    folder = tmp_path_factory.mktemp("dag")
    config = folder / "small.yaml"
    config.write_text(yaml.safe_dump(small_config()))
    process = subprocess.run(
        [sys.executable, "-m", "snakemake", *options(folder, config)],
        cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | {"CI": "true"},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-6000:]
    return SimpleNamespace(folder=folder, config=config)


@pytest.fixture
def copy(finished, tmp_path) -> SimpleNamespace:
    """The finished folder again, by hard links: a test replaces files, it never writes into them."""
    folder = tmp_path / "dag"
    shutil.copytree(finished.folder, folder, copy_function=os.link, symlinks=True)
    config = folder / "small.yaml"
    return SimpleNamespace(folder=folder, config=config)


def replace(path: Path, content: bytes) -> None:
    """Other bytes under the same name, in a new file."""
    path.unlink()
    path.write_bytes(content)


def planned(copy: SimpleNamespace, *targets: str) -> set[str]:
    """What a dry run would do: 'rule' or 'rule:run'."""
    process = snakemake("-n", *targets, folder=copy.folder, config=copy.config)
    assert process.returncode == 0, process.stderr + process.stdout
    jobs, rule = set(), ""
    for line in (process.stdout + process.stderr).splitlines():
        if match := re.match(r"(?:local)?rule (\w+):", line):
            rule = match[1]
            jobs.add(rule)
        elif (match := re.search(r"wildcards: .*\brun=(\w+)", line)) and rule:
            jobs.discard(rule)
            jobs.add(f"{rule}:{match[1]}")
    return jobs - {"all"}


def test_every_table_figure_and_metric_is_there(finished):
    results = finished.folder / "results"
    for number in range(1, 8):
        assert (results / "tables" / f"table{number}.md").read_text().startswith("> ")
        assert (results / "tables" / f"table{number}.csv").stat().st_size > 0
        assert "tabular" in (results / "tables" / f"table{number}.tex").read_text()
        assert f"(tables/table{number}.md)" in (results / "README.md").read_text()
    for number in (3, 4):
        assert (results / "figures" / f"fig{number}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (results / "figures" / f"fig{number}.svg").read_text()
    for task in ("detection", "segmentation"):
        assert (results / "figures" / f"{task}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (results / "figures" / f"{task}.svg").read_text()
        table = (results / "tables" / f"{task}.md").read_text()
        assert all(run in table for run in ("ImageNet Labels", "Random-RGB", "Random-Sobel", "DeepCluster [2]", "Ours"))
        assert (results / "tables" / f"{task}.csv").read_text().count(",uic_3k_fft,") > 5
        assert f"(tables/{task}.md)" in (results / "README.md").read_text()
        assert len(list(results.glob(f"metrics/*/{task}_samples.npz"))) == 6
    knn = (results / "tables/knn.md").read_text()
    assert all(f"`{run}`" in knn for run in small_config()["runs"])
    assert (results / "figures/curves.png").read_bytes().startswith(b"\x89PNG")
    speed = (results / "tables/speed.md").read_text()
    trained = [run for run, recipe in small_config()["runs"].items() if recipe["method"] != "random"]
    assert sorted(line.split("`")[1] for line in speed.splitlines() if line.startswith("| `")) == sorted(trained)
    assert "twice faster than DeepCluster" in speed
    for file in ("tables/knn.md", "tables/speed.md", "figures/curves.png"):
        assert f"]({file})" in (results / "README.md").read_text()
    assert "The ordering ImageNet Labels > Random-RGB and Random-Sobel " in (results / "tables/table4.md").read_text()
    files = sorted(results.glob("metrics/*/*.json"))
    assert len(files) >= 30
    for file in files:
        read = metrics.read(file)
        assert (read.run, read.evaluation) == (file.parent.name, file.stem)


def test_every_job_has_a_log_and_a_benchmark(finished):
    results = finished.folder / "results"
    for file in results.glob("metrics/*/*.json"):
        assert (results / "logs" / file.parent.name / f"{file.stem}.log").exists()
        assert (results / "benchmarks" / file.parent.name / f"{file.stem}.tsv").exists()


def test_the_library_knows_what_every_log_and_benchmark_is_of(finished):
    results = finished.folder / "results"
    logs = sorted(results.glob("logs/*/*.log"))
    assert len(logs) > 100
    layout = Layout(results)
    assert [log for log in logs if not layout.made_by(log).exists()] == []
    names = tuple(name for name, _ in rules())  # of table1 … table7 it is `table`
    assert {rule for rule in map(rule_of, results.rglob("*.tsv")) if not rule.startswith(names)} == set()


def test_memory_of_every_job_stays_below_6_gb(finished):
    peaks = {}
    for file in (finished.folder / "results" / "benchmarks").rglob("*.tsv"):
        (job,) = csv.DictReader(file.read_text().splitlines(), delimiter="\t")
        peaks[file] = float(job["max_rss"])
    assert max(peaks.values()) < 6000, max(peaks, key=peaks.__getitem__)
    assert max(peaks.values()) > 500  # a training was among them


def test_a_second_run_does_nothing(copy):
    assert planned(copy) == set()


def test_every_result_records_what_the_config_says(finished, monkeypatch):
    """By the workflow's own reading: none differs, and none leaves it open (uic_core/overview/recorded.py)."""
    monkeypatch.chdir(finished.folder)
    config = validate(small_config(), "small.yaml")
    kinds = (
        "runs/*/*.safetensors",
        "runs/*/recipe.yaml",
        "protocols/*",
        "data/*.yaml",
        "proposals/*",
        "metrics/*/*.json",
    )
    files = [file for kind in kinds for file in Path("results").glob(kind)]
    assert len(files) > 80
    assert {file: recorded.difference(config, file) for file in files} == dict.fromkeys(files, "")


def test_results_moved_to_another_machine_are_not_made_again(finished, tmp_path):
    """Data and results, with their times; not what Snakemake remembers of them (.snakemake)."""
    moved = SimpleNamespace(folder=tmp_path / "moved", config=tmp_path / "moved" / "small.yaml")
    shutil.copytree(finished.folder, moved.folder, copy_function=os.link, ignore=shutil.ignore_patterns(".snakemake"))
    assert planned(moved) == set()


def test_a_mere_touch_of_a_checkpoint_reruns_nothing(copy):
    checkpoint = copy.folder / "results/runs/uic_5k/checkpoint.safetensors"
    replace(checkpoint, checkpoint.read_bytes())
    assert planned(copy) == set()


def test_another_checkpoint_reruns_its_evaluations_and_their_tables(copy):
    checkpoint = copy.folder / "results/runs/uic_5k/checkpoint.safetensors"
    replace(checkpoint, checkpoint.read_bytes() + b"\0")
    tables = {"table1", "table_knn", "summary", "index_page"}
    assert planned(copy) == {"linear_probe:uic_5k", "clusters:uic_5k", "knn:uic_5k"} | tables


def test_another_checkpoint_reaches_the_runs_fine_tuned_from_it(copy):
    checkpoint = copy.folder / "results/runs/uic_3k_center_crop/checkpoint.safetensors"
    replace(checkpoint, checkpoint.read_bytes() + b"\0")
    assert planned(copy) == {
        "knn:uic_3k_center_crop",
        "finetune:uic_3k_center_crop_fft",
        "linear_probe:uic_3k_center_crop_fft",
        "knn:uic_3k_center_crop_fft",
        "table2",
        "table_knn",
        "fig_curves",
        "table_speed",
        "summary",
        "index_page",
    }


def test_changed_settings_of_a_run_rerun_that_run_alone(copy):
    config = small_config()
    config["runs"]["uic_10k"]["lr"] = 0.03
    replace(copy.config, yaml.safe_dump(config).encode())
    assert planned(copy) == {
        "recipe:uic_10k",
        "pretrain:uic_10k",
        "linear_probe:uic_10k",
        "clusters:uic_10k",
        "knn:uic_10k",
        "table1",
        "table_knn",
        "fig_curves",
        "table_speed",
        "summary",
        "index_page",
    }


def test_a_checkpoint_from_elsewhere_goes_through_an_evaluation_and_out_again(copy):
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet50(num_classes=6).state_dict(), copy.folder / "their.pth")
    config = small_config()
    config["runs"]["theirs"] = {
        "method": "external", "path": "their.pth", "format": "torchvision", "arch": "resnet50", "sobel": False,
        "image_size": 64, "resize": 73,
    }  # fmt: skip
    replace(copy.config, yaml.safe_dump(config).encode())
    target, card = "results/metrics/theirs/linear_probe.json", "results/export/theirs/README.md"
    assert planned(copy, target) == {"recipe:theirs", "external:theirs", "linear_probe:theirs"}
    process = snakemake(target, card, folder=copy.folder, config=copy.config)
    assert process.returncode == 0, process.stderr[-6000:]
    assert metrics.read(copy.folder / target).provenance.coverage == 1
    assert "method: external" in (copy.folder / card).read_text()
    assert planned(copy) == {"table_knn", "index_page"}  # no table of the paper takes a cell from it
    replace(copy.folder / "their.pth", b"other bytes")
    assert planned(copy, target) == {"external:theirs", "linear_probe:theirs"}
    (copy.folder / "their.pth").unlink()
    process = snakemake(target, folder=copy.folder, config=copy.config)
    assert process.returncode != 0
    assert "runs.theirs.path: their.pth is not there; correct it in the config" in process.stderr


def test_a_model_card_holds_the_metrics_that_tables_show(copy):
    process = snakemake("results/export/uic_3k/README.md", folder=copy.folder, config=copy.config)
    assert process.returncode == 0, process.stderr[-6000:]
    card = (copy.folder / "results/export/uic_3k/README.md").read_text()
    for evaluation in ("clusters", "fewshot", "knn", "linear_probe"):
        assert f"| {evaluation} |" in card
    with contextlib.chdir(copy.folder):
        made = validate(small_config(), "small.yaml")
        assert recorded.difference(made, Path("results/export/uic_3k/README.md")) == ""


def test_further_seeds_train_runs_of_their_own_and_tables_take_their_means(copy):
    config = small_config()
    config["seeds"] = {"uic_5k": [1, 2]}
    replace(copy.config, yaml.safe_dump(config).encode())
    rules = ("recipe", "pretrain", "linear_probe", "clusters", "knn")
    new = {f"{rule}:uic_5k_seed{seed}" for rule in rules for seed in (1, 2)}
    of_all = {"table_knn", "table_speed", "fig_curves"}
    assert planned(copy) == new | of_all | {"seeds:uic_5k", "table1", "summary", "index_page"}


def test_a_cache_is_read_by_all_that_trains_on_imagenet(copy):
    config = small_config()
    config["datasets"]["cache"]["format"] = "jpeg"
    replace(copy.config, yaml.safe_dump(config).encode())
    plan = planned(copy)
    trained = {f"pretrain:{run}" for run, recipe in config["runs"].items() if recipe["method"] != "finetune"}
    assert trained | {"cache", "finetune:uic_3k_center_crop_fft", "linear_probe:uic_3k"} <= plan
    assert not {"check", "index"} & plan  # the files themselves are read no second time


def test_changed_settings_of_an_evaluation_rerun_that_evaluation_alone(copy):
    config = small_config()
    config["evaluations"]["fewshot"]["episodes"] = 30
    replace(copy.config, yaml.safe_dump(config).encode())
    assert planned(copy) == {"protocol", "fewshot:uic_3k", "fewshot:deepcluster", "table5", "summary", "index_page"}


def test_a_changed_data_set_reruns_what_reads_it_and_nothing_else(copy):
    config = small_config()
    config["datasets"]["miniimagenet"]["images_per_class"] = 21
    replace(copy.config, yaml.safe_dump(config).encode())
    assert planned(copy) == {
        "dataset",
        "synthetic",
        "check",
        "index",
        "fewshot:uic_3k",
        "fewshot:deepcluster",
        "table5",
        "summary",
        "index_page",
    }


def test_each_table_and_figure_is_a_target_and_is_made_of_no_other(copy):
    """Of all of them at once, what each is made of: no other table or figure, which would be made with it."""
    targets = {
        **{f"table{number}": f"tables/table{number}.*" for number in range(1, 8)},
        **{f"fig{number}": f"figures/fig{number}.*" for number in (3, 4)},
        **{f"table_{task}": f"tables/{task}.*" for task in ("detection", "segmentation")},
        **{f"fig_{task}": f"figures/{task}.*" for task in ("detection", "segmentation")},
        "table_knn": "tables/knn.*",
        "fig_curves": "figures/curves.*",
        "table_speed": "tables/speed.*",
    }
    for files in targets.values():
        for file in (copy.folder / "results").glob(files):
            file.unlink()
    process = snakemake("-n", *targets, folder=copy.folder, config=copy.config)
    assert process.returncode == 0, process.stderr
    jobs = re.findall(
        r"^(?:local)?rule (\w+):\n    input: (.+)\n    output: (.+)\n", process.stdout, flags=re.MULTILINE
    )
    assert sorted(rule for rule, _, _ in jobs) == sorted(targets)
    for rule, made_of, makes in jobs:
        assert not re.search(r"results/(tables|figures)/", made_of), rule
        for file in makes.split(", "):
            assert Path(file).match(f"results/{targets[rule]}"), rule


def test_a_run_takes_as_many_processes_as_its_rule_has_gpus(copy):
    process = snakemake(
        "results/runs/uic_10k/checkpoint.safetensors", "--forcerun", "pretrain", "--until", "pretrain",
        "--set-resources", "pretrain:gpu=2", folder=copy.folder, config=copy.config,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    log = (copy.folder / "results/logs/uic_10k/pretrain.log").read_text()
    assert "uic, alexnet: 48 images, 2 process(es) on cpu" in log


def test_linear_probes_take_as_many_processes_as_their_rule_has_gpus(copy):
    path = copy.folder / "results/metrics/uic_10k/linear_probe.json"
    alone = metrics.read(path)
    process = snakemake(
        "results/metrics/uic_10k/linear_probe.json", "--forcerun", "linear_probe", "--until", "linear_probe",
        "--set-resources", "linear_probe:gpu=2", folder=copy.folder, config=copy.config,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    shared = metrics.read(path)
    assert (alone.protocol["processes"], shared.protocol["processes"]) == (1, 2)
    # The last digits of a loss depend on the number of processes.
    assert {name: value.model_copy(update={"loss": None}) for name, value in shared.values.items()} == {
        name: value.model_copy(update={"loss": None}) for name, value in alone.values.items()
    }


def test_a_single_evaluation_can_be_made_again(copy):
    jobs = planned(copy, "--forcerun", "linear_probe", "--until", "linear_probe")
    assert jobs
    assert {job.split(":")[0] for job in jobs} == {"linear_probe"}


def test_a_metrics_file_that_is_not_finite_fails_its_table_and_shows_in_the_partial_one(copy):
    path = copy.folder / "results/metrics/uic_5k/linear_probe.json"
    text = path.read_text()
    value = json.loads(text)["values"]["conv3"]["value"]
    replace(path, text.replace(f'"value": {value}', '"value": NaN').encode())
    made = [file for part in ("runs", "metrics") for file in (copy.folder / "results" / part).glob("*/*.*")]
    kept = {file: file.stat().st_mtime_ns for file in made}
    process = snakemake("table1", folder=copy.folder, config=copy.config)
    assert process.returncode != 0
    assert "linear_probe.json: values.conv" in process.stderr
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert "delete the file and run snakemake again" in process.stderr
    process = snakemake("partial", folder=copy.folder, config=copy.config)
    assert process.returncode == 0, process.stderr
    table = (copy.folder / "results/tables/partial/table1.md").read_text()
    assert "–" in table
    assert "not a finite number" in table
    page = (copy.folder / "results/tables/partial/index.html").read_text()
    assert "Why there is no number: results/metrics/uic_5k/linear_probe.json: values.conv" in page


def test_fault_59_every_remedy_makes_the_work_go_on(copy, seen, monkeypatch):
    """A damaged file of the results: each message is followed, then nothing is left to do."""
    monkeypatch.chdir(copy.folder)
    damaged = {
        Path("results/runs/random_rgb/checkpoint.safetensors"): checkpoint.load,
        Path("results/index/imagenet_val.npz"): Index.load,
    }
    for path, load in damaged.items():
        replace(path, path.read_bytes()[:1000])
        with pytest.raises(InputError) as caught:
            load(path)
        seen(caught.value)
        assert re.search(rf"; (put back a good copy, or )?delete ({path}|it),? ", str(caught.value))
        path.unlink()
    receipt = Path("results/data/imagenet.yaml")
    replace(receipt, b"name: [")
    process = snakemake("-n", folder=copy.folder, config=copy.config)
    assert f"delete {receipt}, then make it alone: snakemake … {receipt}" in process.stdout + process.stderr
    seen(process.stdout + process.stderr)
    receipt.unlink()
    process = snakemake(*map(str, (receipt, *damaged)), folder=copy.folder, config=copy.config)
    assert process.returncode == 0, process.stderr
    assert planned(copy) == set()


def test_fault_32_the_key_skips_the_comparison_and_reruns_nothing(copy):
    config = small_config()
    config["datasets"]["check_files"] = False
    replace(copy.config, yaml.safe_dump(config).encode())
    assert planned(copy) == set()
    image = next((copy.folder / "data/datasets/miniimagenet/images").iterdir())
    replace(image, image.read_bytes())
    os.utime(image, (0, 0))
    target = ("results/metrics/random_sobel/fewshot.json", "--forcerun", "fewshot")
    process = snakemake(*target, folder=copy.folder, config=copy.config)
    assert process.returncode == 0, process.stderr


@pytest.fixture(scope="session")
def report(finished) -> Path:
    """The report of the finished folder."""
    process = snakemake("--report", "results/report.html", folder=finished.folder, config=finished.config)
    assert process.returncode == 0, process.stderr
    return finished.folder / "results/report.html"


def test_the_report_is_one_file_with_every_table_and_figure(finished, report):
    html = report.read_text()
    names = (*(f"table{n}" for n in range(1, 8)), "detection", "segmentation", "knn", "speed")
    tables = [f"tables/{name}.html" for name in names]
    for name in tables + [f"figures/{name}.png" for name in ("fig3", "fig4", "detection", "segmentation", "curves")]:
        content = (finished.folder / "results" / name).read_bytes()
        assert base64.b64encode(content).decode() in html, name
        assert json.dumps(f"results/{name}") in html
    graph = re.search(r"var rulegraph_spec = (.*?);\n", html, re.DOTALL)
    assert graph
    for rule in ("synthetic", "index", "pretrain", "linear_probe", "detection", "table4", "fig3"):
        assert f'"{rule}"' in graph[1]
    times = (finished.folder / "results/times.html").read_bytes()
    assert base64.b64encode(times).decode() in html
    assert b"<code>pretrain</code>" in times
    for caption in ("Table 4: Transfer to PASCAL VOC", "Fig. 4: Images of the pseudo-classes"):
        assert caption in html


def test_a_browser_shows_every_table_figure_and_caption_of_the_report(finished, report, tmp_path):
    if reason := browser.missing():
        pytest.skip(reason)
    tasks = ("detection", "segmentation")
    numbers = [str(number) for number in range(1, 8)]
    shelves = {  # category → beginning of the label → (file, beginning of the caption)
        "Tables": {f"{number} · ": (f"table{number}.html", f"Table {number}: ") for number in numbers},
        "All runs": {
            "Nearest neighbours": ("knn.html", "Nearest neighbours: "),
            "Training curves": ("curves.png", "Training curves: "),
            "Speed of the trainings": ("speed.html", "Speed: "),
        },
        "Classes": {f"{task.capitalize()}: ": (f"{task}.html", f"{task.capitalize()} by class: ") for task in tasks},
        "Figures": {f"{number} · ": (f"fig{number}.png", f"Fig. {number}: ") for number in ("3", "4")}
        | {f"{task.capitalize()}s ": (f"{task}.png", f"{task.capitalize()}s: ") for task in tasks},
    }
    with browser.Browser() as reader:
        for category, shelf in shelves.items():
            seen = set()
            for number in range(1, len(shelf) + 1):
                reader.open(report)
                reader.click(f"//*[text()='{category}']")
                row = f"(//tr)[{number + 1}]"
                label = reader.see(f"{row}/td[1]")
                (name,) = (name for name in shelf if label.startswith(name))
                file, caption = shelf[name]
                reader.click(f"{row}//a[@iconname='eye']")
                kind = "img" if file.endswith("png") else "iframe"
                reader.see(f"//{kind}[contains(@src, 'filename={file}')]")
                reader.wait("return [...document.querySelectorAll('img')].every(each => each.naturalWidth > 0)")
                reader.screenshot(tmp_path / f"{category}_{number}.png")
                reader.click(f"{row}//a[@iconname='information-circle']")
                assert caption in reader.see(f"//*[starts-with(normalize-space(.), '{caption}')]")
                seen.add(name)
            assert seen == set(shelf)
        reader.open(report)
        reader.click("//*[text()='Statistics']")
        reader.see("//canvas")  # the rules' times, drawn
        assert [error for error in reader.errors() if "Error" in error or "ERR_" in error] == []
        # of two figures alone too, whose labels Snakemake may take for a toggle's
        process = snakemake(
            "fig3", "fig4", "--report", "results/two.html", folder=finished.folder, config=finished.config
        )  # fmt: skip
        assert process.returncode == 0, process.stderr
        reader.open(finished.folder / "results/two.html")
        reader.click("//*[text()='Results']")  # a category alone has no name
        assert reader.see("(//tr)[3]/td[1]").startswith("4 · ")


def test_a_browser_follows_every_link_of_the_one_page_and_finds_every_number_in_its_json(finished):
    if reason := browser.missing():
        pytest.skip(reason)
    page = finished.folder / "results/index.html"
    assert page.stat().st_size < 10_000_000
    with browser.Browser() as reader:
        numbers = linked_page.check(reader, page)
        for run in small_config()["runs"]:
            reader.see(f"//details[@id='run/{run}']/pre")  # the end of its log
        assert reader.run("return document.images.length") >= 4
    computed = validate(small_config(), "small.yaml").computable
    for number, table in read_tables(ROOT / "config/tables.yaml", computed).items():
        shown = [each["name"] for each in numbers if each["table"] == f"table{number}"]
        assert shown == [source.value for source in table.sources().values()]
    for task in ("detection", "segmentation"):
        assert [each for each in numbers if each["table"] == f"classes/{task}"]


def test_the_plan_of_a_fresh_clone_on_a_cluster_covers_the_paper(tmp_path):
    """The slurm profile in a dry run. Conda cannot be had everywhere: a stand-in says that it is there."""
    conda = tmp_path / "bin" / "conda"
    conda.parent.mkdir()
    said = {"conda_version": "24.11.0", "platform": "linux-64", "get": {"channel_priority": "strict"}}
    said |= {"conda_prefix": "/nowhere", "root_prefix": "/nowhere"}
    conda.write_text(f"#!/bin/sh\necho '{json.dumps(said)}'\n")
    conda.chmod(0o755)
    process = subprocess.run(
        [
            sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--profile", "slurm",
            "--directory", str(tmp_path), "--configfile", str(ROOT / "config" / "paper.yaml"), "-n",
        ],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"PATH": f"{conda.parent}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    counts = dict(re.findall(r"^(\w+) +(\d+)$", process.stdout, flags=re.MULTILINE))
    assert counts["pretrain"] == "12"
    assert counts["finetune"] == "2"
    assert "synthetic" not in counts
    trained = r"^rule (?:pretrain|finetune):\n(?:    .*\n)*?    wildcards: run=(\w+)\n    (resources: .*)"
    asked = {run: dict(re.findall(r"(\w+)=(\d+)", line)) for run, line in re.findall(trained, process.stdout, re.M)}
    assert (asked["uic_3k"]["gpu"], asked["uic_vgg16_strong"]["gpu"]) == ("1", "8")
    # 30 epochs of fine-tuning: 15 hours for 15 processes of 50 images a second, 7 for 10 TFLOP/s.
    assert [asked[run]["runtime"] for run in ("random_rgb", "uic_3k_fft", "uic_3k")] == ["30", "913", "1440"]
    assert {f"table{n}" for n in range(1, 8)} <= set(counts)


def test_fault_61_a_second_snakemake_is_told_who_works_in_the_results_wherever_it_is_started(tmp_path, seen):
    """FAULTS row 21 too, from another folder: Snakemake's own lock is in the folder it is started in."""
    config = small_config() | {"results": str(tmp_path / "shared")}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(config))
    target = str(tmp_path / "shared/protocols/fewshot.yaml")
    code = "import sys; from pathlib import Path; from uic_core.files import hold; hold(Path(sys.argv[1])); input()"
    first = subprocess.Popen([sys.executable, "-c", code, tmp_path / "shared"], cwd=ROOT, stdin=subprocess.PIPE)
    while not (tmp_path / "shared/.lock").exists() or not (tmp_path / "shared/.lock").read_text():
        assert first.poll() is None
    for options in ([target], ["--unlock"]):  # its own advice, while the first one works
        process = snakemake(*options, folder=tmp_path, config=tmp_path / "small.yaml")
        assert process.returncode != 0
        assert re.search(rf"process {first.pid} on \S+, started in {ROOT}, since .*, works in it; wait", process.stderr)
        assert "name another folder under `results`" in process.stderr
    seen(next(line for line in process.stderr.splitlines() if "works in it" in line))
    assert not Path(target).exists()
    first.kill()
    first.wait()
    assert snakemake(target, folder=tmp_path, config=tmp_path / "small.yaml").returncode == 0


def test_the_paper_does_not_train_over_the_demo(copy):
    config = small_config()
    config["datasets"]["generated"] = False
    replace(copy.config, yaml.safe_dump(config).encode())
    process = snakemake("-n", folder=copy.folder, config=copy.config)
    assert process.returncode != 0
    told = process.stdout + process.stderr  # a dry run reports on stdout
    assert "results holds results of generated data sets; name another folder under `results`" in told


def test_every_data_set_of_the_results_is_looked_at_before_anything_is_written(tmp_path):
    """Not the first alone; and one that cannot be read is named."""
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small_config()))
    datasets = validate(small_config(), "small.yaml").datasets
    save(datasets.one("imagenet"), tmp_path / "results/data/imagenet.yaml")
    receipt = tmp_path / "results/data/voc07.yaml"
    save(datasets.one("voc07").model_copy(update={"generated": False}), receipt)
    for told in ("results holds results of real data sets", "results/data/voc07.yaml: generated: missing"):
        process = snakemake("-n", "table1", folder=tmp_path, config=tmp_path / "small.yaml")
        assert process.returncode != 0
        assert told in process.stdout + process.stderr
        assert "KeyError" not in process.stdout + process.stderr
        receipt.write_text(receipt.read_text().replace("generated: false\n", ""))


def test_an_unreadable_image_stops_before_any_training_and_nothing_made_is_lost(copy):
    """As a data set that was changed under a finished folder: the check runs again and fails."""
    image = next((copy.folder / "data/datasets/voc07/VOC2007/JPEGImages").iterdir())
    replace(image, image.read_bytes()[:-200])
    kept = {file: file.read_bytes() for file in (copy.folder / "results").glob("runs/*/[!.]*.*")}
    process = snakemake("--forcerun", "check", "--until", "check", folder=copy.folder, config=copy.config)
    assert process.returncode != 0
    assert f"datasets.voc07.{'trainval' if image.stem <= '000020' else 'test'}_images" in process.stderr
    assert image.name in process.stderr
    assert "remedy: " in process.stderr
    assert kept == {file: file.read_bytes() for file in (copy.folder / "results").glob("runs/*/[!.]*.*")}


def test_a_corrupt_checkpoint_stops_its_evaluations_alone_and_is_named(copy):
    checkpoint = copy.folder / "results/runs/uic_5k/checkpoint.safetensors"
    replace(checkpoint, checkpoint.read_bytes()[:-1000])
    others = [file for file in (copy.folder / "results/metrics").glob("*/*.json") if file.parent.name != "uic_5k"]
    kept = {file: file.read_bytes() for file in others}
    process = snakemake("table1", folder=copy.folder, config=copy.config)
    assert process.returncode != 0
    assert "results/runs/uic_5k/checkpoint.safetensors: " in process.stderr
    assert "Traceback" not in process.stderr
    assert kept == {file: file.read_bytes() for file in others}


def test_an_absent_data_root_stops_before_any_training(tmp_path):
    config = small_config()
    config["datasets"] |= {"generated": False}
    config["datasets"]["folders"]["imagenet"]["source"] = "ILSVRC-2012"
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(config))
    process = snakemake("table1", folder=tmp_path, config=tmp_path / "small.yaml")
    assert process.returncode != 0
    assert "datasets.folders.imagenet.root: data/datasets/imagenet: there is no such folder" in process.stderr
    assert "remedy: get ILSVRC-2012" in process.stderr
    assert not list((tmp_path / "results").glob("runs/*/checkpoint.safetensors"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("epochs: 1", "epoch: 1", 1), "unknown key; did you mean 'epochs'?"),
        (lambda text: text + "scale: demo\n", "key 'scale' stands twice; remove one of them"),
        (lambda text: text.replace("lr: 0.02", "lr: 1e-4", 1), "YAML reads 1e-4 as text"),
    ],
)
def test_a_wrong_config_stops_before_any_job(copy, change, message):
    changed = change(copy.config.read_text())
    assert changed != copy.config.read_text()
    replace(copy.config, changed.encode())
    process = snakemake(folder=copy.folder, config=copy.config)
    assert process.returncode != 0
    assert message in process.stderr
    assert "small.yaml" in process.stderr
    assert "Traceback" not in process.stderr


def experiment(folder: Path) -> dict[str, Any]:
    """A config with one run, `mine`, and a tables file with one table, of its linear probe of conv5."""
    column = {"name": "conv5", "evaluation": "linear_probe", "value": "conv5"}
    row = {"name": "Mine", "run": "mine", "extra": True}
    table = {"title": "Mine", "stub": "Run", "tolerance": 1.0, "columns": [column], "rows": [row]}
    (folder / "tables.yaml").write_text(yaml.safe_dump({"tables": {12: table}}))
    (folder / "published.csv").write_text("table,row,column,value,source\n")
    config = small_config()
    config["runs"] = {"mine": config["runs"]["uic_3k"]}
    config |= {"tables": str(folder / "tables.yaml"), "published": str(folder / "published.csv")}
    (folder / "small.yaml").write_text(yaml.safe_dump(config))
    return config


def test_fault_33_partial_tables_are_made_each_time(tmp_path, seen):
    config = validate(experiment(tmp_path), "small.yaml")
    section, arch = config.evaluations.linear_probe.model_dump(), config.runs["mine"].arch
    protocol = section | {key: section[key][arch] for key in ("layers", "crop", "images", "val_images")}
    origin = metrics.Origin("mine", "c", config.runs["mine"].hash(), 1.0, (0,), "")
    found = metrics.Metrics(
        evaluation="linear_probe", run="mine", dataset=metrics.Dataset(name="imagenet", fingerprint="0", sizes={}),
        values={}, protocol=protocol, provenance=metrics.provenance(origin, seed=0),
    )  # fmt: skip
    for number in (40.0, 50.0):
        values = {"conv5": metrics.Value(value=number, unit="%")}
        metrics.write(tmp_path / "results/metrics/mine/linear_probe.json", found.model_copy(update={"values": values}))
        process = snakemake("partial", folder=tmp_path, config=tmp_path / "small.yaml")
        assert process.returncode == 0, process.stderr
        table = (tmp_path / "results/tables/partial/table12.md").read_text()
        seen(table.splitlines()[-8:])
        assert f"| **Mine** | **{number}** |" in re.sub(" +", " ", table)


def test_an_experiment_has_its_own_runs_and_tables(tmp_path):
    """Another tables file: its one table, no figure of pseudo-labels, nothing of what no table shows."""
    experiment(tmp_path)
    process = snakemake("-n", folder=tmp_path, config=tmp_path / "small.yaml")
    assert process.returncode == 0, process.stderr
    counts = dict(re.findall(r"^(\w+) +(\d+)$", process.stdout, flags=re.MULTILINE))
    assert counts["pretrain"] == counts["linear_probe"] == counts["table12"] == "1"
    assert not counts.keys() & {"clusters", "detection", "segmentation", "fewshot", "fig3", "table_detection", "table1"}
