"""Finished results of a config within a second: every file that the workflow makes, small, with what it records.

What decides whether a job runs again is real: names, times, recipes, protocols, fingerprints. Weights and numbers are
not.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from uic_core import recipe
from uic_core.config import Config
from uic_core.data.dataset import size
from uic_core.data.index import Index
from uic_core.data.pixels import Pixels, folder_name
from uic_core.evaluations.detection import SOURCE
from uic_core.files import sha256, stamp
from uic_core.recipe import External, Training, stated
from uic_core.report import seeds
from uic_core.report.cells import all_needed, by_class, of_every_run, read_figures, read_tables
from uic_core.run import metrics, trained

CHECKPOINT = "checkpoint.safetensors"


def make(config: Config, folder: Path) -> None:
    """Write the results of `config` below `folder`, in the order in which the workflow makes them."""
    results = folder / config.results
    indexes = data(config, results)
    needed = all_needed(config.tables_file, config.computable)
    shown = dict.fromkeys([*needed, *of_every_run(config)])
    pairs = [(name, evaluation) for run, evaluation in shown for name in config.repeats(run)]
    runs = {run for run, _ in pairs}
    runs |= {config.runs[run].start for run in runs} - {""}
    for name in config.runs:
        if name in runs:
            _run(config, name, results / "runs", indexes)
    for evaluation, section in config.evaluations.present.items():
        recipe.save(section, results / "protocols" / f"{evaluation}.yaml")
    proposals = stated(config.evaluations.proposals)
    for split in ("trainval", "test"):
        path, source = results / f"proposals/voc07_{split}.npz", folder / proposals.published(split)
        settings = json.dumps(proposals.made_by(sha256(source) if proposals.source else ""))
        _npz(path, settings=settings, fingerprint=_print("voc07", split))
        if proposals.source:
            kept = {"path": str(proposals.published(split)), "stamp": stamp(source)}
            _text(path.with_suffix(SOURCE), json.dumps(kept))
    for run, evaluation in pairs:
        _evaluation(config, run, evaluation, results, indexes)
    for run, evaluation in shown:
        if config.seeds.get(run):
            parts = [results / "metrics" / name / f"{evaluation}.json" for name in config.repeats(run)]
            metrics.write(parts[0].with_suffix(".seeds.json"), seeds.merge(parts))
    tasks = by_class(config.tables_file, config.computable)
    for name in [*(f"table{number}" for number in read_tables(config.tables_file)), *tasks, "knn", "speed"]:
        for suffix in ("md", "csv", "tex", "html"):
            _text(results / f"tables/{name}.{suffix}")
    for name in [*(f"fig{number}" for number in read_figures(config.tables_file)), *tasks, "curves"]:
        for suffix in ("png", "svg"):
            _text(results / f"figures/{name}.{suffix}")
    for name in ("README.md", "times.html", "index.html"):
        _text(results / name)


def data(config: Config, results: Path, mark: str = "") -> dict[str, Index]:
    """Write what the workflow notes of the data sets; another `mark` stands for other images. Returns the indexes."""
    indexes = {}
    for name in config.datasets.names:
        dataset = config.datasets.one(name)
        recipe.save(dataset, results / "data" / f"{name}.yaml")
        if dataset.generated:
            _text(results / "data" / f"{name}.generated")
        lines = [f"fingerprint of {split}: {mark}{_print(name, split)}\n" for split in ("trainval", "test", "all")]
        _text(results / "data" / f"{name}.checked", "".join(lines))
        splits = ("train", "val") if name in config.datasets.folders else ("test",) * (name == "miniimagenet")
        for split in splits:
            count = size(dataset, split)
            paths, labels = np.array([f"{number}.png" for number in range(count)]), np.zeros(count, np.int32)
            index = Index(f"{name}_{split}", Path("/data"), paths, labels, ("one",), mark + _print(name, split))
            index.save(results / "index" / f"{name}_{split}.npz")
            indexes[f"{name}_{split}"] = index
            if split == "train" and (cache := config.datasets.cache).format != "none":
                folder = Path(cache.root, name) / folder_name(
                    index.name, index.fingerprint, "", cache.format, cache.side
                )
                pixels = Pixels(folder.resolve(), cache.format, *np.zeros((5, count), np.int64))
                cached = replace(index, pixels=pixels, fingerprint=f"{folder.name}, cached")
                cached.save(results / "index" / f"{name}_train_cached.npz")
                indexes[f"{name}_train_cached"] = cached
    return indexes


def _run(config: Config, name: str, runs: Path, indexes: dict[str, Index]) -> None:
    made, folder = config.runs[name], runs / name
    recipe.save(made, folder / "recipe.yaml")
    header: dict[str, Any] = {"recipe": made.written(), "coverage": 1.0}
    place = ""
    start = runs / made.start / CHECKPOINT
    if isinstance(made, External):
        place = made.path
        start = runs.parents[1] / place
        header["source"] = sha256(start)
    else:
        images = made.images if isinstance(made, Training) else 0
        header["data"] = _trained_on(indexes, made.data).subset(images, made.seed).fingerprint
        _text(folder / "labels.npy", name)
        _text(folder / "history.jsonl")
    weights = {"weight": np.zeros(1, np.float32)}
    safetensors.numpy.save_file(weights, folder / CHECKPOINT, {"uic_core/2": json.dumps(header)})
    names = [each for each in (CHECKPOINT, "labels.npy", "history.jsonl") if (folder / each).exists()]
    started: dict[str, Any] = (
        {"start": sha256(start), "start_stamp": stamp(start), "start_path": place} if start.exists() else {}
    )
    trained.write(folder, names, recipe=made.hash(), **started)


def _evaluation(config: Config, run: str, evaluation: str, results: Path, indexes: dict[str, Index]) -> None:
    made, section, folder = config.runs[run], config.evaluations.one(evaluation), results / "metrics" / run
    checkpoint = results / "runs" / run / CHECKPOINT
    protocol, arch = section.model_dump(), made.arch
    fingerprint = _print("voc_segmentation" if evaluation == "segmentation" else "voc07", "all")
    if evaluation in ("linear_probe", "knn"):
        lists = _trained_on(indexes, protocol["data"]), indexes[f"{protocol['data']}_val"]
        parts = [
            each.subset(protocol[key][arch], protocol["seed"])
            for each, key in zip(lists, ("images", "val_images"), strict=True)
        ]
        fingerprint = "+".join(part.fingerprint for part in parts)
        protocol |= {"images": len(parts[0]), "val_images": len(parts[1])}
        protocol |= {"crop": protocol["crop"][arch]} if "crop" in protocol else {}
    elif evaluation == "clusters":
        fingerprint = indexes[f"{made.data}_train"].fingerprint
    elif evaluation == "fewshot":
        fingerprint = indexes["miniimagenet_test"].fingerprint
    if "layers" in protocol:
        protocol["layers"] = protocol["layers"][arch]
    read = {}
    if evaluation == "clusters":
        read = {"labels": checkpoint.with_name("labels.npy"), "history": checkpoint.with_name("history.jsonl")}
    if evaluation == "detection":
        read = {f"proposals_{split}": results / f"proposals/voc07_{split}.npz" for split in ("trainval", "test")}
    files = {name: sha256(file)[:16] for name, file in read.items()}
    stamps = {name: stamp(file) for name, file in read.items()}
    provenance = metrics.Provenance(
        commit="0", dirty=False, date="", recipe_hash=made.hash(), checkpoint_hash=sha256(checkpoint)[:16],
        checkpoint_stamp=stamp(checkpoint), coverage=1.0, seed=0, trained_by="", run_seeds=[], versions={}, hardware="",
        wall_seconds=0.0, peak_memory_mb=0.0, files=files, stamps=stamps,
    )  # fmt: skip
    dataset = metrics.Dataset(name="", fingerprint=fingerprint, sizes={})
    values = {name: metrics.Value(value=50.0, unit="%") for name in section.values_of(arch)}
    found = metrics.Metrics(
        evaluation=evaluation, run=run, dataset=dataset, values=values, protocol=protocol, provenance=provenance
    )
    if evaluation in ("detection", "segmentation"):
        _text(folder / f"{evaluation}_samples.npz")
    if evaluation == "clusters":
        _text(folder / "clusters.npz")
    metrics.write(folder / f"{evaluation}.json", found)


def _trained_on(indexes: dict[str, Index], data: str) -> Index:
    return indexes.get(f"{data}_train_cached", indexes[f"{data}_train"])


def _print(name: str, split: str) -> str:
    return f"{name}_{split}"


def _npz(path: Path, **texts: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{name: np.array(text) for name, text in texts.items()})


def _text(path: Path, text: str = "\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # it may be a link to another test's
    path.write_text(text)
