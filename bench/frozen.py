"""Evaluations of a frozen network: five probes in one pass beside five passes, episodes without and with features.

The separate arms run the same code with one layer at a time, up to which alone the trunk is computed. Probes and
ten-crop test: AlexNet at 224 pixels, 1000 classes and batches of 256, as on ImageNet. Where decoding is to be the
limit, the network sees 64 pixels of photographs of 1000×750: this machine has no GPU to make 224 pixels cheap.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.loader import photographs
from bench.measure import Arm, Bars, interleaved, ratios, seconds
from uic_core import recipe
from uic_core.config import Fewshot, LinearProbe
from uic_core.data import cache
from uic_core.data.augment import normalize
from uic_core.data.index import Index, build_imagenet
from uic_core.data.loader import Loader
from uic_core.evaluate import fewshot, ten_crop
from uic_core.evaluate.heads import Affine, build_heads
from uic_core.evaluate.probes import Probes
from uic_core.files import read_yaml
from uic_core.models import Network, build

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5")
CLASSES, BATCH, PAIRS = 1000, 256, 3
EPISODES, NAIVE_EPISODES = 10_000, 20

EVALUATIONS = read_yaml(Path(__file__).parents[1] / "config" / "paper.yaml")["evaluations"]


def alexnet(image_size: int) -> Network:
    """A frozen AlexNet with Sobel filters and random weights."""
    torch.manual_seed(0)
    network = build("alexnet", classes=CLASSES, image_size=image_size, sobel=True).eval().requires_grad_(False)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def probe_protocol(layers: tuple[str, ...]) -> LinearProbe:
    """The paper's, on these layers."""
    section = EVALUATIONS["linear_probe"]
    return recipe.parse(LinearProbe, section | {"layers": section["layers"] | {"alexnet": list(layers)}}, "bench")


def probing(network: Network, index: Index, resize: int, workers: int) -> dict[str, Arm]:
    """One epoch of training: all layers together, and one after the other."""

    def epochs(*runs: tuple[str, ...]) -> Arm:
        made = [Probes(network, index, index, probe_protocol(layers), resize, workers) for layers in runs]

        def work() -> None:
            with contextlib.redirect_stdout(None):  # a line an epoch
                for probes in made:
                    probes.train_epoch()
                    probes.waiting.clear()

        return seconds(work)

    return {"shared": epochs(LAYERS), "separate": epochs(*((layer,) for layer in LAYERS))}


def testing(network: Network, index: Index) -> dict[str, Arm]:
    """Ten-crop test of one epoch's heads: all layers together, and one after the other."""
    heads = build_heads(network, LAYERS, CLASSES, probe_protocol(LAYERS))
    trained = {layer: head.affine() for layer, head in heads.items()}

    def tests(*snapshots: dict[str, Affine]) -> Arm:
        return seconds(lambda: [list(ten_crop.hits(network, [snapshot], index, 256)) for snapshot in snapshots])

    return {"shared": tests(trained), "separate": tests(*({layer: affine} for layer, affine in trained.items()))}


def labelled(index: Index, classes: int) -> Index:
    """The images as if they were of so many classes, equally many of each."""
    labels = (np.arange(len(index)) % classes).astype(np.int32)
    return replace(index, classes=tuple(str(number) for number in range(classes)), labels=labels)


def few_shot(network: Network, index: Index, folder: Path, protocol: Fewshot) -> tuple[float, float]:
    """Seconds for all episodes at one resolution, (features of the images, Gram matrices and episodes)."""
    (resolution,) = protocol.resolutions.values()
    stored: dict[str, fewshot.Features] = {}
    extracting = seconds(
        lambda: stored.update(fewshot.extract(network, index, resolution, protocol.layers, folder, workers=0))
    )()

    def rest() -> None:
        episodes = fewshot.draw_episodes(index, protocol)
        for features in stored.values():
            fewshot.accuracies(fewshot.gram(features.chunks(), len(index), torch.device("cpu")), episodes)

    return extracting, seconds(rest)()


def nearest(features: Tensor, protocol: Fewshot) -> Tensor:
    """Whether each query of an episode is nearest to its own class's mean; features [ways · (shots + queries), D]."""
    images = features.view(protocol.ways, protocol.shots + protocol.queries, -1)
    means = images[:, : protocol.shots].mean(1)
    distances = torch.cdist(images[:, protocol.shots :].flatten(0, 1), means)
    return distances.argmin(1) == torch.arange(protocol.ways).repeat_interleave(protocol.queries)


def naive_few_shot(network: Network, index: Index, protocol: Fewshot) -> float:
    """Seconds for the episodes as ProtoNet's evaluation does them: each computes the features of its images."""
    (resolution,) = protocol.resolutions.values()
    episodes = fewshot.draw_episodes(index, protocol)
    images = np.concatenate([episodes.support, episodes.query], axis=2).reshape(protocol.episodes, -1)
    loader = Loader(index, resolution.crop, resolution.resize, images.shape[1], 0)

    @torch.no_grad()
    def work() -> None:
        for crops, _ in loader.stream(images, "center_crop", 0, 0):
            taps = network.taps(normalize(crops), ["conv3", "conv4", "conv5"])
            for features in (*taps.values(), network.pool_last(taps["conv5"])):
                nearest(features.flatten(1), protocol)

    return seconds(work)()


def stored_few_shot(dimensions: list[int], index: Index, protocol: Fewshot) -> float:
    """Seconds for the episodes from features that are computed once and lie in memory, one layer after the other."""
    episodes = fewshot.draw_episodes(index, protocol)
    images = torch.from_numpy(np.concatenate([episodes.support, episodes.query], axis=2)).flatten(1)

    def work() -> Iterator[Tensor]:
        for dimension in dimensions:
            features = torch.rand(len(index), dimension)
            yield from (nearest(features[of_one], protocol) for of_one in images)

    return seconds(lambda: list(work()))()


def main() -> None:
    """Print the bars."""
    bars = Bars("frozen")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(f"  probes, compute-bound: {BATCH} images of 224 pixels a step, decoded before")
        photographs(folder / "small", BATCH, 280, 256)
        small = labelled(build_imagenet(folder / "small", "train"), CLASSES)
        found = interleaved(probing(alexnet(224), cache.build(small, folder, "uint8", 256), 256, workers=0), PAIRS)
        bars.at_least("probes-shared-compute-bound", ratios(found["separate"], found["shared"]), 2.7)
        print("  ten-crop test: 25 images of 224 pixels, heads of one epoch")
        found = interleaved(testing(alexnet(224), small.subset(25, 0)), PAIRS)
        bars.at_least("ten-crop-shared", ratios(found["separate"], found["shared"]), 2.9)

        print(f"  probes, decode-bound: {2 * BATCH} photographs an epoch, one process decodes, one trains")
        photographs(folder / "large", 2 * BATCH, 1000, 750)
        large = labelled(build_imagenet(folder / "large", "train"), 20)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        found = interleaved(probing(alexnet(64), large, 256, workers=1), PAIRS)
        torch.set_num_threads(threads)
        bars.at_least("probes-shared-decode-bound", ratios(found["separate"], found["shared"]), 4.5)

        section = EVALUATIONS["fewshot"]
        section |= {"resolutions": {"native": section["resolutions"]["native"]}, "episodes": EPISODES}
        protocol = recipe.parse(Fewshot, section, "bench")
        photographs(folder / "mini", 12_000, 84, 84)
        mini = labelled(build_imagenet(folder / "mini", "train"), 20)
        print(f"  few-shot: {len(mini)} images of 84 pixels, all four columns, {EPISODES} episodes")
        network = alexnet(224)
        extracting, rest = few_shot(network, mini, folder, protocol)
        few = protocol.model_copy(update={"episodes": NAIVE_EPISODES})
        scale = EPISODES / NAIVE_EPISODES
        naive = [naive_few_shot(network, mini, few) * scale for _ in range(PAIRS)]
        print(f"  features once: {extracting:.3g} s; Gram matrices and episodes: {rest:.3g} s")
        print(f"  features in each episode: {min(naive):.4g} … {max(naive):.4g} s, from {NAIVE_EPISODES} episodes")
        bars.at_least("fewshot-episodes", [value / (extracting + rest) for value in naive], 50)
        stored = stored_few_shot([6144, 6144, 4096, 256], mini, few.model_copy(update={"episodes": 200}))
        print(f"  distances from stored features: {stored * EPISODES / 200:.3g} s, from 200 episodes (no bar)")
    bars.close()


if __name__ == "__main__":
    main()
