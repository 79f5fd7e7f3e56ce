"""What results say they were made from, beside what the config says now. The workflow makes again what differs.

Times mislead: those of copied files, of a clock set back, of a setting that was changed and put back. So every result
records its settings and the fingerprint of its data, and these are compared. Imports no torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from uic_core.config import Config
from uic_core.data import stamps
from uic_core.data.dataset import VOC, Dataset, size
from uic_core.data.fingerprints import content_of, subset_fingerprint
from uic_core.data.pixels import folder_name
from uic_core.evaluations.detection import SOURCE, Proposals
from uic_core.evaluations.evaluation import Listed
from uic_core.files import DAMAGED, known_sha256, safetensors_metadata
from uic_core.recipe import PLACES, External, Strict, Training, load, stated
from uic_core.report import seeds
from uic_core.run import finished, metrics, trained
from uic_core.strict_yaml import read_yaml

_Pair = tuple[str, Any, Any]
"""The name of a setting or data set, its recorded value, its value now."""


class _Unknown(Exception):
    """There is no file, or it does not record what is compared."""


_CANNOT_SAY = (_Unknown, *DAMAGED)  # of which an InputError is one
"""How reading a file ends that is missing, damaged, or of another form."""


def difference(config: Config, path: Path) -> str | None:
    """Compare what a file of the results records with the config and with the data as they were last listed.

    Args:
        path: runs/<run>/{recipe.yaml,checkpoint.safetensors}, protocols/<evaluation>.yaml, data/<dataset>.yaml,
            index/<dataset>_train_cached.npz, proposals/voc07_<split>.npz, metrics/<run>/<evaluation>.json,
            metrics/<run>/<evaluation>.seeds.json or export/<run>/README.md in the results folder.

    Returns:
        '' if they agree, else "<key> is <recorded> there, <now> now". None if it cannot be said: there is no file, it
        is damaged or of an earlier version, or its data set is to be listed again.
    """
    kind = path.relative_to(config.results).parts[0]
    compare = {"runs": _run, "index": _cache, "export": _export}.get(kind, _evaluation)
    compare = _section if path.suffix == ".yaml" else compare
    compare = _mean if path.name.endswith(".seeds.json") else compare
    return _first(compare(config, path))


def removed(config: Config, run: str) -> str | None:
    """Compare likewise what a run's checkpoint was made from that is not there: a job removes it to make it again."""
    return _first(_removed(config, run))


def to_be_listed(config: Config, data: str) -> bool:
    """Whether a data set was listed, and the config has said since then that it holds something else."""
    try:
        _same_content(config, data)
    except _Unknown:
        return True
    except _CANNOT_SAY:
        return False
    return False


def other_number(config: Config, data: str, split: str) -> bool:
    """Whether an index holds another number of images than its data set by the settings of now: it is older."""
    try:
        wanted = size(load(Dataset, config.layout.dataset(data)), split)
        with np.load(config.layout.index(data, split), allow_pickle=False) as arrays:
            return len(arrays["labels"]) != wanted
    except _CANNOT_SAY:
        return False


def _first(pairs: Iterator[_Pair]) -> str | None:
    """Say what differs first; '' if nothing does, None if it cannot be said."""
    try:
        return next((_say(key, recorded, now) for key, recorded, now in pairs if recorded != now), "")
    except _CANNOT_SAY:
        return None


def _say(key: str, recorded: Any, now: Any) -> str:
    """Name the innermost key that differs."""
    if isinstance(recorded, dict) and isinstance(now, dict) and recorded.keys() == now.keys():
        inner = next(name for name in now if recorded[name] != now[name])
        return _say(f"{key}.{inner}", recorded[inner], now[inner])
    return f"{key} is {json.dumps(recorded)} there, {json.dumps(now)} now"


def _section(config: Config, path: Path) -> Iterator[_Pair]:
    """A section of the config that has a file of its own."""
    if path.name == "recipe.yaml":
        section: Strict = config.runs[path.parent.name]
    elif path.parent.name == "data":
        section = config.datasets.one(path.stem)
    else:
        section = getattr(config.evaluations, path.stem)
    yield from _keys(read_yaml(path), section.model_dump(), type(section))


def _run(config: Config, path: Path) -> Iterator[_Pair]:
    """A checkpoint, or the kept link to it, and what its run started from. One from elsewhere has no data set."""
    recipe = config.runs[path.relative_to(config.results).parts[1]]
    header, made = _header(path), trained.read(path.parent)
    source = header.get("source", "")
    for pair in _keys(header["recipe"], recipe.model_dump(), type(recipe)):
        if not (source and pair[0] in PLACES):
            yield pair
    if isinstance(recipe, External):
        stamped = made.start_stamp if made and made.start_path == recipe.path else []
        yield "its file", source, _now(Path(recipe.path), source, stamped)
        return
    if recipe.start and made and made.start:
        yield from _checkpoint(config, recipe.start, made.start, made.start_stamp)
    images = recipe.images if isinstance(recipe, Training) else 0
    now = _trained_on(config, recipe.data, images, recipe.seed, header["data"])
    yield recipe.data, header["data"], now


def _removed(config: Config, run: str) -> Iterator[_Pair]:
    """A checkpoint that is not there, by the kept link to it, and by training.json, which does not name its data."""
    recipe, checkpoint = config.runs[run], config.layout.checkpoint(run)
    made = trained.read(checkpoint.parent)
    if made is None or not made.recipe:
        raise _Unknown
    for kept in finished.folder(checkpoint).glob(f"*/{checkpoint.name}"):
        if trained.read(kept.parent) == made:
            yield from _run(config, kept)
    yield "recipe", made.recipe, made.recipe if made.recipe in recipe.hashes() else recipe.hash()
    if isinstance(recipe, External):
        stamped = made.start_stamp if made.start_path == recipe.path else []
        yield "its file", made.start, _now(Path(recipe.path), made.start, stamped)
    elif recipe.start and made.start:
        yield from _checkpoint(config, recipe.start, made.start, made.start_stamp)


def _evaluation(config: Config, path: Path) -> Iterator[_Pair]:
    """A metrics file, or the proposals. A key by architecture may be recorded as this architecture's value."""
    if path.parent.name == "proposals":
        split = path.stem.rpartition("_")[2]
        yield from _proposals(path, stated(config.evaluations.proposals), split)
        yield "voc07", _member(path, "fingerprint"), _checked(config, "voc07", split)
        return
    found, section = metrics.read(path), getattr(config.evaluations, path.stem)
    recipe = config.runs[path.parent.name]
    yield "run", found.run, path.parent.name
    yield "evaluation", found.evaluation, path.stem
    called = found.provenance.recipe_hash
    yield "recipe", called, called if called in recipe.hashes() else recipe.hash()
    yield from _checkpoint(config, found.run, found.provenance.checkpoint_hash, found.provenance.checkpoint_stamp)
    files = _files(config, found.run)
    for name in ("labels.npy", "history.jsonl"):
        digest = found.provenance.files.get(Path(name).stem, "")
        yield name, digest, files.get(name, digest)[: len(digest)]
    for name, stamped in found.provenance.stamps.items():
        digest, file = found.provenance.files[name], _read(config, found.run)[name]
        yield file.name, digest, _now(file, digest, stamped)
    now = section.model_dump(mode="json")
    for key, value in now.items():
        recorded = found.protocol.get(key)
        if isinstance(value, dict) and not isinstance(recorded, dict):
            # 0 takes all images: recorded is how many these were, and their fingerprint is compared below.
            now[key] = recorded if value.get(recipe.arch) == 0 else value.get(recipe.arch)
    yield from _keys(found.protocol, now, type(section))
    fingerprint = found.dataset.fingerprint
    yield found.dataset.name, fingerprint, _evaluated_on(config, section.lists(recipe), fingerprint)


def _proposals(path: Path, settings: Proposals, split: str) -> Iterator[_Pair]:
    """What proposals were made by. Of published ones it is the bytes, or their folder in files of earlier versions."""
    recorded = json.loads(_member(path, "settings"))
    if not settings.source:
        yield from _keys(recorded, settings.made_by(), type(settings))
    elif recorded.keys() == {"source"}:
        source, beside = settings.published(split), path.with_suffix(SOURCE)
        kept = json.loads(beside.read_text(encoding="utf-8")) if beside.exists() else {}
        digest = recorded["source"].removeprefix("sha256:")
        yield source.name, digest, _now(source, digest, kept["stamp"] if kept.get("path") == str(source) else [])
    else:
        yield "source", recorded["source"], settings.source


def _export(config: Config, path: Path) -> Iterator[_Pair]:
    """Exported weights: their card names the checkpoint, and no size and time of it."""
    run, named = path.parent.name, re.search(r"^\| checkpoint.* `(\w+)` \|$", path.read_text(encoding="utf-8"), re.M)
    if named is None:
        raise _Unknown
    now = _now(config.layout.checkpoint(run), named[1], [])
    yield f"the checkpoint of {run}", named[1], now


def _mean(config: Config, path: Path) -> Iterator[_Pair]:
    """A mean over seeds. What they were evaluated to is looked at in their own metrics."""
    found, name = metrics.read(path), path.name.replace(".seeds", "")
    runs = config.repeats(path.parent.name)
    yield "runs", found.protocol.get("runs"), runs
    now = seeds.merge([path.parents[1] / run / name for run in runs])
    yield "the mean", found.model_dump(), now.model_dump()


def _checkpoint(config: Config, run: str, recorded: str, stamped: list[int]) -> Iterator[_Pair]:
    """A run's checkpoint as it was when it was read: by what its training says of it, and by its bytes.

    Earlier versions recorded no size and time: for them no checkpoint is read at every start.
    """
    path = config.layout.checkpoint(run)
    yield f"the checkpoint of {run}", recorded, _files(config, run).get(path.name, recorded)[: len(recorded)]
    if stamped:
        yield f"the checkpoint of {run}", recorded, _now(path, recorded, stamped)


def _read(config: Config, run: str) -> dict[str, Path]:
    """The files of other stages that metrics may name as read, beside the checkpoint."""
    folder = config.layout.run(run)
    boxes = {f"proposals_{split}": config.layout.proposals(split) for split in ("trainval", "test")}
    return {"labels": folder / "labels.npy", "history": folder / "history.jsonl", **boxes}


def _files(config: Config, run: str) -> dict[str, str]:
    """The SHA-256 of the files that a run's training wrote, by name."""
    made = trained.read(config.layout.run(run))
    return made.files if made else {}


def _now(path: Path, recorded: str, stamped: list[int]) -> str:
    """Return a file's hash, in as many digits as are recorded; the recorded one if it is not there to be compared."""
    return known_sha256(path, recorded, stamped)[: len(recorded)] if recorded and path.exists() else recorded


def _evaluated_on(config: Config, lists: tuple[Listed, ...], recorded: str) -> str:
    """Return the fingerprint that an evaluation would record now. Raises _Unknown if it does not say what it reads."""
    parts = recorded.split("+")
    if len(parts) != len(lists):
        raise _Unknown
    now = []
    for (data, split, images, seed), part in zip(lists, parts, strict=True):
        if data in VOC:
            now.append(_checked(config, data, split))
        elif split == "train" and images is not None:
            now.append(_trained_on(config, data, images, seed, part))
        else:
            now.append(_listed(config, data, split, images or 0, seed))
    return "+".join(now)


def _cache(config: Config, path: Path) -> Iterator[_Pair]:
    """The index of cached images. Their folder's name says what they were made from."""
    data, cache = path.stem.removesuffix("_train_cached"), config.datasets.cache
    made = Path(_member(path, "folder"))
    yield "datasets.cache.root", str(made.parent), str(Path(cache.root, data).resolve())
    yield "datasets.cache", made.name, _cached_as(config, data, made.name)


def _cached_as(config: Config, data: str, made: str) -> str:
    """The name that the folder of a data set's cache would have now; `made` if an earlier version named it so."""
    cache, listed, content = (
        config.datasets.cache,
        _listed(config, data, "train"),
        content_of(config.layout.index(data, "train")),
    )
    assert cache.format != "none"
    name, earlier = (folder_name(f"{data}_train", listed, each, cache.format, cache.side) for each in (content, ""))
    return earlier if made == earlier else name


def _keys(recorded: dict[str, Any], now: dict[str, Any], model: type[Strict]) -> Iterator[_Pair]:
    """Every key of a model. One that is left out has its default."""
    recorded, now = json.loads(json.dumps(recorded)), json.loads(json.dumps(now))  # tuples become lists
    for key, field in model.model_fields.items():
        left_out = None if field.is_required() else field.default
        yield key, recorded.get(key, left_out), now.get(key, left_out)


def _trained_on(config: Config, data: str, images: int, seed: int, recorded: str) -> str:
    """Return the fingerprint of what a stage would train on, by the cache if the config has one."""
    if config.datasets.cache.format == "none":
        return _listed(config, data, "train", images, seed)
    cached = config.layout.index(data, "train_cached")
    if not cached.exists() and recorded == _listed(config, data, "train", images, seed):
        return "to be cached"
    if cached.exists() and (made := Path(_member(cached, "folder")).name) != _cached_as(config, data, made):
        return "to be cached otherwise"
    return _listed(config, data, "train_cached", images, seed)


def _listed(config: Config, data: str, split: str, images: int = 0, seed: int = 0) -> str:
    """Return the fingerprint of what a stage takes from an index: all images, or some of a seeded shuffle."""
    _same_content(config, data)
    with np.load(config.layout.index(data, split), allow_pickle=False) as arrays:
        return subset_fingerprint(str(arrays["fingerprint"]), len(arrays["labels"]) if images else 0, images, seed)


def _checked(config: Config, data: str, split: str) -> str:
    """Return the fingerprint of a data set without index, which the stage `check` notes."""
    _same_content(config, data)
    if found := stamps.noted(config.layout.checked(data), split):
        return found
    raise _Unknown


def _same_content(config: Config, data: str) -> None:
    """Raise _Unknown if the config says that a data set holds something else than when it was last listed."""
    listed = load(Dataset, config.layout.dataset(data))
    if _content(listed) != _content(config.datasets.one(data)):
        raise _Unknown


def _content(dataset: Dataset) -> dict[str, Any]:
    """Return what a data set must hold, without the keys that say where it is or where to get it."""
    section = dataset.section.model_dump()
    places = {"root": None, "source": None, "sbd": bool(section.get("sbd"))}
    return section | places | {"seed": dataset.seed * dataset.generated}


def _header(path: Path) -> dict[str, Any]:
    """Read what a checkpoint records, without its weights."""
    with path.open("rb") as file:
        (text,) = safetensors_metadata(file).values()
    header: dict[str, Any] = json.loads(text)
    return header


def _member(path: Path, name: str) -> str:
    with np.load(path, allow_pickle=False) as arrays:
        return str(arrays[name])
