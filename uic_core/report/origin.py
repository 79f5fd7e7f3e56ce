"""The origin of a table's numbers: its foot lines, with warnings if the numbers do not belong together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

from uic_core.errors import InputError
from uic_core.evaluations import SECTIONS
from uic_core.files import sha256
from uic_core.recipe import Arch
from uic_core.run import metrics as metrics_file
from uic_core.run import trained
from uic_core.run.metrics import Metrics
from uic_core.run.trained import Trained

# The keys of each evaluation's config section. Rows differ in them only if files of several configs are mixed.
_KEYS = {name: tuple(section.model_fields) for name, section in SECTIONS.items()}
_LEFT_OUT = {
    name: {key: field.default for key, field in section.model_fields.items() if not field.is_required()}
    for name, section in SECTIONS.items()
}
# The keys among them that the config states by architecture: rows of different architectures differ in them.
_BY_ARCH = {
    (name, key)
    for name, section in SECTIONS.items()
    for key, field in section.model_fields.items()
    if get_args(field.annotation)[:1] == (Arch,)
}


def foreign(metrics: Metrics, recipes: Mapping[str, str]) -> str:
    """Say that metrics are of another recipe or another seed than the config's; '' if they are not.

    Args:
        recipes: run → hash of its recipe in the config, or several with commas; other runs are not checked.
    """
    runs = metrics.protocol.get("runs", [metrics.run])  # of several seeds
    if metrics.run in recipes and (others := [run for run in runs if run not in recipes]):
        return f"is a mean over {', '.join(others)} too, which the config has not; run snakemake to make it again"
    wanted = "+".join(dict.fromkeys(recipes.get(run, "") for run in runs))
    found = metrics.provenance.recipe_hash
    if found in wanted.split(",") or not all(wanted.split("+")):
        return ""
    wanted = wanted.partition(",")[0]
    return (
        f"is of recipe {found}, but run '{metrics.run}' of the config has {wanted}; run snakemake to evaluate it again"
    )


def read_with(path: Path, name: str, beside: Path, recipes: Mapping[str, str]) -> Metrics:
    """Read metrics that were written together with another file.

    Args:
        name: of the other file in `provenance.files`.
        beside: that file.
        recipes: as in `foreign`.

    Raises:
        InputError: the metrics cannot be read or are of another recipe, or the file is missing or is not the one that
            they name.
    """
    metrics = metrics_file.read(path)
    if reason := foreign(metrics, recipes):
        raise InputError(f"{path}: {reason}")
    if not beside.is_file():
        raise InputError(f"{beside}: there is no such file; run snakemake to make it")
    if sha256(beside)[:16] != metrics.provenance.files.get(name):
        raise InputError(f"{beside}: is not the file that was written with {path}; delete both and run snakemake again")
    return metrics


def training(history: Path, hashes: Mapping[str, str], recipes: Mapping[str, str]) -> Trained | None:
    """Return what the training of a run says of itself, by its training.json; None if there is none.

    Args:
        history: runs/<run>/history.jsonl.
        hashes: its SHA-256, as `history`; from uic_core.files.unchanged, which has no hash of a file that is missing.
        recipes: run → hash of its recipe in the config; other runs are not checked.

    Raises:
        InputError: the history is missing, or is not the one that the training wrote; or that was of another recipe.
    """
    if "history" not in hashes:
        raise InputError(f"{history}: is not there; run snakemake to make it")
    trained.check(history, hashes["history"])
    made, run = trained.read(history.parent), history.parent.name
    if made and made.recipe and made.recipe != recipes.get(run, made.recipe):
        raise InputError(
            f"{history.with_name(trained.NAME)}: is of recipe {made.recipe}, but run '{run}' of the config has "
            f"{recipes[run]}; run snakemake to train it again"
        )
    return made


def foot(metrics: Sequence[Metrics], scale: str) -> list[str]:
    """Write foot lines: data sets, scale, commit, date, seed, and warnings about mixed metrics in one table."""
    if not metrics:
        return [f"Scale: {scale}."]
    data: dict[tuple[str, str], str] = {}
    prints: dict[tuple[str, str], set[str]] = {}
    for item in metrics:
        sizes = ", ".join(f"{split} {size:,}" for split, size in item.dataset.sizes.items())
        name, fingerprint = item.dataset.name, item.dataset.fingerprint
        data[name, fingerprint] = f"{name} `{fingerprint}` ({sizes})"
        prints.setdefault((item.evaluation, name), set()).add(fingerprint)
    lines = [f"Data: {'; '.join(data.values())}."]
    differing = sorted(f"{evaluation} on {name}" for (evaluation, name), found in prints.items() if len(found) > 1)
    if differing:
        lines.append(f"**Different data in one column**: {', '.join(differing)}; see the fingerprints.")
    dates = sorted({item.provenance.date for item in metrics})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    lines += _mixed(metrics)
    if trainers := _trainers(metrics):
        lines.append(trainers)
    lines.append(f"Scale: {scale}. {_commits(metrics)} Date: {when}. {_seeds(metrics)}")
    return lines


def _seeds(metrics: Sequence[Metrics]) -> str:
    """The seeds of the trainings, by run if they differ, and those of the evaluations."""
    trained: dict[str, list[str]] = {}
    for run, item in {item.run: item for item in metrics}.items():
        seeds = item.provenance.run_seeds
        trained.setdefault(", ".join(map(str, seeds)) or "unknown, trained elsewhere", []).append(run)
    told = [f"{seeds} ({', '.join(runs)})" if len(trained) > 1 else seeds for seeds, runs in trained.items()]
    evaluated = ", ".join(map(str, sorted({item.provenance.seed for item in metrics})))
    return f"Seeds of the training: {'; '.join(told)}. Seeds of the evaluation: {evaluated}."


def _trainers(metrics: Sequence[Metrics]) -> str:
    """A line for runs that other code trained than evaluated them; '' if there are none."""
    others: dict[str, dict[str, None]] = {}
    for item in metrics:
        made, own = item.provenance.trained_by, commit(item, "-dirty")
        if "+" in own:  # of several seeds; whether the code was changed is then said once for all
            made, own = made.replace("-dirty", ""), item.provenance.commit
        if made != own:
            others.setdefault(item.provenance.trained_by or "unknown", {})[item.run] = None
    told = "; ".join(f"{trained_by}: {', '.join(runs)}" for trained_by, runs in others.items())
    return f"**Trained by another commit than evaluated**, {told}." if told else ""


def _commits(metrics: Sequence[Metrics]) -> str:
    commits: dict[str, list[str]] = {}
    for item in metrics:
        commits.setdefault(commit(item, " (dirty)"), []).append(f"{item.run}/{item.evaluation}")
    if len(commits) == 1:
        return f"Commit: {next(iter(commits))}."
    told = "; ".join(f"{made_by}: {', '.join(names)}" for made_by, names in commits.items())
    return f"**Mixed commits**, {told}."


def _mixed(metrics: Sequence[Metrics]) -> list[str]:
    """Write a line for each run with several recipes or checkpoints, and for each evaluation with several settings.

    Settings that the config states by architecture are compared only among rows with the same layers.
    """
    lines = []
    for kind, attribute in (("recipes", "recipe_hash"), ("checkpoints", "checkpoint_hash")):
        found: dict[str, dict[str, list[str]]] = {}
        for item in metrics:
            value = getattr(item.provenance, attribute)
            found.setdefault(item.run, {}).setdefault(value, []).append(item.evaluation)
        for run, values in found.items():
            if len(values) > 1:
                told = "; ".join(f"`{value}`: {', '.join(evaluations)}" for value, evaluations in values.items())
                lines.append(f"**Mixed {kind}** of {run}: {told}.")
    settings: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    for item in metrics:
        protocol = _LEFT_OUT.get(item.evaluation, {}) | item.protocol
        layers = json.dumps(protocol.get("layers"), sort_keys=True)
        for key in _KEYS.get(item.evaluation, ()):
            if key in protocol:
                among = layers if (item.evaluation, key) in _BY_ARCH else ""
                value = json.dumps(protocol[key], sort_keys=True)
                settings.setdefault((item.evaluation, key, among), {}).setdefault(value, []).append(item.run)
    for (evaluation, key, _), values in settings.items():
        if len(values) > 1:
            told = "; ".join(f"{value}: {', '.join(runs)}" for value, runs in values.items())
            lines.append(f"**Mixed settings** of {evaluation}, {key}: {told}.")
    return lines


def commit(metrics: Metrics, dirty: str) -> str:
    """The commit that made the metrics, followed by `dirty` if the tree had uncommitted changes."""
    return metrics.provenance.commit + (dirty if metrics.provenance.dirty else "")
