"""What bench/gpu assembles, where no GPU is at hand."""

import pytest

from bench import gpu
from bench.measure import Bars
from bench.precision import trained
from uic_core.models import ARCHS


@pytest.mark.parametrize(("arch", "giga"), [("alexnet", 6.5), ("resnet50", 24.3)])
def test_a_step_costs_what_the_protocol_says(arch, giga):
    """Forward and backward of an image at 224 pixels, 3,000 classes."""
    recipe, _ = trained(arch, 224, 2, 3000, 3000)
    assert gpu.flops(recipe) / 1e9 == pytest.approx(giga, rel=0.02)
    assert ARCHS[arch].training_gflop == giga


def test_a_rate_becomes_a_share_of_the_matrix_rate():
    bars = Bars("gpu")
    rates = {"resident": [100.0], "end to end": [80.0], "batch × 4": [110.0]}
    gpu.report(bars, "alexnet", 256, 2e9, [1e12], rates, 0.35)
    shown = [line.split()[:3] for line in bars.lines]
    assert shown == [
        ["MISS", "gpu-alexnet", "0.2"],
        ["MISS", "gpu-end-to-end-alexnet", "0.8"],
        ["PASS", "gpu-batch-256", "0.9091"],
    ]
    assert bars.missed


def test_without_a_gpu_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu"])
    gpu.main()
    assert capsys.readouterr().out == "no GPU at hand: bench/gpu measures nothing here\n"
