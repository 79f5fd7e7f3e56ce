"""The stage that cuts the config into files: what it writes can be read back, what it refuses is named."""

from pathlib import Path

import pytest

from uic_core import protocol
from uic_core.config import Config
from uic_core.data.dataset import Dataset
from uic_core.methods import load_run
from uic_core.recipe import Strict, load
from uic_core.strict_yaml import read_yaml

DEMO = Path(__file__).parents[1] / "config" / "demo.yaml"


def sections() -> list[tuple[str, Strict]]:
    config = Config.model_validate(read_yaml(DEMO))
    return [
        *config.evaluations.present.items(),
        ("recipe", config.runs["uic_3k"]),
        ("dataset", config.datasets.one("voc07")),
    ]


@pytest.mark.parametrize(("section", "value"), sections())
def test_a_section_survives_its_file(tmp_path: Path, section: str, value: Strict) -> None:
    out = tmp_path / "made" / f"{section}.yaml"
    protocol.main(["--section", section, "--value", value.model_dump_json(), "--out", str(out)])
    assert (load_run(out) if section == "recipe" else load(type(value), out)) == value


def test_every_data_set_is_read_back_as_what_it_was(tmp_path: Path) -> None:
    """Their sections are told apart by their keys alone."""
    datasets = Config.model_validate(read_yaml(DEMO)).datasets
    for name in datasets.names:
        value = datasets.one(name)
        protocol.main(["--section", "dataset", "--value", value.model_dump_json(), "--out", str(tmp_path / "one.yaml")])
        assert type(load(Dataset, tmp_path / "one.yaml").section) is type(value.section)


@pytest.mark.parametrize(
    ("section", "value", "message"),
    [
        ("linear_prob", "{}", "no section 'linear_prob' (known: recipe, dataset, linear_probe, "),
        (
            "clusters",
            '{"grid_classes": 0, "grid_images": 1, "min_images": 1}',
            "clusters: grid_classes: Input should be",
        ),
        ("recipe", "{}", "recipe: method: missing"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], section: str, value: str, message: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        protocol.main(["--section", section, "--value", value, "--out", str(tmp_path / "out.yaml")])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_recipe_names_its_own_hash(tmp_path: Path) -> None:
    recipe = Config.model_validate(read_yaml(DEMO)).runs["uic_3k"]
    protocol.main(["--section", "recipe", "--value", recipe.model_dump_json(), "--out", str(tmp_path / "recipe.yaml")])
    assert load_run(tmp_path / "recipe.yaml").hash() == recipe.hash()
