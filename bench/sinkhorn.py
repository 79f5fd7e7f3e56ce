"""Labels of 100,000 images in 3,000 classes by Sinkhorn-Knopp, as SelfLabel makes them: time and memory, on one CPU.

The time is printed beside that of the forward pass whose features it takes: AlexNet at 224 pixels, scaled up from a few
batches. Features and top layers are drawn: one as at the start of a training, one whose logits spread as those of a
trained network do. All times are CPU seconds of one thread.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import linear

from bench.measure import Bars
from uic_core.methods.sinkhorn import Assigned, assign
from uic_core.models import build
from uic_core.run import randomness, scratch

IMAGES, CLASSES, WIDTH = 100_000, 3000, 4096
IMAGENET = 1_281_167
SHARPNESS, TOLERANCE = 25.0, 0.1
SPREADS = {"untrained": 0.1, "trained": 2.0}  # deviation of the logits
FEW = 10_000  # images whose labels are made with float32, too
BATCH, BATCHES = 32, 6  # of the forward pass
DIFFERING = 0.001  # share of labels that two bytes a number may change
_CPU = torch.device("cpu")


def drawn(images: int, folder: Path) -> Tensor:
    """Draw features as a pass leaves them: behind a ReLU, around 6,000 centres, in a file of two bytes a number."""
    features = scratch.matrix(images, WIDTH, torch.float16, folder, 0, _CPU)
    centres = torch.randn(2 * CLASSES, WIDTH)
    for first in range(0, images, 1000):
        rows = centres[torch.randint(len(centres), (min(1000, images - first),))]
        features[first : first + 1000] = (rows + torch.randn(rows.shape)).relu()
    return features


def top(features: Tensor, spread: float) -> Callable[[slice], Tensor]:
    """Draw a top layer whose logits of an image have this deviation over the classes."""
    weight = torch.randn(CLASSES, WIDTH)
    weight *= spread / linear(features[:1000].float(), weight).std(1).mean()
    return lambda rows: linear(features[rows].float(), weight)


def transported(logits: Callable[[slice], Tensor], plan: Tensor) -> tuple[Assigned, float, float]:
    """Make labels by SelfLabel's settings for ImageNet; return them, and CPU seconds: of all, and of an iteration."""
    ends = [time.process_time()]
    found = assign(logits, plan, len(plan), SHARPNESS, TOLERANCE, pause=lambda: ends.append(time.process_time()))
    # It pauses after every iteration; before these, after every chunk.
    each = (ends[-1] - ends[-found.iterations]) / (found.iterations - 1)
    return found, time.process_time() - ends[0], each


def forward() -> float:
    """Return the seconds that an image takes in the pass for labels: train mode, float32."""
    network = build("alexnet", classes=CLASSES, image_size=224, sobel=False).train()
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(BATCH, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        network.hidden(x)
        started = time.process_time()
        for _ in range(BATCHES):
            network.hidden(x)
    return (time.process_time() - started) / (BATCH * BATCHES)


class Memory:
    """The most memory of this process in a `with` block, without pages of files: `peak`, bytes."""

    def __enter__(self) -> Memory:
        self.peak, self._over = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            lines = Path("/proc/self/status").read_text().splitlines()
            held = next(line.split()[1] for line in lines if line.startswith("RssAnon"))
            self.peak = max(self.peak, 1024 * int(held))


def main() -> None:
    """Print the bars."""
    bars = Bars("sinkhorn")
    torch.set_num_threads(1)
    randomness.seed_everything(0)
    image = forward()
    print(f"  a forward pass of {IMAGES:,} images, from {BATCH * BATCHES} of them: {image * IMAGES:.0f} s")
    with tempfile.TemporaryDirectory() as name:
        features = drawn(IMAGES, Path(name))
        peaks, shares = [], []
        for state, spread in SPREADS.items():
            logits = top(features, spread)
            plans = (torch.empty(FEW, CLASSES, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
            exact, short = (transported(logits, plan)[0].labels for plan in plans)
            shares.append(float((exact != short).double().mean()))
            print(f"  {state}: of {FEW:,} labels two bytes a number change {shares[-1] * FEW:.0f}", flush=True)
            with Memory() as memory:
                plan = scratch.matrix(IMAGES, CLASSES, torch.bfloat16, Path(name), 1 << 40, _CPU)
                whole, taken, each = transported(logits, plan)
            peaks.append(memory.peak / 1e9)
            print(
                f"  {state}: {taken:.0f} s, {taken / (image * IMAGES):.3f} of the forward pass; "
                f"{whole.iterations} iterations of {each:.2f} s (error {whole.error:.2g}), the rest three times the "
                f"logits and their exponentials; {IMAGENET:,} images: {each * IMAGENET / IMAGES:.1f} s an iteration",
                flush=True,
            )
    bars.at_most("sinkhorn-memory-gb", peaks, 2e-9 * IMAGES * CLASSES + 1)
    bars.at_most("sinkhorn-labels-differ", shares, DIFFERING)
    bars.close()


if __name__ == "__main__":
    main()
