"""The metrics JSON: what is written is read back, what is wrong is named."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.resealed import rewrite
from uic_core.errors import InputError
from uic_core.run import metrics

ROOT = Path(__file__).parents[2]
ORIGIN = metrics.Origin("uic_3k", "c" * 64, "r", 1.0, (0,), "abc")


def example(**values) -> metrics.Metrics:
    return metrics.Metrics(
        evaluation="linear_probe",
        run="uic_3k",
        dataset=metrics.Dataset(name="imagenet", fingerprint="abc", sizes={"train": 10, "val": 5}),
        values={name: metrics.Value(value=value, unit="%") for name, value in values.items()},
        protocol={"epochs": 3},
        provenance=metrics.provenance(ORIGIN, seed=0, files={"labels": "f" * 64}),
    )


def test_round_trip(tmp_path):
    written = example(conv1=12.5)
    metrics.write(tmp_path / "m.json", written)
    assert metrics.read(tmp_path / "m.json") == written
    assert written.provenance.peak_memory_mb > 1
    assert written.provenance.versions["torch"] == "2.11.0"
    assert written.provenance.checkpoint_hash == "c" * 16
    assert written.provenance.files == {"labels": "f" * 16}
    assert (written.provenance.trained_by, written.provenance.run_seeds) == ("abc", [0])


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_not_finite_is_refused_at_construction(number):
    with pytest.raises(ValueError, match="not a finite number"):
        example(conv1=number)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], "is not JSON"),
        (lambda text: text.replace("12.5", "NaN"), "values.conv1.value: is nan, not a finite number"),
        (lambda text: text.replace('"run"', '"rum"'), "run: Field required"),
        (lambda text: "[]", "valid dictionary"),
    ],
)
def test_a_corrupt_file_is_named_with_a_remedy(tmp_path, change, message):
    path = tmp_path / "m.json"
    metrics.write(path, example(conv1=12.5))
    path.write_text(change(path.read_text()))
    with pytest.raises(InputError) as error:
        metrics.read(path)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)
    assert "delete the file and run snakemake again" in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.json: cannot be read"):
        metrics.read(tmp_path / "none.json")


def test_the_json_is_plain(tmp_path):
    metrics.write(tmp_path / "m.json", example(conv1=1.0))
    assert set(json.loads((tmp_path / "m.json").read_text())) == {*metrics.Metrics.model_fields, "checksum"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"value": 12.5', '"value": 173.25', "values.conv1: is 173.25 %, not 0 to 100"),
        ('"value": 12.5', '"value": -3', "values.conv1: is -3.0 %, not 0 to 100"),
        ('"value": 12.5', '"value": "12.5"', "values.conv1.value: Input should be a valid number"),
        ('"seed": 0', '"seed": "0"', "provenance.seed: Input should be a valid integer"),
        ('"coverage": 1.0', '"coverage": 2.0', "provenance.coverage: Input should be less than or equal to 1"),
        ('"n": null', '"n": -1', "values.conv1.n: Input should be greater than or equal to 0"),
    ],
)
def test_fault_30_a_number_out_of_range_or_of_another_type_is_refused(tmp_path, seen, old, new, message):
    path = tmp_path / "m.json"
    metrics.write(path, example(conv1=12.5))
    assert old in path.read_text()
    rewrite(path, path.read_text().replace(old, new))
    with pytest.raises(InputError) as error:
        metrics.read(path)
    seen(error.value)
    assert str(error.value) == f"{path}: {message}; delete the file and run snakemake again"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"value": 12.5', '"value": 21.5', "its checksum is wrong: it was changed by hand"),
        ('"run": "uic_3k"', '"run": "uic_5k"', "its checksum is wrong: it was changed by hand"),
        ('"epochs": 3', '"epochs": 30', "its checksum is wrong: it was changed by hand"),
        ('"recipe_hash": "r"', '"recipe_hash": "s"', "its checksum is wrong: it was changed by hand"),
        ('"checksum"', '"checksums"', "checksums: Extra inputs are not permitted"),
    ],
)
def test_fault_30_any_other_edit_breaks_the_checksum(tmp_path, seen, old, new, message):
    path = tmp_path / "m.json"
    metrics.write(path, example(conv1=12.5))
    path.write_text(path.read_text().replace("  ", "    "))  # spacing is no content
    metrics.read(path)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(InputError) as error:
        metrics.read(path)
    seen(error.value)
    assert str(error.value) == f"{path}: {message}; delete the file and run snakemake again"


def test_fault_30_a_file_without_checksum_is_refused(tmp_path, seen):
    path = tmp_path / "m.json"
    path.write_text(json.dumps(example(conv1=12.5).model_dump()))
    with pytest.raises(InputError, match="has no checksum: an earlier version wrote it, or it was changed") as error:
        metrics.read(path)
    seen(error.value)


def test_fault_67_a_loss_twice_that_of_a_guess_and_of_its_beginning_diverged():
    said = "diverged: the training loss went from 10.9 to 9,234.0, a guess has 6.9; lr 0.1"
    assert metrics.diverged(10.9, 9234.0, 6.9, 0.1) == said
    assert metrics.diverged(6.9, 9234.0, 6.9, 0.1) == said.replace("went from 10.9 to", "ended at")
    assert "loss ended at 2e+07, a guess" in metrics.diverged(6.9, 2.1e7, 6.9, 0.1)
    assert metrics.diverged(10.9, 6.0, 6.9, 0.1) == ""
    assert metrics.diverged(10.9, 12.0, 6.9, 0.1) == ""  # high, as it was
    assert metrics.diverged(0.1, 6.0, 6.9, 0.1) == ""  # no worse than a guess


def test_fault_72_the_config_is_not_code(tmp_path):
    (tmp_path / "config").mkdir()
    (tmp_path / "uic_core" / "run").mkdir(parents=True)
    for name in ("uic_core/__init__.py", "uic_core/errors.py", "uic_core/files.py", "uic_core/run/metrics.py"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / ".gitignore").write_text("__pycache__\n")
    (tmp_path / "config" / "paper.yaml").touch()

    def git(*arguments: str) -> None:
        settings = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        subprocess.run(["git", "-C", str(tmp_path), *settings, *arguments], check=True, capture_output=True)

    def dirty() -> str:
        command = [sys.executable, "-c", "from uic_core.run import metrics; print(metrics.code()[1])"]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    (tmp_path / "config" / "paper.yaml").write_text("root: /data")
    assert dirty() == "False"
    (tmp_path / "uic_core" / "mine.py").touch()  # a file of code that git does not know yet
    assert dirty() == "True"
