"""The metrics JSON: what is written is read back, what is wrong is named."""

import hashlib
import json

import pytest

from uic_core.errors import InputError
from uic_core.run import metrics


def example(tmp_path, **values) -> metrics.Metrics:
    checkpoint = tmp_path / "checkpoint.safetensors"
    checkpoint.write_bytes(b"weights")
    return metrics.Metrics(
        evaluation="linear_probe",
        run="uic_3k",
        dataset=metrics.Dataset(name="imagenet", fingerprint="abc", sizes={"train": 10, "val": 5}),
        values={name: metrics.Value(value=value, unit="%") for name, value in values.items()},
        protocol={"epochs": 3},
        provenance=metrics.provenance(recipe_hash="r", checkpoint=checkpoint, coverage=1.0, seed=0),
    )


def test_round_trip(tmp_path):
    written = example(tmp_path, conv1=12.5)
    metrics.write(tmp_path / "m.json", written)
    assert metrics.read(tmp_path / "m.json") == written
    assert written.provenance.peak_memory_mb > 1
    assert written.provenance.versions["torch"] == "2.11.0"
    assert written.provenance.checkpoint_hash == hashlib.sha256(b"weights").hexdigest()[:16]


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_not_finite_is_refused_at_construction(tmp_path, number):
    with pytest.raises(ValueError, match="not a finite number"):
        example(tmp_path, conv1=number)


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
    metrics.write(path, example(tmp_path, conv1=12.5))
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
    metrics.write(tmp_path / "m.json", example(tmp_path, conv1=1.0))
    assert set(json.loads((tmp_path / "m.json").read_text())) == set(metrics.Metrics.model_fields)
