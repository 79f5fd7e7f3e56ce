"""Progress output of a training run, its TensorBoard, and what its parts take."""

from __future__ import annotations

import contextlib
import datetime
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from uic_core.pretrain.label_passes import LabelPasses
from uic_core.pretrain.state import RunState
from uic_core.run.parallel import Ranks

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LINE_SECONDS = 60


@contextlib.contextmanager
def timing_labels(run: RunState, inference: LabelPasses) -> Iterator[None]:
    """Count the time, and the inputs of label passes, of work on the labels in this block."""
    started, before = time.monotonic(), inference.inputs
    yield
    run.position.label_seconds += time.monotonic() - started
    run.position.inputs += inference.inputs - before


class Progress:
    """A bar on a terminal; in a log, one line per minute in epochs that take longer. Only rank 0 shows it.

    Attributes:
        rate: images per second in this process's part of the epoch.
    """

    def __init__(self, run: RunState, epochs: int, steps: int, ranks: Ranks, say: Callable[[str], None]) -> None:
        """`steps` counts all steps of the epoch, also those before the run's position; `say` prints a line."""
        self._run, self._epochs, self._steps, self._say = run, epochs, steps, say
        self._first, self._images = run.position.step, run.position.images
        self._before = run.position.training_seconds
        self._started = self._shown = time.monotonic()
        self._covered = run.history[-1]["coverage"] if run.history else None  # of the previous epoch
        self._title = f"epoch {run.position.epoch + 1}/{epochs}"
        self.rate = 0.0
        self._bar: tqdm[Any] | None = None
        if not ranks.rank and sys.stderr is not None and sys.stderr.isatty():
            self._bar = tqdm(desc=self._title, total=steps, initial=self._first, leave=False)

    def show(self) -> None:
        """Update the run's training time and the display; called after each step."""
        position, now = self._run.position, time.monotonic()
        seconds = max(now - self._started, 1e-9)
        position.training_seconds = self._before + seconds
        self.rate = (position.images - self._images) / seconds
        if self._bar is None and now - self._shown < LINE_SECONDS:
            return
        epochs = self._epochs - position.epoch
        remaining = seconds / (position.step - self._first) * (epochs * self._steps - position.step)
        found = {
            **{name: f"{value:.4f}" for name, value in position.means().items()},
            "nmi_previous": f"{self._run.agreement:.3f}",
            "empty_classes": str(position.empty),
            **({"coverage": f"{self._covered:.3f}"} if self._covered is not None else {}),
            "left": str(datetime.timedelta(seconds=round(remaining))),
        }
        if self._bar is not None:
            self._bar.update(position.step - self._bar.n)
            self._bar.set_postfix(found, refresh=False)
            return
        self._shown = now
        shown = "  ".join(f"{key} {value}" for key, value in found.items())
        self._say(f"{self._title}  step {position.step}/{self._steps}  {shown}  {self.rate:.0f} images/s")

    def close(self) -> None:
        """Close the bar at the end of the epoch."""
        if self._bar is not None:
            self._bar.close()


class Board:
    """A run's TensorBoard, from its first finished epoch on."""

    def __init__(self) -> None:
        self._writer: SummaryWriter | None = None

    def write(self, folder: Path, line: dict[str, Any], rate: float) -> None:
        """Write an epoch's line, and images per second, below a run's folder.

        Entries of an interrupted run for the same epochs are dropped.
        """
        epoch = line["epoch"]
        if self._writer is None:
            # Imported here: only training needs it.
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=epoch)
        for key, value in line.items():
            self._writer.add_scalar(key, value, epoch)
        self._writer.add_scalar("images_per_second", rate, epoch)
        self._writer.flush()

    def close(self) -> None:
        """Close it, if anything was written."""
        if self._writer is not None:
            self._writer.close()
