"""The plan has the workflow's jobs, and schedules them as n slots can."""

from __future__ import annotations

import dataclasses
import itertools
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from tests import forked
from uic_core.config import read, validate
from uic_core.evaluations.counting import count
from uic_core.overview import plan
from uic_core.overview.costs import Job, training
from uic_core.overview.rates import Rates, assumed
from uic_core.strict_yaml import read_yaml

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "config"


def rates(slots: int, *, gpu: bool = True, cpus: int = 16) -> Rates:
    """A FLOP a second, an image a second, no start."""
    start = {"core": 0.0, "openmmlab": 0.0, "report": 0.0}
    return Rates({"alexnet": 1.0}, {"alexnet": 1.0}, 1.0, 1.0, start, cpus, slots, gpu, "test")


def work(name: str, seconds: float, *needs: str, arch: str = "alexnet") -> Job:
    return Job(name, "", tuple((need, "") for need in needs), "core", arch, flops=seconds if arch else 0)


def wall(jobs: list[Job], slots: int, **more: bool) -> float:
    return plan.wall({job.key: job for job in jobs}, rates(slots, **more))


def test_a_case_by_hand() -> None:
    # a(3) and b(2) first; c(4) after a; d(1) after b and c: 8 on any number of GPUs, 10 on one.
    jobs = [work("a", 3), work("b", 2), work("c", 4, "a"), work("d", 1, "b", "c")]
    assert [wall(jobs, slots) for slots in (1, 2, 3)] == [10, 8, 8]


def test_the_longest_chain_goes_first() -> None:
    jobs = [work("short", 1), work("other", 1), work("head", 1), work("tail", 8, "head")]
    assert wall(jobs, 2) == 9


def test_jobs_without_a_gpu_wait_for_none() -> None:
    jobs = [work("gpu", 5), *(work(f"cpu{n}", 0, arch="") for n in range(9))]
    assert wall(jobs, 1) == 5


def test_a_job_of_several_gpus_waits_for_them_and_is_that_much_faster() -> None:
    both = dataclasses.replace(work("both", 8), gpus=2)
    assert [wall([both], slots) for slots in (1, 2, 4)] == [8, 4, 4]
    # a(3) and b(1) first; then `both`, which the short ones that come after it do not hold up: 3 + 4 + 1
    jobs = [work("a", 3), work("b", 1), dataclasses.replace(both, needs=(("b", ""),)), *(work(n, 1) for n in "cd")]
    assert wall(jobs, 2) == 8


def test_a_schedule_is_between_its_bounds() -> None:
    # Property: no faster than the work over the slots or than the longest chain; no slower than both together (Graham).
    chance = random.Random(0)
    for _, slots in itertools.product(range(30), (1, 2, 5)):
        jobs: list[Job] = []
        chain: dict[str, float] = {}
        for number in range(12):
            needs = [job.rule for job in jobs if chance.random() < 0.2]
            seconds = chance.randint(1, 9)
            jobs.append(work(str(number), seconds, *needs))
            chain[str(number)] = seconds + max((chain[need] for need in needs), default=0)
        total, longest, taken = sum(job.flops for job in jobs), max(chain.values()), wall(jobs, slots)
        assert max(total / slots, longest) <= taken <= total / slots + longest
        assert slots > 1 or taken == total


def test_a_job_lasts_as_long_as_the_slower_of_arithmetic_and_decoding() -> None:
    job = Job("pretrain", "", (), "core", "alexnet", flops=10, images=150, cpus=16)
    assert rates(1).seconds(job) == 10  # 15 of 16 CPUs decode
    assert rates(1).seconds(dataclasses.replace(job, rule="detection", cpus=8)) == 150 / 7  # it takes eight
    assert rates(1, cpus=2).seconds(job) == 150
    assert rates(1, gpu=False, cpus=1).seconds(job) == 160


def test_what_is_bound_by_decoding_and_what_a_cache_saves() -> None:
    """By hand, in hours: 10 and 1 of arithmetic, 20 each of decoding on 15 of 16 CPUs; the third one has 30.

    From JPEGs of 256 pixels decoding takes 20 ÷ 2.6 = 7.7, from pixels 20 ÷ 6.8 = 2.9: (20 - 10) + (20 - 7.7) and
    (20 - 10) + (20 - 2.9) are saved.
    """
    content = read_yaml(CONFIG / "paper.yaml")
    config = validate(content, "paper.yaml")
    hours = {"uic_3k": 10, "uic_5k": 1, "uic_10k": 30}
    jobs = [
        Job("pretrain", run, (), "core", "alexnet", flops=3600 * taken, images=3600 * 20 * 15, cpus=16)
        for run, taken in hours.items()
    ]
    jobs.append(dataclasses.replace(jobs[1], rule="linear_probe"))
    assert "".join(plan.decoding(config, jobs, rates(1))) == (
        "imagenet: bound by decoding on 16 CPUs a GPU (times the arithmetic): uic_3k 2.0, uic_5k 20.0; a cache of 256 "
        "pixels:  jpeg, 44 GB, saves 22.3 GPU-hours; uint8, 330 GB, saves 27.1 GPU-hours"
    )
    assert plan.decoding(config, jobs[2:3], rates(1)) == ["no training is bound by decoding on 16 CPUs a GPU"]
    content["datasets"]["cache"]["format"] = "jpeg"
    assert plan.decoding(validate(content, "paper.yaml"), jobs, rates(1)) == []


def test_a_training_from_a_cache_waits_less_for_decoding() -> None:
    """By hand: 500 epochs on an A100 with 15 CPUs of 750 files a second, of which JPEGs of 256 pixels make 1,950."""
    content, hours = read_yaml(CONFIG / "paper.yaml"), {}
    for format in ("none", "jpeg", "device"):
        content["datasets"]["cache"]["format"] = format
        config = validate(content, "paper.yaml")
        assumption = assumed(config, 312, 8)
        hours[format] = assumption.decoding(training(config, "uic_3k")) / 3600
    alone = 500 * 1_281_167 / 15 / 750 / 3600
    assert hours == pytest.approx({"none": alone, "jpeg": alone / 2.6, "device": 0})


@pytest.mark.parametrize("option", ["--gpus=0", "--gpus=-1", "--cpus=0", "--peak=0", "--peak=nan"])
def test_fault_68_a_machine_of_nothing_is_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        plan.main(["--config", str(CONFIG / "demo.yaml"), option])
    assert stop.value.code == 2
    assert "is not above 0; give a number that is" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [
        ["paper", "peers"],
        ["demo"],
        ["cifar10", "cifar10_seeds"],
        ["cifar10_small"],
        ["cifar10_224"],
        ["cifar10_search"],
    ],
    ids=" ".join,
)
def test_it_has_the_jobs_of_the_workflow(names: list[str], tmp_path: Path) -> None:
    """Rule by rule, but for those that only write a part of the config to a file."""
    paths = [CONFIG / f"{name}.yaml" for name in names]
    config = read(paths)
    text = plan.report(config, assumed(config, 312, 8))
    planned: dict[str, int] = Counter()
    for evaluation, jobs in re.findall(r"^(\w+)  +(\d+)  +[\d.]+  +[\d.]+  +", text, re.M):
        if not re.match("table|all|alone", evaluation):
            planned[rule_of(evaluation)] += int(jobs)
    process = forked.snakemake(
        "-n", "--snakefile", str(ROOT / "Snakefile"), "--replace-workflow-config", "--directory", str(tmp_path),
        "--cores", "1", "--configfile", *map(str, paths),
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    counted = {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", process.stdout, re.M)}
    written = {"all", "total", "seeds", "recipe", "protocol", "dataset", "summary", "index_page"}
    expected = {rule: n for rule, n in counted.items() if rule not in written and not re.match("table|fig", rule)}
    # one line for both index files of the images that are trained on
    expected["index"] -= 1
    assert planned == expected
    asked = dict(
        re.findall(r"^(?:local)?rule (\w+):\n(?:    .*\n)*?    resources: .*?mem_mb=(\d+)", process.stdout, re.M)
    )
    for job in plan.everything(config).values():
        rule = rule_of(job.rule)
        assert job.gigabytes() == int(asked[rule]) / 1000, rule


def rule_of(evaluation: str) -> str:
    """The rule of an evaluation: some have several."""
    return re.sub("_(fc6_8|all|batch_norm|selflabel)$", "", evaluation)


def test_a_cache_is_a_job_and_takes_its_disk() -> None:
    path = CONFIG / "paper.yaml"
    content = read_yaml(path)
    content["datasets"]["cache"]["format"] = "uint8"
    jobs = plan.jobs_of(validate(content, str(path)), [("uic_5k", "linear_probe")])
    # config/README.md: 330 GB as pixels, 45 GB as JPEG
    assert jobs["cache", "imagenet"].bytes / 1e9 == pytest.approx(330, rel=0.05)
    assert ("cache", "imagenet") in jobs["pretrain", "uic_5k"].needs
    content["datasets"]["cache"]["format"] = "jpeg"
    jobs = plan.jobs_of(validate(content, str(path)), [("uic_5k", "linear_probe")])
    assert jobs["cache", "imagenet"].bytes / 1e9 == pytest.approx(45, rel=0.05)


def test_seeds_multiply_runs(tmp_path: Path) -> None:
    path = CONFIG / "paper.yaml"
    content = read_yaml(path)
    plain = validate(content, str(path))
    several = validate(content | {"seeds": {"uic_5k": [1, 2, 3]}}, str(path))
    hours = {}
    for name, config in (("plain", plain), ("several", several)):
        jobs = plan.jobs_of(config, [("uic_5k", "linear_probe")])
        hours[name] = sum(job.flops for job in jobs.values())
    assert hours["several"] == 4 * hours["plain"]


def test_a_wrong_config_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.yaml"
    path.write_text((CONFIG / "paper.yaml").read_text().replace("scale: paper", "scales: paper"))
    with pytest.raises(SystemExit) as caught:
        plan.main(["--config", str(path)])
    assert caught.value.code == 2
    assert "did you mean 'scale'?" in capsys.readouterr().err


def test_evaluations_are_planned_in_float32():
    config = validate(read_yaml(CONFIG / "paper.yaml"), "paper.yaml")
    rates = assumed(config, 312, 8)
    evaluation = Job("linear_probe", "uic_3k", (), "core", arch="alexnet", flops=1e18)
    training = dataclasses.replace(evaluation, rule="pretrain")
    assert rates.seconds(evaluation) > 3 * rates.seconds(training)


def test_centre_crop_passes_are_planned_in_float32() -> None:
    """By hand: 12 operations of training at 2 a second, and of the pass 5 at 1 a second."""
    both = dataclasses.replace(work("pretrain", 17), exact=5)
    faster = dataclasses.replace(rates(1), flops={"alexnet": 2.0})
    assert faster.seconds(both) == 12 / 2 + 5
    config = validate(read_yaml(CONFIG / "paper.yaml"), "paper.yaml")
    jobs = plan.jobs_of(config, [("deepcluster", "linear_probe"), ("uic_3k_fft", "linear_probe")])
    size = count("alexnet", 3000, 224, True)
    images = config.datasets.folders["imagenet"].train_images
    assert jobs["pretrain", "uic_3k"].exact == 0
    assert jobs["finetune", "uic_3k_fft"].exact == images * size.forward
    size = count("alexnet", config.runs["deepcluster"].classes, 224, True)
    deepcluster = jobs["pretrain", "deepcluster"]
    forward = images * config.runs["deepcluster"].epochs * size.forward
    assert deepcluster.exact == pytest.approx(forward + deepcluster.labelling.operations)
