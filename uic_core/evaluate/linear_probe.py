"""Stage `linear_probe`: linear classifiers on frozen layers of a network (docs/protocol.md, Linear probes).

Makes Tables 1, 2, 3, 6 and 7. Expected for AlexNet on ImageNet, conv1 to conv5: 12.8 34.3 41.6 41.5 39.0 after UIC and
further fine-tuning, 19.3 36.3 44.2 48.3 50.5 with annotated labels, 11.6 17.1 16.9 16.3 14.1 with random weights.
Cost at paper scale: 32 epochs of forward passes for all layers together, and three ten-crop test passes.

Runs in one process, or in several under torchrun. Each process takes its share of every batch; the results equal those
of one process, except for a head's batch norm (see `heads`). SIGTERM and SIGUSR1 save the state beside the metrics and
end with status 75; the same command resumes. A state of another checkpoint, protocol or data set is not used.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch

from uic_core import checkpoint, recipe
from uic_core.arguments import add_save_every, add_threads, stage_parser
from uic_core.data.index import Index
from uic_core.errors import stage
from uic_core.evaluate.frozen import demand
from uic_core.evaluate.probes import Curve, Probes, settings
from uic_core.evaluate.ten_crop import CROPS
from uic_core.evaluations import SECTIONS, LinearProbe, PeerProbe
from uic_core.run import cpus, devices, finished, metrics, parallel, randomness
from uic_core.run.saved_state import Saver, State
from uic_core.run.signals import Signals

_PROBES = {name: section for name, section in SECTIONS.items() if issubclass(section, LinearProbe)}


def values(curves: dict[str, Curve], images: int) -> dict[str, metrics.Value]:
    """Compute the metrics of each layer.

    `<layer>` and `<layer>/top5` are those of the epoch with the best top-1 (the first one if tied; chosen on the
    validation images themselves, as in the original code). `<layer>/best_epoch` counts from 1. `<layer>/last` and
    `<layer>/last/top5` are those after the last epoch.

    Args:
        images: number n of validation images; intervals are binomial, ± 1.96·√(p(1 − p)/n).
    """
    found = {}
    for layer, curve in curves.items():
        best = int(curve.top1.argmax())
        found[layer] = metrics.percent(curve.top1[best], images, curve.remark, curve.loss)
        found[f"{layer}/top5"] = metrics.percent(curve.top5[best], images, curve.remark, curve.loss)
        found[f"{layer}/best_epoch"] = metrics.Value(value=best + 1, unit="epoch")
        found[f"{layer}/last"] = metrics.percent(curve.top1[-1], images, curve.remark, curve.loss)
        found[f"{layer}/last/top5"] = metrics.percent(curve.top5[-1], images, curve.remark, curve.loss)
    return found


def main(arguments: list[str] | None = None) -> None:
    """Train and test linear probes on a checkpoint's frozen layers; write the metrics JSON."""
    parser = stage_parser("uic_core.evaluate.linear_probe", main.__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--protocol", type=Path, required=True, help="the config's section of the evaluation")
    parser.add_argument("--evaluation", default="linear_probe", choices=_PROBES, help="default: the paper's")
    parser.add_argument("--train-index", type=Path, required=True)
    parser.add_argument("--val-index", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="metrics JSON to write")
    parser.add_argument("--run", required=True, help="the run's name")
    add_save_every(parser)
    add_threads(parser)
    options = parser.parse_args(arguments)
    with stage(), parallel.group(devices.current()) as ranks, Signals() as signals:
        protocol = recipe.load(_PROBES[options.evaluation], options.protocol)
        demand(protocol.precision, devices.current(), options.evaluation)
        randomness.seed_everything(protocol.seed)
        network, trained_by, origin = checkpoint.of_run(options.run, options.checkpoint)
        network = network.to(devices.current(), memory_format=torch.channels_last)  # type: ignore[call-overload]
        layers, crop = settings(network, protocol, options.evaluation)
        arch = trained_by.arch
        train_index = Index.load(options.train_index, verify=not ranks.rank).subset(
            protocol.images[arch], protocol.seed
        )
        val_index = Index.load(options.val_index, verify=not ranks.rank).subset(
            protocol.val_images[arch], protocol.seed
        )
        identity = {
            "checkpoint": origin.checkpoint,
            "protocol": protocol.model_dump(),
            "train": train_index.fingerprint,
            "val": val_index.fingerprint,
        }
        if finished.put_back([options.out], identity, ranks, print):
            return
        state = State(options.out.parent, identity, prefix=f"{options.evaluation}.")
        beyond: dict[str, Any] = {
            "layers": layers,
            "crop": crop,
            "images": len(train_index),
            "val_images": len(val_index),
            "image_size": network.image_size,
            "resize": trained_by.resize,
            "test": f"mean softmax of {CROPS} crops",
            **({"test": protocol.test} if isinstance(protocol, PeerProbe) else {}),
            "classes": len(train_index.classes),
            "precision": protocol.precision,
            "processes": ranks.world,
        }
        with state.claimed(ranks):
            saver = Saver(state, ranks, signals, options.save_every)
            workers = cpus.workers(options.threads)
            probes = Probes(
                network, train_index, val_index, protocol, trained_by.resize, workers, ranks, saver, options.evaluation
            )
            with contextlib.closing(probes):
                found = values(probes.run(), len(val_index))
            if not ranks.rank:
                state.check_owner()
                metrics.record(
                    options.out, options.evaluation, origin,
                    dataset=metrics.Dataset(
                        name=train_index.name.removesuffix("_train"),
                        fingerprint=f"{train_index.fingerprint}+{val_index.fingerprint}",
                        sizes={"train": len(train_index), "val": len(val_index)},
                    ),
                    values=found, protocol={**protocol.model_dump(), **beyond}, seed=protocol.seed,
                    hardware=devices.hardware(), earlier_seconds=state.earlier_seconds,
                )  # fmt: skip
                finished.keep([options.out], identity)
                state.remove()
        shown = "  ".join(f"{layer} {found[layer].value:.1f}" for layer in layers)
        probes.say(f"{options.run}: top-1 % over {len(val_index)} validation images: {shown}")
        for layer in layers:
            if found[layer].remark:
                probes.say(f"{layer} {found[layer].remark}; lower {options.evaluation}.lr")
        ranks.barrier()


if __name__ == "__main__":
    main()
