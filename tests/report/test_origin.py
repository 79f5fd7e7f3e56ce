"""A table shows no number of another run's recipe, and says what is odd about those that it shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from uic_core.errors import InputError
from uic_core.report import cells, origin, tables
from uic_core.report.filled import Filled, fill
from uic_core.report.published import read_published
from uic_core.run.metrics import Metrics, Value, write

CONFIG = Path(__file__).parents[2] / "config"
Make = Callable[..., Metrics]


def probes(make: Make, run: str, remark: str = "", loss: dict[int, float] | None = None, **facts: Any) -> Metrics:
    losses = loss or {}
    values = {
        f"conv{n}": Value(value=40.0 + n, unit="%", n=400, remark=remark, loss=losses.get(n)) for n in range(1, 6)
    }
    return make(run, "linear_probe", values, **facts)


def table_2(folder: Path, every: list[Metrics], **recipes: str) -> Filled:
    paths = [folder / f"{number}.json" for number in range(len(every))]
    for path, each in zip(paths, every, strict=True):
        write(path, each)
    declared = cells.table(CONFIG / "tables.yaml", 2)
    published = read_published(CONFIG / "published.csv", 2, declared)
    return fill(2, declared, published, paths, "paper", partial=True, recipes=recipes)


def test_fault_29_metrics_of_another_recipe_are_not_shown(
    make_metrics: Make, tmp_path: Path, seen: Callable[[object], None]
) -> None:
    every = [probes(make_metrics, run) for run in ("uic_3k_fft", "uic_3k_center_crop_fft")]
    filled = table_2(tmp_path, every, uic_3k_fft="r", uic_3k_center_crop_fft="other")
    assert [(cell.row, cell.ours is None) for cell in filled.cells.values()] == [
        *[("UIC 3k, ×", True)] * 3, *[("UIC 3k, ✓", False)] * 3
    ]  # fmt: skip
    seen(filled.problems[0])
    assert filled.problems[0].endswith(
        "1.json: is of recipe r, but run 'uic_3k_center_crop_fft' of the config has other; run snakemake to evaluate "
        "it again"
    )
    declared = cells.table(CONFIG / "tables.yaml", 2)
    with pytest.raises(InputError, match="is of recipe r, but run 'uic_3k_fft' of the config has other"):
        fill(2, declared, {}, [tmp_path / "0.json"], "paper", recipes={"uic_3k_fft": "other"})


def test_fault_29_the_recipes_of_all_seeds_are_looked_at(make_metrics: Make) -> None:
    merged = probes(make_metrics, "uic_3k", recipe_hash="a+b")
    merged = merged.model_copy(update={"protocol": {"runs": ["uic_3k", "uic_3k_seed1"]}})
    assert origin.foreign(merged, {"uic_3k": "a", "uic_3k_seed1": "b"}) == ""
    assert "run 'uic_3k' of the config has a+c" in origin.foreign(merged, {"uic_3k": "a", "uic_3k_seed1": "c"})
    assert origin.foreign(merged, {}) == ""  # a table made by hand


def test_fault_63_a_mean_over_a_seed_that_was_taken_away_is_not_shown(
    make_metrics: Make, seen: Callable[[object], None]
) -> None:
    merged = probes(make_metrics, "uic_3k", recipe_hash="a+b")
    merged = merged.model_copy(update={"protocol": {"runs": ["uic_3k", "uic_3k_seed1"]}})
    told = origin.foreign(merged, {"uic_3k": "a"})
    seen(told)
    assert told == "is a mean over uic_3k_seed1 too, which the config has not; run snakemake to make it again"
    assert origin.foreign(merged, {"uic_5k": "c"}) == ""  # another run's, in a table made by hand


def test_fault_67_a_number_whose_training_diverged_is_marked(
    make_metrics: Make, tmp_path: Path, seen: Callable[[object], None]
) -> None:
    remark = "diverged: the training loss went from 10.9 to 9,234.0, a guess has 6.9; lr 0.1"
    every = [probes(make_metrics, "uic_3k_fft", remark), probes(make_metrics, "uic_3k_center_crop_fft")]
    filled = table_2(tmp_path, every)
    page = tables.to_markdown(tables.page(filled))
    (note,) = (line for line in page.splitlines() if "diverged" in line)
    seen(note)
    assert f"UIC 3k, ✓, conv3: {remark}; UIC 3k, ✓, conv4: {remark}; UIC 3k, ✓, conv5: {remark}." in note
    letter = note.removeprefix("- ")[0]
    (marked,) = (line for line in page.splitlines() if "**43.0**" in line and letter in line)
    assert marked.count(letter) == 3
    assert tables.to_csv(filled).count(remark) == 3


def test_a_table_names_the_probes_that_have_not_converged(make_metrics: Make, tmp_path: Path) -> None:
    every = [
        probes(make_metrics, "uic_3k_fft", loss={3: 1.2, 4: 0.9, 5: 7.0}),
        probes(make_metrics, "uic_3k_center_crop_fft", loss={3: 3.0, 4: 1.0, 5: 0.4}),
    ]
    (note,) = (text for row, column, text in table_2(tmp_path, every).notes if "not converged" in text)
    assert note.startswith(
        "The training loss of these probes ended above that of a guess: conv3 (all rows); conv5 (UIC 3k, ✓). They have "
    )
    assert "Batch norm before the linear layer" in note
    normed = [each.model_copy(update={"protocol": each.protocol | {"batch_norm": True}}) for each in every]
    (note,) = (text for row, column, text in table_2(tmp_path, normed).notes if "not converged" in text)
    assert note.endswith("They have not converged: lr is too high for so few steps.")
    for fine in ({3: 0.2, 4: 0.9, 5: 1.0}, None):
        every = [probes(make_metrics, run, loss=fine) for run in ("uic_3k_fft", "uic_3k_center_crop_fft")]
        assert not [text for *_, text in table_2(tmp_path, every).notes if "not converged" in text]


def test_fault_72_seeds_stand_by_run(make_metrics: Make, seen: Callable[[object], None]) -> None:
    every = [
        probes(make_metrics, "uic_3k", run_seeds=[0, 1, 2]),
        probes(make_metrics, "uic_5k"),
        probes(make_metrics, "random_rgb", run_seeds=[]),
    ]
    told = origin.foot(every, "paper")[-1]
    seen(told)
    assert told.endswith(
        "Seeds of the training: 0, 1, 2 (uic_3k); 0 (uic_5k); unknown, trained elsewhere (random_rgb). "
        "Seeds of the evaluation: 0."
    )


def test_another_trainer_than_evaluator_is_told(make_metrics: Make) -> None:
    same = probes(make_metrics, "uic_3k")
    assert not any("Trained by" in line for line in origin.foot([same], "paper"))
    other, unknown = probes(make_metrics, "uic_5k", trained_by="ffff"), probes(make_metrics, "uic_10k", trained_by="")
    dirty = probes(make_metrics, "supervised", dirty=True)
    told = "**Trained by another commit than evaluated**, ffff: uic_5k; unknown: uic_10k; 0123456789ab: supervised."
    assert told in origin.foot([same, other, unknown, dirty], "paper")
