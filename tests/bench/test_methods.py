"""What bench/methods times in an epoch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.methods import KMEANS_ITERATIONS, Epoch, Turns, clustered, recipe_of, resident, trainer_of
from bench.precision import unread
from uic_core.methods import deepcluster, kmeans
from uic_core.run.saved_state import State

TINY = {"classes": 4, "batch_size": 8, "pca": 4, "kmeans_iterations": 2}


class OneEpoch:
    """The end of a pipe that asks for one epoch."""

    def __init__(self) -> None:
        self.asked, self.sent = [True, False], list[Epoch]()

    def recv(self) -> bool:
        return self.asked.pop(0)

    def send(self, epoch: Epoch) -> None:
        self.sent.append(epoch)


@pytest.mark.parametrize("way", ["by_faiss", "by_torch"])
def test_deepclusters_parts_are_timed_on_either_way(way, monkeypatch, tmp_path):
    """The bench subtracts them, so none may be missing where there is a GPU."""
    monkeypatch.setattr(deepcluster, "by_faiss", getattr(deepcluster, way))
    # Eigenvectors of 4,096 numbers take a minute here.
    monkeypatch.setattr(kmeans, "whitened", lambda features, *_: features[:, :4].contiguous())
    for owner, name in ((deepcluster, "whiten"), (deepcluster, "kmeans"), (kmeans, "clustered"), (State, "save")):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # put back afterwards
    trainer = trainer_of(recipe_of("deepcluster", **TINY), unread(16, 4), 0, resident)
    pipe = OneEpoch()
    Turns(pipe).watch(trainer)
    with pytest.raises(SystemExit):
        trainer.run(tmp_path)
    (epoch,) = pipe.sent
    assert {"centre-crop pass", "PCA", "k-means", "waiting for images"} <= set(epoch.parts)
    assert min(epoch.parts.values()) > 0
    assert sum(epoch.parts.values()) < epoch.whole


def test_many_images_are_clustered_as_an_epochs_are(monkeypatch):
    rows, asked = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32), []
    monkeypatch.setattr(deepcluster, "kmeans", lambda *call: asked.append(call))
    clustered(rows, 5)
    assert asked == [(rows, 5, KMEANS_ITERATIONS, 0)]
    monkeypatch.undo()
    monkeypatch.setattr("bench.methods.devices.current", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, _: tensor)
    found = []
    monkeypatch.setattr(kmeans, "clustered", lambda *call: found.append(call))
    clustered(rows, 5)
    assert [*map(len, found[0][:2]), *found[0][2:]] == [20, 20, 20, 5, KMEANS_ITERATIONS, 0]
