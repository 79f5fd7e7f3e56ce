"""Resuming a stage: its state files, and when they are saved.

A state holds everything needed to continue, in a safetensors file beside the stage's results. Snakemake does not know
this file, so it survives a failed job. The previous state is kept as well: if the newest one is damaged, a message is
printed and the previous one is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from uic_core.errors import InputError, Interrupted
from uic_core.files import atomic, write_text
from uic_core.run import metrics
from uic_core.run.parallel import Ranks
from uic_core.run.signals import Signals

EPOCH_SECONDS = 20
"""A state is saved at the end of an epoch if the last one is at least this many seconds old."""
_ABANDONED = 30 * 24 * 3600
"""A state of other settings is deleted if it is at least this many seconds old, so that they do not pile up."""


class State:
    """The state files of a stage.

    Args:
        folder: folder of the stage's results.
        identity: values that a state must share to be resumed, as JSON: recipe or protocol, data, start.
        name: part of the file names; letters and digits. Default: a hash of the identity.
        prefix: prefix of the file names, if several stages write into one folder.
        alone: True: refuse a state of another name. False: leave it alone.

    Attributes:
        saved: True once this process has saved a state.
        earlier_seconds: what the interrupted processes took until they saved the state that this one has loaded.
    """

    def __init__(
        self, folder: Path, identity: dict[str, Any], name: str = "", prefix: str = "", *, alone: bool = False
    ) -> None:
        name = name or hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        self.folder, self.identity, self._alone = folder, identity, alone
        self._stem = f"{prefix}state"
        self.path = folder / f"{self._stem}.{name}.safetensors"
        self.previous = folder / f"{self._stem}.{name}.previous.safetensors"
        self._new = folder / f"{self._stem}.{name}.new.safetensors"
        # Newest first. If a process is killed between the two renames of `save`, its last state is `_new`.
        self._files = (self._new, self.path, self.previous)
        # safetensors writes to a file of its own naming first. Stages that share the folder must not clean it up.
        self._scratch = folder / f".{self._stem}.writing"
        self.marker = folder / f"{prefix}interrupted"
        self.owner = folder / f"{prefix}owner"
        self.saved, self.earlier_seconds = False, 0.0
        self._own = ""
        self._unusable: list[Path] = []
        self._tidied = False

    @contextlib.contextmanager
    def claimed(self, ranks: Ranks) -> Iterator[None]:
        """Claim the folder for rank 0's process in this block; an earlier owner writes nothing more.

        A killed Snakemake leaves its jobs in the cluster's queue, and the next one starts new jobs in their place.
        """
        if ranks.rank:
            yield
            return
        job = f", SLURM job {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""
        self._own = f"process {os.getpid()} on {socket.gethostname()}{job} ({uuid.uuid4()})"
        write_text(self.owner, f"{self._own}\n")
        try:
            yield
        finally:
            if self._owner() == self._own:
                self.owner.unlink()

    def check_owner(self) -> None:
        """Refuse to write if another process has claimed the folder since.

        Raises:
            InputError: another process has; the message names it or says that it has ended.
        """
        if not self._own:
            return
        owner = self._owner()
        if not owner:
            raise InputError(f"{self.folder}: another process took it over and has ended; this one writes nothing")
        if owner != self._own:
            raise InputError(f"{self.folder}: is now worked on by {owner}; this process writes nothing more")

    def save(self, tensors: dict[str, Tensor], content: dict[str, Any]) -> None:
        """Save tensors, and `content` as JSON with the time so far. The current state becomes the previous one.

        Raises:
            InputError: the disk is full, or another process has claimed the folder; existing states stay.
        """
        self.check_owner()
        self._tidy()
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        content = self.identity | content | {"seconds": self.earlier_seconds + metrics.seconds()}
        written = self._scratch / self._new.name
        try:
            with atomic(written) as temporary:
                safetensors.torch.save_file(tensors, temporary, metadata={"state": json.dumps(content)})
            os.replace(written, self._new)
        finally:
            shutil.rmtree(self._scratch, ignore_errors=True)
        self._take_new()
        self.saved = True

    def load(self, say: Callable[[str], None]) -> tuple[Path, dict[str, Any], dict[str, Tensor]] | None:
        """Load the newest usable file: its path, content and tensors. None: there is no file.

        Changes nothing, because other ranks may read the same files. The next `save` deletes unusable files.

        Raises:
            InputError: a state has another identity (the message lists the differences), or no file is usable.
        """
        self._refuse_others()
        unusable = []
        for path in self._files:
            if not path.exists():
                continue
            try:
                content, tensors = _read(path)
            except ValueError as error:
                unusable.append(f"{path}: is no whole state ({error})")
                self._unusable.append(path)
                continue
            for line in unusable:
                say(f"{line}; the previous state is used")
            self._check(path, content)
            self.earlier_seconds = float(content.get("seconds", 0.0))  # some of earlier versions have none
            return path, content, tensors
        if unusable:
            raise InputError("\n".join([*unusable, f"remove {self.family(self.path)} to start this run afresh"]))
        return None

    def family(self, path: Path) -> str:
        """The pattern of a state's file and of the previous state's: with one alone, the other one is found."""
        name = path.name.removeprefix(f"{self._stem}.").partition(".")[0]
        return f"{self.folder}/{self._stem}.{name}.*"

    def remove(self) -> None:
        """Delete this state, and those of other names that are abandoned. Called on rank 0 when the stage is complete.

        Younger ones may hold days of work, which is gone on with when their settings are put back.
        """
        _sync(self.folder)  # the results must be on the disk before the state is deleted
        for path in (*self._files, self.marker, *filter(_abandoned, self._others())):
            path.unlink(missing_ok=True)
        self._tidy()

    def discard(self) -> None:
        """Delete the states of this identity, whose results are there; those of others stay. Called on rank 0."""
        self.marker.unlink(missing_ok=True)
        for path in self._files:
            with contextlib.suppress(ValueError):  # there is none; it is damaged; or, as an InputError, another's
                self._check(path, _read(path)[0])
                path.unlink()

    def _owner(self) -> str:
        """The process that has claimed the folder; '' if none."""
        try:
            return self.owner.read_text().strip()
        except FileNotFoundError:
            return ""

    def _tidy(self) -> None:
        """Clean up after killed processes, before the first write. On rank 0, once all ranks have loaded.

        Deletes damaged files: `save` would otherwise replace the good previous state by a damaged one.
        """
        if self._tidied:
            return
        shutil.rmtree(self._scratch, ignore_errors=True)
        # A killed process may have left a part of a checkpoint, under safetensors' own name, or of an older state.
        left = self.folder.glob(".tmp??????") if self._alone else ()
        for path in (*self.folder.glob(f".{self._stem}.*.partial.*"), *left, *self._unusable):
            path.unlink(missing_ok=True)
        if self._new.exists():
            self._take_new()
        self._tidied = True

    def _take_new(self) -> None:
        if self.path.exists():
            os.replace(self.path, self.previous)
        os.replace(self._new, self.path)
        _sync(self.folder)

    def _others(self) -> list[Path]:
        """The state files of other names."""
        return sorted(set(self.folder.glob(f"{self._stem}.*.safetensors")) - set(self._files))

    def _refuse_others(self) -> None:
        """Refuse unfinished states of other settings: they may hold hours of work, and the user must know."""
        for path in self._others() if self._alone else ():
            try:
                content, _ = _read(path)
            except ValueError as error:
                raise InputError(
                    f"{path}: is of another run, and no whole state ({error}); remove {self.family(path)}"
                ) from error
            self._check(path, content)

    def _check(self, path: Path, content: dict[str, Any]) -> None:
        there, here = _flat(content), _flat(self.identity)
        differing = [f"{key}: {there.get(key)} there, {here[key]} here" for key in here if there.get(key) != here[key]]
        if differing:
            raise InputError(
                f"{path}: is the unfinished state of another run ({'; '.join(differing)}); restore what it has to go "
                f"on with it, or remove {self.family(path)} to start afresh"
            )


class Saver:
    """Saves a state if one is due and ends the stage if a signal came, on all ranks at the same place.

    A signal may reach any rank; rank 0 alone decides when a save is due. `requests` are one rank's, `stop_or_save`
    takes those of all ranks.

    Args:
        every: seconds between states within an epoch.
    """

    def __init__(self, state: State, ranks: Ranks, signals: Signals, every: float) -> None:
        self.state, self.every = state, every
        self._ranks, self._signals = ranks, signals
        self._saved = time.monotonic()
        self._sent: tuple[Tensor, torch.cuda.Event | None] | None = None

    def agreed(self, seconds: float, device: torch.device) -> list[float]:
        """The sum of all ranks' `requests`, equal on each rank. All ranks must call this at the same place."""
        own = self.requests(seconds)
        return own if self._ranks.world == 1 else self._ranks.add(torch.tensor(own, device=device)).tolist()

    def exchanged(self, seconds: float, device: torch.device) -> list[float]:
        """As `agreed`, without waiting for the device: with several ranks, what they requested at the last call.

        Requests of this call are exchanged while the next step runs, but not where one is heard: it would be heard
        twice, and others are made again. All ranks must call this at the same place.
        """
        own = self.requests(seconds)
        if self._ranks.world == 1:
            return own
        heard, self._sent = self._sent, None
        found = [0.0, 0.0]
        if heard is not None:
            values, arrived = heard
            if arrived is not None:
                arrived.synchronize()  # of the step before: it does not wait for the one that runs
            found = values.tolist()
        if not any(found):
            # Filled on the device: a copy of a few numbers from the CPU would wait for all running kernels.
            values = torch.stack([torch.full((), request, device=device) for request in own])
            values = self._ranks.add(values).to("cpu", non_blocking=True)
            arrived = None
            if device.type == "cuda":
                arrived = torch.cuda.Event()
                arrived.record()
            self._sent = values, arrived
        return found

    def requests(self, seconds: float) -> list[float]:
        """This rank's [stop, save], each 0 or 1: stop after a signal, save `seconds` after the last state (rank 0)."""
        due = not self._ranks.rank and time.monotonic() - self._saved >= seconds
        return [float(self._signals.caught is not None), float(due)]

    def stop_or_save(self, requests: list[float], position: object, save: Callable[[], None]) -> None:
        """Save if a rank requests to save or to stop, then end if one requests to stop.

        Args:
            requests: [stop, save], sum or mean over the ranks, equal on all ranks.
            position: what comes next, as text for the message.
            save: writes the state; called on rank 0.

        Raises:
            InputError: from `save`.
            Interrupted: a rank got a signal, and the state is saved.
        """
        stop, due = requests
        if stop or due:
            if not self._ranks.rank:
                save()
            self._ranks.barrier()
            self._saved = time.monotonic()
        if stop:
            self._end(position, True)

    def stop(self, request: float, position: object) -> None:
        """End if a rank requests it, in something that has no state and begins anew in every attempt.

        Args:
            request: to stop; sum or mean over the ranks, equal on all ranks.
            position: what is ended, as text for the message.

        Raises:
            Interrupted: a rank got a signal.
        """
        if request:
            self._ranks.barrier()
            self._end(position, self.state.saved)

    def _end(self, position: object, saved: bool) -> NoReturn:
        """End the stage, and let its job be queued again if it has saved anything.

        Without that every attempt would end at the same place. Such a job is not queued for ever: it fails, Snakemake's
        retries ask for more time, and then it stops.
        """
        told, again = self._signals.caught or "another rank was told to", "run the same command again"
        reason = f"{told}, saved before {position} in {self.state.path}; {again}"
        if not saved:
            reason = (
                f"{told} in {position}, which begins anew in every attempt; if the job's time limit ended it, give "
                f"this rule more runtime in the profile (set-resources), else {again}"
            )
        if not self._ranks.rank:
            write_text(self.state.marker, f"{reason}\n")
            if saved and "UIC_SAVED" in os.environ:  # tells workflow/launch.sh to queue the job again
                write_text(Path(os.environ["UIC_SAVED"]), f"{reason}\n")
        raise Interrupted(reason)


def demand_same(
    state: State, found: tuple[Path, dict[str, Any], dict[str, Tensor]] | None, ranks: Ranks, device: torch.device
) -> None:
    """Check that all ranks have read the same inputs and resume from the same state, not from different local disks.

    Compares the identities, the contents of the states and a pretraining's labels, but not weights.

    Args:
        found: result of `state.load`.

    Raises:
        InputError: another process has found another state, or other inputs.
    """
    digest = hashlib.sha256(json.dumps([state.identity, found and found[1]], sort_keys=True).encode())
    if found and "labels" in found[2]:
        digest.update(found[2]["labels"].numpy().data)
    if not ranks.agree([int(digest.hexdigest()[:15], 16)], device):
        raise InputError(
            f"{state.folder}: process {ranks.rank} finds {found[0].name if found else 'no state'} there, and another "
            "process something else; it must be one folder for all nodes of the job, and no input may change now"
        )


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Content and tensors of a state file. Raises ValueError if it is damaged."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            content = json.loads(file.metadata()["state"])
            return content, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(str(error)) from error


def _abandoned(path: Path) -> bool:
    """True if nobody has written a file for long; also if it is gone."""
    try:
        return time.time() - path.stat().st_mtime >= _ABANDONED
    except FileNotFoundError:
        return True


def _sync(folder: Path) -> None:
    """fsync the folder, so that its file names are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flat(content: dict[str, Any]) -> dict[str, Any]:
    """Flatten nested mappings to `key.inner`, so that a message names the exact key that differs."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= {f"{key}.{inner}": item for inner, item in value.items()} if isinstance(value, dict) else {key: value}
    return flat
