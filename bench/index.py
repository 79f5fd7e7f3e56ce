"""Loading an index of ImageNet's size, which every process of every stage does first."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from bench.measure import Bars
from uic_core.data.index import Index

IMAGES, CLASSES = 1_281_167, 1000
SECONDS, MEGABYTES = 2, 200
_LOAD = """
import re, sys, time
from pathlib import Path
from uic_core.data.index import Index
# getrusage would count what the parent had before it started this process.
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
before, began = peak(), time.process_time()
index = Index.load(Path(sys.argv[1]))
print(time.process_time() - began, peak() - before)
"""


def save(path: Path) -> None:
    """Write an index of paths as long as ImageNet's."""
    labels = np.arange(IMAGES) * CLASSES // IMAGES
    names = [f"train/n{label:08}/n{label:08}_{number}.JPEG" for number, label in enumerate(labels.tolist())]
    paths = np.array(sorted(names), np.dtypes.StringDType())
    classes = tuple(f"n{label:08}" for label in range(CLASSES))
    Index("imagenet_train", Path("imagenet"), paths, labels.astype(np.int32), classes, "0" * 16).save(path)


def main() -> None:
    """Print the bars."""
    bars = Bars(f"index: {IMAGES} images")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "index.npz"
        save(file)
        command = [sys.executable, "-c", _LOAD, str(file)]
        loads = [subprocess.run(command, check=True, capture_output=True, text=True).stdout.split() for _ in range(3)]
    bars.at_most("index-load-cpu-seconds", [float(seconds) for seconds, _ in loads], SECONDS)
    bars.at_most("index-load-mb", [float(size) for _, size in loads], MEGABYTES)
    bars.close()


if __name__ == "__main__":
    main()
