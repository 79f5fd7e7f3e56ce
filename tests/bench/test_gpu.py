"""What bench/gpu assembles, where no GPU is at hand."""

from __future__ import annotations

import json
import math
import re
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from bench import gpu, kernels, variants
from bench.measure import Bars
from uic_core.models import ARCHS
from uic_core.pretrain.loop import Trainer


@pytest.mark.parametrize(("arch", "giga"), [("alexnet", 6.5), ("resnet50", 24.3)])
def test_a_step_costs_what_the_protocol_says(arch, giga):
    """Forward and backward of an image at 224 pixels, 3,000 classes."""
    assert gpu.flops(gpu.recipe_of(arch)) / 1e9 == pytest.approx(giga, rel=0.02)
    assert ARCHS[arch].training_gflop == giga


@pytest.mark.parametrize(
    ("arch", "augmentation", "batch"),
    [("alexnet", "standard", 256), ("resnet50", "strong", 128), ("vgg16", "strong", 128)],
)
def test_recipes_are_the_papers(arch, augmentation, batch):
    recipe = gpu.recipe_of(arch)
    assert (recipe.augmentation, recipe.batch_size, recipe.classes) == (augmentation, batch, 3000)
    assert (recipe.image_size, recipe.sobel) == (224, arch == "alexnet")


def test_a_rate_becomes_a_share_of_the_matrix_rate():
    bars = Bars("gpu")
    rates = {"resident": [100.0], "end to end": [80.0], "batch × 4": [110.0], "strong": [95.0]}
    gpu.report(bars, "alexnet", 2e9, [1e12], rates)
    shown = [line.split()[:3] for line in bars.lines]
    assert shown == [
        ["MISS", "gpu-alexnet", "0.2"],
        ["MISS", "gpu-end-to-end-alexnet", "0.8"],
        ["PASS", "gpu-batch-256", "0.9091"],
        ["PASS", "gpu-strong", "0.95"],
    ]
    assert bars.missed


def test_without_a_gpu_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    gpu.main([])
    assert capsys.readouterr().out == "no GPU at hand: bench/gpu measures nothing here\n"


@pytest.mark.parametrize(
    ("arch", "augmentation"), [("alexnet", "standard"), ("resnet50", "strong"), ("vgg16", "strong")]
)
def test_a_profile_of_a_tiny_step_and_its_file(arch, augmentation, capsys, tmp_path, monkeypatch):
    """On a CPU, in seconds; a second call says what the first one found."""
    monkeypatch.setitem(gpu.TINY, "batch_size", 2)
    arguments = ["--profile", "--parts", f"profile-{arch}", "--out", str(tmp_path / "new" / "gpu.jsonl")]
    said = []
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            gpu.main(arguments)
        assert not ended.value.code
        said.append(capsys.readouterr().out)
        monkeypatch.setattr(gpu, "profiled", None)
    tables = said[0].split(f"{arch}, {augmentation}, batches of 2, ")[1:]
    for table, name in zip(tables, ("resident", "end to end"), strict=True):
        assert table.startswith(f"{name}: ")
        groups = {line.rsplit(maxsplit=3)[0]: float(line.split()[-3]) for line in table.splitlines()[3:12]}
        assert list(groups) == list(kernels.GROUPS)
        assert min(groups.values()) > 0
    assert said[1].split(f"{arch}, ")[1:] == said[0].split(f"{arch}, ")[1:]


def parts(done: list[str]) -> dict[str, gpu.Part]:
    def good(bars, _):
        done.append("good")
        bars.say("a table")
        gpu.judge(bars, "gpu-alexnet", [0.4])

    def bad(*_):
        done.append("bad")
        raise ValueError("no such kernel")

    return {
        "good": gpu.Part(60, ("gpu-alexnet",), good),
        "bad": gpu.Part(60, ("gpu-vgg16",), bad),
        "long": gpu.Part(900, ("gpu-resnet50", "gpu-strong"), good),
    }


def test_a_second_call_measures_what_is_left(tmp_path, monkeypatch, capsys):
    """Not what is kept from the same hardware and code; what failed or had no time is measured again."""
    done: list[str] = []
    monkeypatch.setattr(gpu, "PARTS", parts(done))
    expected = [
        "PASS gpu-alexnet 0.4 [0.4 … 0.4] >= 0.3",
        "MISS gpu-bad ended with an error",
        "open gpu-resnet50 >= 0.14",
        "open gpu-strong >= 0.9",
    ]
    calls = [
        (("one", "a"), ["good", "bad"]),
        (("one", "a"), ["bad"]),
        (("two", "a"), ["good", "bad"]),
        (("one", "b"), ["good", "bad"]),
        (("one", "a"), ["bad"]),
    ]
    for call, worked in calls:
        done.clear()
        bars = Bars("gpu")
        gpu.measure(list(gpu.PARTS), bars, gpu.Kept(tmp_path / "file", *call), gpu.Images(tmp_path), 10)
        assert bars.lines == expected
        assert bars.said == ["a table"]
        assert done == worked
        assert bars.missed
    assert "no such kernel" in capsys.readouterr().err
    records = [json.loads(line) for line in (tmp_path / "file").read_text().splitlines()]
    assert {(each["hardware"], each["code"], each["part"]) for each in records} == {
        (*call, part) for call, _ in calls for part in ("good", "long")
    }


def test_an_arm_that_failed_is_measured_again(tmp_path, monkeypatch):
    """The first call says which one, the second one keeps what it finds."""
    rates = iter([math.nan, 12.0])
    arms = []

    def raced(asked, pairs):
        arms.append((list(asked), pairs))
        return {"as it is": [10.0] * pairs, "CUDA graphs": [next(rates)] * pairs}, [1.0]

    monkeypatch.setattr(gpu, "raced", raced)
    part = gpu.Part(1, (), partial(gpu.changed, "vgg16", {"CUDA graphs": variants.graphed}, pairs=3))
    monkeypatch.setattr(gpu, "PARTS", {"variants-vgg16": part})
    found = []
    for _ in range(3):
        bars = Bars("gpu")
        gpu.measure(["variants-vgg16"], bars, gpu.Kept(tmp_path / "file", "one", "a"), gpu.Images(tmp_path), 10)
        found.append((bars.lines, bars.said[1].split(", ", 2)[2]))
    assert found == [
        (["open gpu-variants-vgg16: CUDA graphs failed"], "CUDA graphs: nan images/s, nan of the step as it is"),
        *2 * [([], "CUDA graphs: 12 images/s, 1.200 of the step as it is")],
    ]
    assert arms == 2 * [(["as it is", "CUDA graphs"], 3)]


def test_numbers_of_an_earlier_version_are_not_this_ones(tmp_path, monkeypatch):
    """A file from before versions were noted is read, too."""
    for folder in ("bench", "uic_core/data"):
        (tmp_path / folder).mkdir(parents=True)
    sources = [tmp_path / "bench" / "gpu.py", tmp_path / "uic_core" / "data" / "crop.py", tmp_path / "paper.yaml"]
    for source in sources:
        source.write_text("before")
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    monkeypatch.setattr(gpu, "PAPER", sources[-1])
    versions = [gpu.code()]
    for source in sources:
        source.write_text("after")
        versions.append(gpu.code())
    assert len(set(versions)) == 4
    file = tmp_path / "file"
    file.write_text('{"part": "good", "hardware": "one", "said": ["a table"], "bars": []}\n')
    assert not gpu.Kept(file, "one", versions[0]).recall("good", Bars("gpu"))


def test_clustering_is_set_beside_the_rest_of_its_epoch(monkeypatch):
    monkeypatch.setattr(gpu, "raced", lambda arms: ({"resident": [8.0] * 5}, [1.0]))
    monkeypatch.setattr(gpu, "ARCHS", {"alexnet": SimpleNamespace(embedding_size=32)})  # 4,096 take a minute here
    bars = Bars("gpu")
    gpu.clustering(bars, None, 24, **gpu.TINY | {"pca": 4, "kmeans_iterations": 2})
    assert re.match(r"DeepCluster, 24 images in 8 clusters: whitening .* features 4 s", bars.said[0])
    assert 0 < float(bars.lines[0].split()[2]) < 1


def fixed_rate(trainer: Trainer) -> None:
    step = trainer.optimizer.step

    def at_one_rate() -> None:
        for group in trainer.optimizer.param_groups:
            group["lr"] = 0.01
        step()

    trainer.optimizer.step = at_one_rate


def no_dropout(trainer: Trainer) -> None:
    for module in trainer.network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def compiled(trainer: Trainer) -> None:
    trainer.network.compile(backend="aot_eager")


@pytest.mark.parametrize(
    ("change", "found"), [(variants.together(), 1), (compiled, 1), (fixed_rate, 0), (no_dropout, 0)]
)
def test_whether_a_step_heeds_seed_and_learning_rate(change, found):
    """A compiled one does; one whose rate, or whose dropout, is fixed does not."""
    assert gpu.heeds(gpu.recipe_of("alexnet", **gpu.TINY), change) == found


def test_all_parts_fit_into_the_time_that_it_says():
    assert sum(part.seconds for part in gpu.PARTS.values()) <= 60 * gpu.MINUTES


def test_every_bar_has_one_part():
    bars = [bar for part in gpu.PARTS.values() for bar in part.bars]
    assert sorted(bars) == sorted(gpu.BOUNDS)
