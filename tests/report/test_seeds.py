"""Means over seeds: the numbers, what they come from, and metrics that have no mean."""

import json
import statistics

import pytest

from tests.resealed import rewrite
from uic_core.errors import InputError
from uic_core.report import seeds, tables
from uic_core.report.cells import Table
from uic_core.report.filled import fill
from uic_core.run import metrics
from uic_core.run.metrics import Value


@pytest.fixture
def paths(tmp_path, make_metrics):
    """Three seeds of a run: 60, 62 and 67 %."""
    found = []
    for seed, number in enumerate((60.0, 62.0, 67.0)):
        run = "uic_3k" + (f"_seed{seed}" if seed else "")
        values = {
            "conv1": Value(value=number, unit="%", ci95=1.0, n=400),
            "conv1/best_epoch": Value(value=3, unit="epoch"),
        }
        found.append(tmp_path / f"{run}.json")
        facts = {"commit": "a" if seed < 2 else "b", "checkpoint_hash": f"c{seed}", "peak_memory_mb": 1.0 + seed}
        metrics.write(found[-1], make_metrics(run, "linear_probe", values, **facts))
    return found


def test_mean_and_deviation_of_the_seeds(paths, tmp_path):
    out = tmp_path / "out.json"
    seeds.main(["--metrics", *map(str, paths), "--out", str(out)])
    found = metrics.read(out)
    value = found.values["conv1"]
    assert (value.value, value.seeds, value.n, value.ci95) == (63.0, 3, 400, None)
    assert value.std == pytest.approx(statistics.stdev([60, 62, 67]))
    assert found.values["conv1/best_epoch"].std == 0
    assert (found.run, found.evaluation) == ("uic_3k", "linear_probe")
    assert found.protocol["runs"] == ["uic_3k", "uic_3k_seed1", "uic_3k_seed2"]
    assert found.provenance.commit == "a+b"
    assert found.provenance.checkpoint_hash == "c0+c1+c2"
    assert found.provenance.peak_memory_mb == 3


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda value: value["protocol"].update(epochs=9), "protocol.epochs"),
        (lambda value: value["dataset"].update(fingerprint="0"), "dataset"),
        (lambda value: value["values"].pop("conv1"), "values.conv1"),
        (lambda value: value["values"]["conv1"].update(unit="m"), "values.conv1"),
        (lambda value: value.update(evaluation="clusters"), "evaluation"),
    ],
)
def test_what_was_made_differently_has_no_mean(paths, tmp_path, capsys, change, what):
    value = json.loads(paths[1].read_text())
    change(value)
    rewrite(paths[1], json.dumps(value))
    with pytest.raises(SystemExit) as ended:
        seeds.main(["--metrics", *map(str, paths), "--out", str(tmp_path / "out.json")])
    assert ended.value.code == 2
    assert f"{paths[1]}: {what} is not that of {paths[0]}" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_number_of_processes_may_differ_where_it_changes_nothing(paths, batch_norm):
    for path, processes in zip(paths, (1, 4, 1), strict=True):
        value = json.loads(path.read_text())
        value["protocol"] |= {"processes": processes, "batch_norm": batch_norm}
        rewrite(path, json.dumps(value))
    if batch_norm:  # each process normalises by its own images
        with pytest.raises(InputError, match=r"protocol\.processes is not that of"):
            seeds.merge(paths)
    else:
        found = seeds.merge(paths)
        assert found.values["conv1"].value == 63
        assert found.protocol["processes"] == "1+4"


def test_a_missing_seed_is_named(paths):
    paths[2].unlink()
    with pytest.raises(InputError, match=r"uic_3k_seed2\.json: cannot be read"):
        seeds.merge(paths)


def test_a_table_shows_the_deviation_and_says_over_how_many_seeds(paths, tmp_path):
    metrics.write(tmp_path / "out.json", seeds.merge(paths))
    table = Table.model_validate(
        {
            "title": "Probes",
            "stub": "Methods",
            "columns": [{"name": "conv1", "evaluation": "linear_probe", "value": "conv1"}],
            "rows": [{"name": "UIC 3k", "run": "uic_3k", "extra": True}],
            "tolerance": 1.0,
        }
    )
    filled = fill(1, table, {}, [tmp_path / "out.json"], "paper")
    shown = tables.to_markdown(tables.page(filled))
    assert "**63.0** ± 3.6" in shown
    assert "±: standard deviation over 3 seeds." in shown
    assert ",63.0,,,,,,400,3.6056,3,uic_3k,linear_probe,a+b" in tables.to_csv(filled)
