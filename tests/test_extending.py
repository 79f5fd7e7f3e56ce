"""The changes of docs/extending.md, applied to a copy of the tree, do what the page promises."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from uic_core.data.index import build_folder
from uic_core.strict_yaml import read_yaml

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()
SMALL = {"image_size": 64, "resize": 73, "images": 0, "batch_size": 16, "precision": "fp32"}


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree with every change of the page, in its order."""
    folder = tmp_path_factory.mktemp("extended")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    changes = re.findall(r"```diff\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(changes) == len(re.findall(r"^## ", PAGE, flags=re.MULTILINE))
    for change in changes:
        subprocess.run(["git", "apply", "-"], cwd=folder, input=change, text=True, check=True)
    demo = folder / "config" / "demo.yaml"
    fewer = {
        "train_images: 2000": "train_images: 200",
        "val_images: 300": "val_images: 60",
        " images: 1000": " images: 100",
        "vgg16: 300": "vgg16: 40",
        "vgg16: 100": "vgg16: 40",
        ": 640": ": 64",
        ": 150": ": 60",
        "alexnet: 1000, alexnet_rotnet: 1000": "alexnet: 200, alexnet_rotnet: 200",
    }
    for old, new in fewer.items():
        assert old in demo.read_text()
        demo.write_text(demo.read_text().replace(old, new))
    return folder


@pytest.fixture(scope="module")
def index(demo_data: SimpleNamespace, extended: Path) -> Path:
    build_folder(demo_data.imagenet, "train", "imagenet").save(extended / "train.npz")
    build_folder(demo_data.imagenet, "val", "imagenet").save(extended / "val.npz")
    return extended / "train.npz"


def environment(extended: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(extended)}


def start(extended: Path, *command: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, command)], cwd=extended, text=True, env=environment(extended),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def run(extended: Path, *command: object) -> str:
    process = start(extended, *command)
    told, _ = process.communicate()
    assert process.returncode == 0, told
    return told


def trained(extended: Path, index: Path, name: str, **changes: object) -> tuple[Path, list[object]]:
    """The folder of a run of config/demo.yaml with these changes, and the command that trains it."""
    recipe = read_yaml(extended / "config" / "demo.yaml")["runs"][name]
    folder = extended / "runs" / name
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe | SMALL | changes))
    return folder, ["uic_core.pretrain", "--recipe", folder / "recipe.yaml", "--train-index", index, "--out", folder]


def probed(extended: Path, folder: Path, arch: str) -> dict[str, dict[str, float]]:
    """Values of a short linear probe of a run."""
    section = read_yaml(extended / "config" / "demo.yaml")["evaluations"]["linear_probe"]
    few = {key: dict.fromkeys(section[key], 0) for key in ("images", "val_images")}
    layers = section["layers"] | ({"alexnet": ["conv5"]} if arch == "alexnet" else {})
    (folder / "probe.yaml").write_text(yaml.safe_dump(section | few | {"layers": layers, "epochs": 2, "lr_steps": [1]}))
    run(
        extended, "uic_core.evaluate.linear_probe", "--run", folder.name, "--checkpoint",
        folder / "checkpoint.safetensors", "--protocol", folder / "probe.yaml", "--train-index", extended / "train.npz",
        "--val-index", extended / "val.npz", "--out", folder / "linear_probe.json", "--threads", 1,
    )  # fmt: skip
    values: dict[str, dict[str, float]] = json.loads((folder / "linear_probe.json").read_text())["values"]
    return values


def test_the_method_trains_resumes_and_is_evaluated(extended: Path, index: Path) -> None:
    folder, command = trained(extended, index, "upright", epochs=6)
    process = start(extended, *command)
    while not (folder / "history.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    told, _ = process.communicate()
    assert process.returncode == 75, told
    assert "going on from epoch" in run(extended, *command)
    assert [json.loads(line)["epoch"] for line in (folder / "history.jsonl").read_text().splitlines()] == list(range(6))
    assert 0 <= probed(extended, folder, "alexnet")["conv5"]["value"] <= 100


def test_the_evaluation_is_made_by_its_rule(extended: Path) -> None:
    """Of a run that does not train; the features of one image in twenty classes find some of their kind."""
    process = start(extended, "snakemake", "--profile", "profiles/demo", "results/metrics/random_rgb/class_means.json")
    told, _ = process.communicate()
    assert process.returncode == 0, told
    found = json.loads((extended / "results/metrics/random_rgb/class_means.json").read_text())
    assert found["protocol"] == {"data": "imagenet"}
    assert 5 < found["values"]["top1"]["value"] <= 100
    assert found["dataset"]["sizes"] == {"train": 200, "val": 60}
    code = "from pathlib import Path; from uic_core.config import read; from uic_core.overview import recorded; "
    code += "made = Path('results/metrics/random_rgb/class_means.json'); "
    code += "assert recorded.difference(read([Path('config/demo.yaml')]), made) == ''"
    process = subprocess.run([sys.executable, "-c", code], cwd=extended, env=environment(extended))
    assert process.returncode == 0, "what it records does not say that it is of this config"
    planned = run(extended, "uic_core.overview.plan", "--config", "config/demo.yaml")
    assert "class_means" not in planned, "no table shows it"


def test_a_config_may_leave_out_the_evaluation(extended: Path) -> None:
    """All else is made; of the evaluation itself one line says what is missing."""
    command = ("snakemake", "-n", "--replace-workflow-config", "--configfile", "config/cifar10_small.yaml", "--")
    assert "rule protocol:" in run(extended, *command, "results/cifar10_small/protocols/knn.yaml")
    process = start(extended, *command, "results/cifar10_small/metrics/uic_128/class_means.json")
    told, _ = process.communicate()
    assert process.returncode == 1
    assert "class_means.json: the config has no evaluations.class_means; add the section" in told, told


def test_the_architecture_trains_and_is_evaluated(extended: Path, index: Path) -> None:
    folder, command = trained(extended, index, "uic_resnet18", epochs=1, classes=4)
    run(extended, *command)
    assert "avgpool" in probed(extended, folder, "resnet18")


def test_the_data_set_is_made_checked_and_trained_on(extended: Path) -> None:
    """By the workflow; and without its class folders."""
    process = start(extended, "snakemake", "--profile", "profiles/demo", "results/index/photos_train.npz")
    told, _ = process.communicate()
    assert process.returncode == 0, told
    root, flat = extended / "data" / "demo" / "photos", extended / "flat"
    (flat / "train").mkdir(parents=True)
    for path in (root / "train").rglob("*.JPEG"):
        path.rename(flat / "train" / path.name)
    section = {"root": str(flat), "classes": 0, "train_images": 100, "val_images": 0, "source": ""}
    written = {"name": "flat", "generated": False, "seed": 0, "section": section}
    (extended / "flat.yaml").write_text(yaml.safe_dump(written))
    command = ("uic_core.data.index", "--dataset", "flat.yaml", "--split", "train", "--out", extended / "flat.npz")
    run(extended, *command)
    folder, command = trained(extended, extended / "flat.npz", "uic_photos", epochs=1)
    run(extended, *command)
    (line,) = (folder / "history.jsonl").read_text().splitlines()
    assert json.loads(line)["nmi_annotated"] == 0


def test_what_was_added_is_checked_planned_and_made(extended: Path) -> None:
    """The row of the table asks for the run; its evaluations are in the plan, and in the workflow."""
    demo = ("--config", "config/demo.yaml")
    assert re.search(r"^pretrain .*", run(extended, "uic_core.overview.plan", *demo), flags=re.MULTILINE)
    told = run(extended, "uic_core.overview.status", *demo)
    assert re.search(r"^upright +0/2 epochs +0/2 +linear_probe, knn", told, flags=re.MULTILINE), told
    code = "from pathlib import Path; from uic_core.config import validate; "
    code += "from uic_core.strict_yaml import read_yaml; "
    code += "content = read_yaml(Path('config/demo.yaml')); content['runs']['upright'] |= {'classes': 3}; "
    code += "validate(content, 'mine.yaml')"
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=extended, env=environment(extended),
        capture_output=True, text=True,
    ).stderr  # fmt: skip
    assert "runs.upright.classes: 3, but an image stands upright or not; write 2" in told
    process = subprocess.run(
        [
            sys.executable, "-m", "snakemake", "-n", "--profile", "profiles/demo", "results/tables/table3.md",
            "results/metrics/uic_resnet18/fewshot.json",
        ],
        cwd=extended, env=environment(extended), capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    for name in ("upright", "uic_resnet18"):
        assert re.search(rf"rule pretrain:\n(?:    .*\n)*?    wildcards: run={name}\n", process.stdout), name
