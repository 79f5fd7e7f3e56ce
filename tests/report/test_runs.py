"""What a run's files say, and what is said of damaged ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from uic_core.config import Config
from uic_core.files import write_json, write_text
from uic_core.recipe import save
from uic_core.report import runs
from uic_core.run import metrics


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        (b"", []),
        (b"one\ntwo\n", ["one", "two"]),
        (b"no newline", ["no newline"]),
        (b" 10%|#  |\r 50%|## |\r100%|###|\ndone\r\n", ["100%|###|", "done"]),
        (b"\x1b[31mred\x1b[0m \x1b]0;title\x07text\x1b[2K\n", ["red text"]),
        (b"\xff\xc3\n", ["\ufffd\ufffd"]),
        (b"x" * 1000, ["x" * 400 + "…"]),
        (b"\n\nend\n", ["", "", "end"]),
    ],
)
def test_a_log_is_read_as_a_terminal_shows_it(content: bytes, shown: list[str], tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(content)
    found = runs.tail(tmp_path / "log")
    assert found
    assert (found.lines, found.whole) == (shown, True)


def test_of_a_long_log_the_end_is_read_in_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("".join(f"line {number}\n" for number in range(100_000)))
    found = runs.tail(path, lines=3)
    assert found
    assert (found.lines, found.whole) == (["line 99997", "line 99998", "line 99999"], False)
    every = runs.tail(path, lines=10**6)
    assert every
    assert not every.whole
    assert every.lines == [f"line {number}" for number in range(100_000 - len(every.lines), 100_000)]


def test_what_is_no_log_is_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # would block who opens it
    for name in ("pipe", "absent", "."):
        assert runs.tail(tmp_path / name) is None


def read(results: Path, paper: Config, *wanted: Path) -> runs.Run:
    return runs.read(results, {"uic_3k": paper.runs["uic_3k"].hash()}, wanted)["uic_3k"]


def test_a_run_s_files_are_read_and_its_recipe_is_the_config_s(tmp_path: Path, paper: Config) -> None:
    folder = tmp_path / "runs/uic_3k"
    assert not read(tmp_path, paper).problems
    save(paper.runs["uic_3k"], folder / "recipe.yaml")
    write_text(folder / "history.jsonl", '{"epoch": 0, "loss": 2, "lr": 0.1}\n{"epoch": 1, "loss": 1.5, "lr": 0.05}\n')
    found = read(tmp_path, paper)
    assert found.problems == []
    assert found.recipe["classes"] == 3000
    assert found.history == {"loss": [2.0, 1.5], "lr": [0.1, 0.05]}
    assert (found.epochs, found.finished) == (2, False)
    save(paper.runs["uic_5k"], folder / "recipe.yaml")
    assert f"is of recipe {paper.runs['uic_5k'].hash()}, but the config has" in read(tmp_path, paper).problems[0]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("recipe.yaml", "a: [", "recipe.yaml:1: is not valid YAML"),
        ("recipe.yaml", "a: 2020-01-01", "not JSON serializable"),
        ("training.json", "{", "training.json: is damaged (JSONDecodeError); delete it"),
        ("training.json", "{}", "training.json: is damaged (ValidationError); delete it"),
        ("history.jsonl", "{", "history.jsonl:1: is no epoch of a history (JSONDecodeError"),
        ("history.jsonl", "[]", "is no epoch of a history (AttributeError"),
        ("history.jsonl", '{"loss": NaN}', "not finite, or too large"),
        ("history.jsonl", '{"loss": 1e308}', "not finite, or too large"),
        ("history.jsonl", '{"loss": %s}' % ("9" * 400), "is no epoch of a history (OverflowError"),
        ("history.jsonl", '{"loss": "x"}', "is no epoch of a history (ValueError"),
        ("history.jsonl", '{"loss": 1}\n{"lr": 1}', "other numbers than in the first line"),
        ("history.jsonl", "[" * 100_000, "is no epoch of a history (RecursionError"),
    ],
)
def test_a_damaged_file_is_told(name: str, content: str, told: str, tmp_path: Path, paper: Config) -> None:
    write_text(tmp_path / "runs/uic_3k" / name, content)
    found = read(tmp_path, paper)
    assert len(found.problems) == 1
    assert told in found.problems[0]
    assert found.history == {}


def test_metrics_in_another_run_s_folder_are_refused(
    tmp_path: Path, paper: Config, make_metrics: Callable[..., metrics.Metrics]
) -> None:
    value = {"nmi": metrics.Value(value=1.0, unit="%")}
    own = make_metrics("uic_3k", "clusters", value, recipe_hash=paper.runs["uic_3k"].hash())
    metrics.write(tmp_path / "metrics/uic_3k/clusters.json", own)
    metrics.write(tmp_path / "metrics/uic_3k/fewshot.json", own)
    clusters, fewshot = read(tmp_path, paper).evaluations
    assert clusters.metrics == own
    assert fewshot.metrics is None
    assert "speaks of uic_3k/clusters" in fewshot.reason


def test_a_checkpoint_is_held_against_what_each_seed_s_training_wrote(
    tmp_path: Path, paper: Config, make_metrics: Callable[..., metrics.Metrics]
) -> None:
    """Of a mean over seeds, the checkpoints are named in the order of its runs."""
    recipes = dict.fromkeys(("uic_3k", "uic_3k_seed1"), "r")
    value = {"nmi": metrics.Value(value=1.0, unit="%", std=0.1, seeds=2)}
    mean = make_metrics("uic_3k", "clusters", value, checkpoint_hash=f"{'a' * 16}+{'b' * 16}")
    path = tmp_path / "metrics/uic_3k/clusters.seeds.json"
    metrics.write(path, mean.model_copy(update={"protocol": {"runs": list(recipes)}}))
    training = {
        "commit": "f", "dirty": False, "date": "2026-01-02", "versions": {}, "hardware": "cpu", "processes": 1,
        "wall_seconds": 1.0,
    }  # fmt: skip
    for run, digest, refused in (
        ("uic_3k", "a" * 64, False),
        ("uic_3k_seed1", "b" * 64, False),
        ("uic_3k_seed1", "c" * 64, True),
    ):
        write_json(tmp_path / "runs" / run / "training.json", training | {"files": {"checkpoint.safetensors": digest}})
        (found,) = runs.read(tmp_path, recipes, [path])["uic_3k"].evaluations
        assert (found.metrics is None) == refused
    assert "the training of run 'uic_3k_seed1' wrote cccc" in found.reason
