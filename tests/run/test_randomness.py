"""Counter-based randomness, deterministic kernels, float32."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import stats

from uic_core.errors import InputError
from uic_core.run import randomness


def splitmix64(seed: int, epoch: int, image: int, count: int) -> list[float]:
    """The same numbers with Python's own integers."""
    mask, golden = 2**64 - 1, 0x9E3779B97F4A7C15

    def mix(z: int) -> int:
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
        return z ^ (z >> 31)

    key = mix((seed * golden + 1) & mask)
    key = mix((key + epoch * golden + 2) & mask)
    key = mix((key + image * golden + 3) & mask)
    return [(mix((key + (i + 1) * golden) & mask) >> 11) / 2**53 for i in range(count)]


def test_uniforms_equal_the_scalar_reference():
    images = np.array([0, 1, 7, 1_281_166])
    got = randomness.uniforms(3, 17, images, 5)
    np.testing.assert_array_equal(got, [splitmix64(3, 17, int(i), 5) for i in images])


def test_uniforms_depend_on_the_image_not_on_its_batch():
    images = np.arange(100)
    whole = randomness.uniforms(0, 4, images, 3)
    np.testing.assert_array_equal(randomness.uniforms(0, 4, images[[42, 7]], 3), whole[[42, 7]])


@pytest.mark.parametrize("axis", ["seed", "epoch", "image", "number"])
def test_uniforms_are_uniform_and_uncorrelated_along_every_axis(axis):
    n = 4000
    one = np.array([5])
    draws = {
        "seed": lambda: np.array([randomness.uniforms(s, 0, one, 1)[0, 0] for s in range(n)]),
        "epoch": lambda: np.array([randomness.uniforms(0, e, one, 1)[0, 0] for e in range(n)]),
        "image": lambda: randomness.uniforms(0, 0, np.arange(n), 1)[:, 0],
        "number": lambda: randomness.uniforms(0, 0, one, n)[0],
    }[axis]()
    assert draws.min() >= 0
    assert draws.max() < 1
    assert stats.kstest(draws, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(draws[1:], draws[:-1])[0, 1]) < 0.06


def test_float32_is_float32_even_where_a_container_asks_for_tf32():
    """NVIDIA's containers set TORCH_ALLOW_TF32_CUBLAS_OVERRIDE, with which torch starts as is set here."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    randomness.seed_everything(0)
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.fixture
def restored():
    """Leave torch as this process found it."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize(
    ("gpu", "asked", "expected"),
    [
        (False, None, True),
        (False, "0", True),  # the README promises equal bytes on a CPU
        (False, "1", True),
        (True, None, False),
        (True, "0", False),
        (True, "1", True),
    ],
)
def test_deterministic_kernels_are_asked_for_on_a_cpu_and_by_a_switch_on_a_gpu(monkeypatch, gpu, asked, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    monkeypatch.delenv("UIC_DETERMINISTIC", raising=False)
    if asked is not None:
        monkeypatch.setenv("UIC_DETERMINISTIC", asked)
    torch.use_deterministic_algorithms(not expected)
    randomness.seed_everything(0)
    assert torch.are_deterministic_algorithms_enabled() is expected
    assert not expected or torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if expected else None)


def test_seeding_imports_no_compiler():
    """It would take each job a second or more."""
    program = "import sys; from uic_core.run import randomness; randomness.seed_everything(0); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "torch" in done.stdout.split()
    assert not {"torch._dynamo", "torch._inductor"} & set(done.stdout.split())


@pytest.mark.parametrize("gpu", [False, True])
def test_a_switch_that_is_neither_on_nor_off_is_refused(monkeypatch, gpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setenv("UIC_DETERMINISTIC", "yes")
    with pytest.raises(InputError, match="UIC_DETERMINISTIC: is 'yes' in the environment; set it to 0 or 1"):
        randomness.seed_everything(0)
