"""Evaluations of a frozen network: five probes in one pass or in five, features computed once or in every episode.

The separate arms run the same code for one layer at a time and compute the trunk only up to that layer. Probes and
ten-crop test: AlexNet at 224 pixels, 1000 classes and batches of 256, as on ImageNet. For the decode-bound case, the
network sees 64 pixels of photographs of 1000×750: on a CPU, the network at 224 pixels costs more than decoding.
"""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench import fewshot_scale
from bench.fewshot_scale import IMAGES, labelled
from bench.loader import photographs
from bench.measure import Arm, Bars, interleaved, ratios, seconds
from uic_core import recipe
from uic_core.data import cache
from uic_core.data.augment import normalize
from uic_core.data.index import Index, build_folder
from uic_core.data.loader import Loader
from uic_core.evaluate import fewshot, ten_crop
from uic_core.evaluate.frozen import fingerprint
from uic_core.evaluate.heads import Affine, build_heads
from uic_core.evaluate.inputs import layers_of
from uic_core.evaluate.probes import Probes
from uic_core.evaluations import Fewshot, LinearProbe
from uic_core.models import build
from uic_core.models.architecture import MAX_POOLED
from uic_core.models.network import Network
from uic_core.run import devices
from uic_core.strict_yaml import read_yaml

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5")
CLASSES, BATCH = 1000, 256
EPISODES, NAIVE_EPISODES, MEMORY_EPISODES = 10_000, 10, 200
DIMENSION = 4096
"""Dimension of Table 5's column conv5 at 84 pixels."""

EVALUATIONS = read_yaml(Path(__file__).parents[1] / "config" / "paper.yaml")["evaluations"]


def alexnet(image_size: int) -> Network:
    """A frozen AlexNet with Sobel filters and random weights."""
    torch.manual_seed(0)
    network = build("alexnet", classes=CLASSES, image_size=image_size, sobel=True).eval().requires_grad_(False)
    network.to(devices.current(), memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def probe_protocol(layers: tuple[str, ...]) -> LinearProbe:
    """Return the paper's protocol for these layers."""
    section = EVALUATIONS["linear_probe"]
    return recipe.parse(LinearProbe, section | {"layers": section["layers"] | {"alexnet": list(layers)}}, "bench")


def probing(network: Network, index: Index, resize: int, workers: int) -> dict[str, Arm]:
    """Arms of one epoch of training: all layers together, and one after the other."""

    def epochs(*runs: tuple[str, ...]) -> Arm:
        made = [Probes(network, index, index, probe_protocol(layers), resize, workers) for layers in runs]

        def work() -> None:
            with contextlib.redirect_stdout(None):  # one line per epoch
                for probes in made:
                    probes.train_epoch()
                    probes.waiting.clear()

        return seconds(work)

    return {"shared": epochs(LAYERS), "separate": epochs(*((layer,) for layer in LAYERS))}


def testing(network: Network, index: Index) -> dict[str, Arm]:
    """Arms of a ten-crop test of one epoch's heads: all layers together, and one after the other."""
    heads = build_heads(network, LAYERS, CLASSES, probe_protocol(LAYERS))
    trained = {layer: head.affine() for layer, head in heads.items()}

    def tests(*snapshots: dict[str, Affine]) -> Arm:
        def work() -> None:
            for snapshot in snapshots:
                sum(found.sum().item() for _, found in ten_crop.hits(network, [snapshot], index, 256))

        return seconds(work)

    return {"shared": tests(trained), "separate": tests(*({layer: affine} for layer, affine in trained.items()))}


def nearest(features: Tensor, protocol: Fewshot) -> Tensor:
    """Return the share of an episode's queries nearest to their own mean; features [ways · (shots + queries), D]."""
    images = features.view(protocol.ways, protocol.shots + protocol.queries, -1)
    means = images[:, : protocol.shots].mean(1)
    found = torch.cdist(images[:, protocol.shots :].flatten(0, 1), means).argmin(1).view(protocol.ways, -1)
    return (found == torch.arange(protocol.ways, device=features.device)[:, None]).double().mean()


def episode_images(episodes: fewshot.Episodes) -> Tensor:
    """Return positions [E, ways · (shots + queries)]."""
    return torch.from_numpy(np.concatenate([episodes.support, episodes.query], axis=2)).flatten(1)


def few_shot(network: Network, index: Index, protocol: Fewshot, folder: Path) -> dict[str, Arm]:
    """Arms that evaluate 10 · len(index) images, four columns at one resolution: ours, and features in each episode.

    Ours draws the episodes, computes every image's features once, to disk and back (a tenth of the images, times ten,
    except for the assertion that the network did not change), and for each column computes the Gram matrix (of one
    column, times the columns' dimensions) and all episodes. The other works like ProtoNet's evaluation: it reads an
    episode's images, computes their features and classifies the queries (NAIVE_EPISODES, scaled up). Each scaled cost
    is proportional to its factor.
    """
    ((_, resolution),) = protocol.resolutions.items()
    layers, device = layers_of(network.arch, protocol, "fewshot"), devices.current()
    whole = replace(index, paths=np.tile(index.paths, 10), labels=np.tile(index.labels, 10))
    column = torch.rand(len(whole), DIMENSION, device=device)
    images = episode_images(fewshot.draw_episodes(index, protocol)).numpy()[:NAIVE_EPISODES]
    loader = Loader(index, resolution.crop, resolution.resize, images.shape[1], 0, device)

    def ours() -> float:
        episodes: list[fewshot.Episodes] = []
        drawing = seconds(lambda: episodes.append(fewshot.draw_episodes(whole, protocol)))()
        stored: dict[str, fewshot.Features] = {}
        asserting = 2 * seconds(lambda: fingerprint(network))()  # before and after, whatever the number of images
        extracting = seconds(lambda: stored.update(fewshot.extract(network, index, resolution, layers, folder)))()
        extracting += seconds(lambda: [len(chunk) for features in stored.values() for chunk in features.chunks()])()
        extracting = asserting + 10 * (extracting - asserting)
        products: list[Tensor] = []

        def multiply() -> None:
            products.append(fewshot.gram([column], len(whole), device))
            products[0][0, 0].item()  # waits for the device

        dimensions = sum(features.dimension for features in stored.values())
        for features in stored.values():
            features.close()
        multiplying = seconds(multiply)() * dimensions / DIMENSION
        classifying = seconds(lambda: fewshot.accuracies(products[0], episodes[0]))() * len(layers)
        return drawing + extracting + multiplying + classifying

    @torch.no_grad()
    def loop() -> None:
        for crops, _ in loader.stream(images, "center_crop", 0, 0):
            taps = network.taps(normalize(crops), dict.fromkeys(layer.removesuffix(MAX_POOLED) for layer in layers))
            for layer in layers:
                tapped = taps[layer.removesuffix(MAX_POOLED)]
                maps = network.pool_last(tapped) if layer.endswith(MAX_POOLED) else tapped
                nearest(maps.flatten(1), protocol).item()

    looping = seconds(loop)
    return {"features once, Gram matrix": ours, "features in each episode": lambda: looping() * EPISODES / len(images)}


def from_memory(index: Index, protocol: Fewshot) -> float:
    """For information: time of a loop over episodes with features in memory ÷ time of Gram matrix and episodes."""
    device = devices.current()
    whole = replace(index, paths=np.tile(index.paths, 10), labels=np.tile(index.labels, 10))
    episodes, features = fewshot.draw_episodes(whole, protocol), torch.rand(len(whole), DIMENSION, device=device)
    some = episode_images(episodes)[:MEMORY_EPISODES].to(device)
    ours = seconds(lambda: fewshot.accuracies(fewshot.gram([features], len(whole), device), episodes))()
    loop = seconds(lambda: torch.stack([nearest(features[images], protocol) for images in some]).cpu())()
    return loop * EPISODES / MEMORY_EPISODES / ours


def main() -> None:
    """Print the bars."""
    bars = Bars("frozen")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(f"  probes, compute-bound: {BATCH} images of 224 pixels a step, decoded before")
        photographs(folder / "small", BATCH, 280, 256)
        small = labelled(build_folder(folder / "small", "train", "imagenet"), CLASSES)
        found = interleaved(probing(alexnet(224), cache.build(small, folder, "uint8", 256), 256, workers=0))
        bars.at_least("probes-shared-compute-bound", ratios(found["separate"], found["shared"]), 2.7)
        print("  ten-crop test: 10 images of 224 pixels in one batch, heads of one epoch")
        found = interleaved(testing(alexnet(224), small.subset(10, 0)))
        bars.at_least("ten-crop-shared", ratios(found["separate"], found["shared"]), 2.9)

        print(f"  probes, decode-bound: {2 * BATCH} photographs an epoch, one process decodes, one trains")
        photographs(folder / "large", 2 * BATCH, 1000, 750)
        large = labelled(build_folder(folder / "large", "train", "imagenet"), 20)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        found = interleaved(probing(alexnet(64), large, 256, workers=1))
        torch.set_num_threads(threads)
        bars.at_least("probes-shared-decode-bound", ratios(found["separate"], found["shared"]), 4.5)

        section = EVALUATIONS["fewshot"]
        native = {"resolutions": {"native": section["resolutions"]["native"]}, "episodes": EPISODES}
        protocol = recipe.parse(Fewshot, section | native, "bench")
        photographs(folder / "mini", IMAGES // 10, 84, 84)
        tenth = labelled(build_folder(folder / "mini", "train", "imagenet"), 20)
        print(f"  few-shot: {EPISODES} episodes of {IMAGES} images, four columns at 84 pixels")
        found = interleaved(few_shot(alexnet(224), tenth, protocol, folder))
        once, again = found.values()
        bars.at_least("fewshot-episodes", ratios(again, once), 50)
        ratio = from_memory(tenth, protocol)
        print(f"  a loop from features in memory takes {ratio:.1f} times Gram matrix and episodes (conv5; no bar)")
        fewshot_scale.scaled(bars, tenth, folder)
    bars.close()


if __name__ == "__main__":
    main()
