"""Pretraining whose result may not depend on the number of processes: `python -m tests.run.same_statistics …`.

Batch norm's statistics are each process's own, and so is dropout: without both, nothing may differ. With DEVICE in the
environment DeepCluster clusters as on a GPU; whitening is left to tests/methods/test_kmeans.py: its 4,096 eigenvectors
take half a minute of a CPU.
"""

import os

from torch import nn
from torch.nn import functional

from uic_core.methods import deepcluster, kmeans
from uic_core.pretrain import __main__ as stage


def build(*arguments: object, **sizes: object) -> nn.Module:
    made = plain(*arguments, **sizes)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train = lambda mode=True, module=module: nn.Module.train(module, False)
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return made


if __name__ == "__main__":
    plain, stage.build = stage.build, build
    if "DEVICE" in os.environ:
        deepcluster.by_faiss = deepcluster.by_torch
        kmeans.whitened = lambda features, images, dimension, *_: functional.normalize(features[:, :dimension])
    stage.main()
