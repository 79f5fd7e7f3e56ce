"""Stage `export`: a checkpoint -> weights with the names of torchvision and of OpenMMLab, with a model card.

`torchvision.safetensors` loads into torchvision's resnet50 and vgg16_bn, strictly if there are no Sobel filters and no
MLP head; AlexNet's names follow torchvision's too. It holds the top layer only if that was trained, so not if an
external checkpoint had none. `openmmlab.safetensors` holds the backbone only: for ResNet50 with the names of mmdet's
and mmseg's ResNet, for AlexNet and VGG16 with those of this suite's UicBackbone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import yaml
from torch import Tensor

from uic_core import checkpoint
from uic_core.arguments import stage_parser
from uic_core.errors import InputError, stage
from uic_core.files import atomic, sha256, write_text
from uic_core.models import ARCHS, formats
from uic_core.models.network import Network
from uic_core.recipe import External, Recipe
from uic_core.run import metrics as metrics_file
from uic_core.run.metrics import Metrics, Value

FILES = ("torchvision.safetensors", "openmmlab.safetensors")


def torchvision_weights(network: Network) -> dict[str, Tensor]:
    """All trained weights. The top layer is named `fc` or `classifier.6`, an MLP head `head`."""
    return formats.to_theirs(network, "torchvision")


def openmmlab_weights(network: Network) -> dict[str, Tensor]:
    """The backbone's weights with the prefix `backbone.`, without classifier and top layer."""
    if ARCHS[network.arch].resnet_depth:
        found = formats.to_theirs(network, "torchvision")
        own = {name: tensor for name, tensor in found.items() if not name.startswith(("fc.", "head."))}
    else:
        own = {name: tensor for name, tensor in network.state_dict().items() if name.startswith("features.")}
    return {f"backbone.{name}": tensor for name, tensor in own.items()}


def card(
    run: str, network: Network, recipe: Recipe | External, every: Sequence[Metrics], hashes: dict[str, str]
) -> str:
    """The model card in Markdown: how to load the weights, the recipe, every number with its origin."""
    sobel = "Sobel filters of the normalised image (2 channels)" if network.uses_sobel else "the normalised RGB image"
    depth = ARCHS[network.arch].resnet_depth
    load = _LOAD_RESNET if depth else _LOAD_OTHERS
    outputs = f"{network.classes} outputs" if network.top_filled else "without a top layer"
    head = depth and len(network.classifier) > 1
    left = ["the MLP `head.*` is none of torchvision's"] if head else []
    left += [] if network.top_filled else ["there is no `fc`"]
    strict = f", strict=False)  # {'; '.join(left)}" if left else ")"
    conv1 = "network.conv1 = torch.nn.Conv2d(2, 64, 7, stride=2, padding=3, bias=False)\n" * network.uses_sobel
    filled = f"A checkpoint filled {checkpoint.percent(network.coverage)} of its weights" + (
        "." if network.top_filled else ": it had no top layer, so there is none in these files."
    )
    lines = [
        f"# {run}",
        "",
        f"{network.arch}, {outputs}, trained by method `{recipe.method}` on {network.image_size}-pixel "
        f"crops. Its first layer sees {sobel}; images are normalised with ImageNet's mean and deviation.",
        filled if isinstance(recipe, External) else "",
        "",
        "## Loading",
        "",
        load.format(
            arch=network.arch,
            depth=depth,
            classes=network.classes,
            sobel=network.uses_sobel,
            strict=strict,
            conv1=conv1,
        ),
        "",
        "## Recipe",
        "",
        f"```yaml\n{yaml.safe_dump(recipe.written(), sort_keys=False)}```",
        "",
        "## Metrics",
        "",
        "| evaluation | value | | data set | commit | date |",
        "|---|---|---|---|---|---|",
    ]
    for metrics in every:
        facts = f"{metrics.dataset.name} | {metrics.provenance.commit} | {metrics.provenance.date} |"
        lines += [
            f"| {metrics.evaluation} | {name} | {_shown(value)} | {facts}" for name, value in metrics.values.items()
        ]
    if not every:
        lines.append("| none yet | | | | | |")
    lines += ["", "## Files", "", "| file | SHA-256 |", "|---|---|"]
    lines += [f"| {name} | `{digest}` |" for name, digest in hashes.items()]
    lines += ["", f"Recipe {recipe.hash()}.", ""]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Export a run's checkpoint; --help lists the arguments. Exits with 2 and one line on a user's mistake."""
    parser = stage_parser("uic_core.pretrain.export", __doc__)
    parser.add_argument("--run", required=True, help="the run's name")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--metrics", type=Path, nargs="*", default=[], help="metrics JSONs for the model card")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    options = parser.parse_args(arguments)
    with stage():
        network, recipe, origin = checkpoint.of_run(options.run, options.checkpoint)
        every = [metrics_file.read(path) for path in options.metrics]
        for path, metrics in zip(options.metrics, every, strict=True):
            if origin.checkpoint[:16] not in metrics.provenance.checkpoint_hash.split("+"):
                raise InputError(f"{path}: is of another checkpoint than {options.checkpoint}; run snakemake again")
        hashes = {"checkpoint.safetensors (the source)": origin.checkpoint}
        for name, weights in zip(FILES, (torchvision_weights(network), openmmlab_weights(network)), strict=True):
            with atomic(options.out / name) as temporary:
                safetensors.torch.save_file({key: tensor.contiguous() for key, tensor in weights.items()}, temporary)
            hashes[name] = sha256(options.out / name)
        write_text(options.out / "README.md", card(options.run, network, recipe, every, hashes))
        print(f"{options.out}: {', '.join(FILES)} and README.md")


def _shown(value: Value) -> str:
    number = f"{value.value:.1f} {value.unit}"
    if value.std is not None:
        number += f" ± {value.std:.1f} over {value.seeds} seeds"
    elif value.ci95 is not None:
        number += f" ± {value.ci95:.1f}"
    return f"{number}; {value.remark}" if value.remark else number


_LOAD_RESNET = """```python
weights = safetensors.torch.load_file("torchvision.safetensors")
network = torchvision.models.resnet{depth}(num_classes={classes})
{conv1}network.load_state_dict(weights{strict}

weights = safetensors.torch.load_file("openmmlab.safetensors")
backbone = mmdet.models.backbones.ResNet(depth={depth})  # of mmseg the same
backbone.load_state_dict({{name.removeprefix("backbone."): weight for name, weight in weights.items()}})
```"""

_LOAD_OTHERS = """```python
# torchvision.safetensors: torchvision's names (vgg16_bn without Sobel filters loads it); by this suite as
# runs: {{mine: {{method: external, path: torchvision.safetensors, format: torchvision, arch: {arch}, …}}}}
weights = safetensors.torch.load_file("openmmlab.safetensors")
backbone = uic_core.openmmlab.backbones.UicBackbone("{arch}", sobel={sobel})
backbone.load_state_dict({{name.removeprefix("backbone."): weight for name, weight in weights.items()}})
```"""


if __name__ == "__main__":
    main()
