"""Evaluations of a frozen network: five probes in one pass beside five passes, episodes without and with features.

The separate arms run the same code with one layer at a time, up to which alone the trunk is computed. Probes and
ten-crop test: AlexNet at 224 pixels, 1000 classes and batches of 256, as on ImageNet. Where decoding is to be the
limit, the network sees 64 pixels of photographs of 1000×750: on a CPU, 224 pixels of smaller ones cost more to see
than to decode.
"""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.loader import photographs
from bench.measure import Arm, Bars, interleaved, ratios, seconds
from uic_core import recipe, runtime
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
IMAGES, EPISODES, NAIVE_EPISODES = 12_000, 10_000, 200
DIMENSION = 4096
"""Of Table 5's column conv5 at 84 pixels; both arms cost in proportion to it."""

EVALUATIONS = read_yaml(Path(__file__).parents[1] / "config" / "paper.yaml")["evaluations"]


def alexnet(image_size: int) -> Network:
    """A frozen AlexNet with Sobel filters and random weights."""
    torch.manual_seed(0)
    network = build("alexnet", classes=CLASSES, image_size=image_size, sobel=True).eval().requires_grad_(False)
    network.to(runtime.device(), memory_format=torch.channels_last)  # type: ignore[call-overload]
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
        def work() -> None:
            for snapshot in snapshots:
                sum(found.sum().item() for _, found in ten_crop.hits(network, [snapshot], index, 256))

        return seconds(work)

    return {"shared": tests(trained), "separate": tests(*({layer: affine} for layer, affine in trained.items()))}


def labelled(index: Index, classes: int) -> Index:
    """The images as if they were of so many classes, equally many of each."""
    labels = (np.arange(len(index)) % classes).astype(np.int32)
    return replace(index, classes=tuple(str(number) for number in range(classes)), labels=labels)


def nearest(features: Tensor, protocol: Fewshot) -> Tensor:
    """An episode from its features [ways · (shots + queries), D]: share of the queries nearest to their own mean."""
    images = features.view(protocol.ways, protocol.shots + protocol.queries, -1)
    means = images[:, : protocol.shots].mean(1)
    found = torch.cdist(images[:, protocol.shots :].flatten(0, 1), means).argmin(1).view(protocol.ways, -1)
    return (found == torch.arange(protocol.ways, device=features.device)[:, None]).double().mean()


def episode_images(episodes: fewshot.Episodes) -> Tensor:
    """Positions [E, ways · (shots + queries)]."""
    return torch.from_numpy(np.concatenate([episodes.support, episodes.query], axis=2)).flatten(1)


def few_shot(index: Index, protocol: Fewshot) -> dict[str, Arm]:
    """All episodes from features that are there: by a Gram matrix, and episode by episode.

    The second arm takes NAIVE_EPISODES of them, and its time is scaled up.
    """
    episodes, device = fewshot.draw_episodes(index, protocol), runtime.device()
    images = episode_images(episodes)[:NAIVE_EPISODES].to(device)
    features = torch.rand(len(index), DIMENSION, device=device)

    def gram() -> None:
        fewshot.accuracies(fewshot.gram([features], len(index), device), episodes)

    def loop() -> None:
        torch.stack([nearest(features[of_one], protocol) for of_one in images]).cpu()

    looping = seconds(loop)
    return {"Gram matrix": seconds(gram), "loop": lambda: looping() * protocol.episodes / NAIVE_EPISODES}


def feature_seconds(network: Network, index: Index, protocol: Fewshot, folder: Path) -> tuple[float, float]:
    """Seconds for the features of 100 images: once each (and written to disk), and of an episode as it comes."""
    (resolution,) = protocol.resolutions.values()
    once = seconds(lambda: fewshot.extract(network, index, resolution, protocol.layers, folder))() * 100 / len(index)
    images = episode_images(fewshot.draw_episodes(index, protocol)).numpy()[:20]
    loader = Loader(index, resolution.crop, resolution.resize, images.shape[1], 0, runtime.device())

    @torch.no_grad()
    def loop() -> None:
        for crops, _ in loader.stream(images, "center_crop", 0, 0):
            taps = network.taps(normalize(crops), ["conv3", "conv4", "conv5"])
            for features in (*taps.values(), network.pool_last(taps["conv5"])):
                nearest(features.flatten(1), protocol).item()

    return once, seconds(loop)() / len(images)


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
        photographs(folder / "mini", IMAGES // 10, 84, 84)
        tenth = labelled(build_imagenet(folder / "mini", "train"), 20)
        once, again = feature_seconds(alexnet(224), tenth, protocol, folder)
        whole = replace(tenth, paths=np.tile(tenth.paths, 10), labels=np.tile(tenth.labels, 10))
        print(f"  few-shot: {EPISODES} episodes of {IMAGES} images, {DIMENSION} features (conv5 at 84 pixels)")
        found = interleaved(few_shot(whole, protocol), PAIRS)
        bars.at_least("fewshot-episodes", ratios(found["loop"], found["Gram matrix"]), 50)
        once, again = once * IMAGES / 100, again * EPISODES
        print(
            f"  features: {once:.0f} s once for each image; {again:.0f} s in each episode, as in ProtoNet's evaluation"
        )
        print("  (four columns, scaled up from 1200 images and 20 episodes; no bar)")
    bars.close()


if __name__ == "__main__":
    main()
