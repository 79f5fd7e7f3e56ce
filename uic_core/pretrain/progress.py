"""What a run shows while it trains."""

from __future__ import annotations

import datetime
import sys
import time
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    from uic_core.pretrain.loop import Trainer

LINE_SECONDS = 60


class Progress:
    """A bar on a terminal; in a log, a line a minute in epochs that take longer. Rank 0 alone shows it."""

    def __init__(self, trainer: Trainer, steps: int) -> None:
        """`steps` of the epoch, of which those before the trainer's position are done."""
        position = trainer.position
        self.trainer, self.steps, self.first = trainer, steps, position.step
        self.images = position.images
        self.started = self.said = time.monotonic()
        self.covered = trainer.history[-1]["coverage"] if trainer.history else None  # by the epoch before
        self.title = f"epoch {position.epoch + 1}/{trainer.recipe.epochs}"
        self.bar: tqdm[Any] | None = None
        if not trainer.ranks.rank and sys.stderr is not None and sys.stderr.isatty():
            self.bar = tqdm(desc=self.title, total=steps, initial=position.step, leave=False)

    def show(self) -> None:
        """After each step."""
        position, now = self.trainer.position, time.monotonic()
        seconds = max(now - self.started, 1e-9)
        self.trainer.rate = (position.images - self.images) / seconds
        if self.bar is None and now - self.said < LINE_SECONDS:
            return
        epochs = self.trainer.recipe.epochs - position.epoch
        left = seconds / (position.step - self.first) * (epochs * self.steps - position.step)
        found = {
            "loss": f"{position.loss / position.images:.4f}",
            "nmi_previous": f"{self.trainer.agreement:.3f}",
            "empty_classes": str(position.empty),
            **({"coverage": f"{self.covered:.3f}"} if self.covered is not None else {}),
            "left": str(datetime.timedelta(seconds=round(left))),
        }
        if self.bar is not None:
            self.bar.update(position.step - self.bar.n)
            self.bar.set_postfix(found, refresh=False)
            return
        self.said = now
        shown = "  ".join(f"{key} {value}" for key, value in found.items())
        self.trainer.say(f"{self.title}  step {position.step}/{self.steps}  {shown}  {self.trainer.rate:.0f} images/s")

    def close(self) -> None:
        """The epoch is over."""
        if self.bar is not None:
            self.bar.close()
