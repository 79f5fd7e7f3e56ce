"""Stage `pretrain`: a recipe and an index of images -> checkpoint, labels, history.

Runs as one process, or as several under torchrun: `torchrun --nproc-per-node 4 -m uic_core.pretrain …`. After SIGTERM
or SIGUSR1 it saves its state and exits with status 75; the same command resumes it.
"""

from __future__ import annotations

from pathlib import Path

from uic_core import checkpoint
from uic_core.arguments import add_save_every, add_threads, stage_parser
from uic_core.data.index import Index
from uic_core.errors import InputError, stage
from uic_core.methods import load_run
from uic_core.models import build
from uic_core.pretrain.loop import Trainer
from uic_core.pretrain.results import keep_initial
from uic_core.recipe import External, Training
from uic_core.run import cpus, devices, metrics, parallel, randomness


def main(arguments: list[str] | None = None) -> None:
    """Run the stage; --help lists the arguments. Exits with 2 and one line on a user's mistake."""
    parser = stage_parser("uic_core.pretrain", __doc__)
    parser.add_argument("--recipe", type=Path, required=True, help="YAML of a run's recipe")
    parser.add_argument("--train-index", type=Path, required=True, help="index of the training images")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--pretrained", type=Path, help="for recipes with this key: the checkpoint to start from")
    add_save_every(parser)
    add_threads(parser)
    options = parser.parse_args(arguments)
    with stage(), parallel.group(devices.current()) as ranks:
        metrics.code()  # now: when the training ends, the clone may be at another commit
        recipe = load_run(options.recipe)
        if isinstance(recipe, External):
            raise InputError(f"{options.recipe}: method external does not train; give it to uic_core.pretrain.external")
        if recipe.start and not options.pretrained:
            raise InputError(
                f"--pretrained: missing; {options.recipe} starts from run '{recipe.start}', give its checkpoint"
            )
        if options.pretrained and not recipe.start:
            raise InputError(
                f"--pretrained: method '{recipe.method}' of {options.recipe} does not read it; leave it out"
            )
        index = Index.load(options.train_index, verify=not ranks.rank)
        randomness.seed_everything(recipe.seed)
        start = None
        if options.pretrained:
            network, _, start = checkpoint.of_run(recipe.start, options.pretrained)
            found = {"arch": network.arch, "sobel": network.uses_sobel}
            found |= {"classes": network.classes, "image_size": network.image_size}
            for key, value in found.items():
                if value != getattr(recipe, key):
                    raise InputError(
                        f"{options.pretrained}: {key} is {value}, "
                        f"but {options.recipe} says {getattr(recipe, key)}; make them equal"
                    )
        else:
            network = build(recipe.arch, classes=recipe.outputs, image_size=recipe.image_size, sobel=recipe.sobel)
        if not isinstance(recipe, Training):
            if not ranks.rank:
                keep_initial(recipe, index, network, options.out)
            return
        workers = cpus.workers(options.threads)
        trainer = Trainer(recipe, index, network, start, ranks, workers, options.save_every, options.threads)
        trainer.run(options.out)


if __name__ == "__main__":
    main()
