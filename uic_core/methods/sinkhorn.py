"""Labels that divide the images equally among the classes: optimal transport by Sinkhorn-Knopp, as in SelfLabel.

With P = softmax(logits)^λ, [N, K], it seeks scales c of the images and r of the classes such that diag(c) P diag(r) has
row sums 1/N and column sums 1/K (Asano et al. 2020). An image's label is the class of its largest r_k P_ik.

λ = 25 makes 10⁻⁸⁷ of a probability of 1/3000, which float32 cannot hold. So r starts in logarithms, and what is stored
is P scaled by it, each row to a sum of 1. Then no class vanishes: its images sum to N/K before the rows are scaled, a
row to at most N, so that an entry of at least 1/(NK) stays in every column. Sums are in float64: a sum over N images
must come below the tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from uic_core.errors import InputError
from uic_core.methods.labels import DIVERGED
from uic_core.run import devices
from uic_core.run.parallel import ALONE, Ranks

MOST = 100_000
"""Iterations after which the search ends anyway. The published code knows no such end."""

_CHECKED = 10  # the error is looked at in iterations 1, 11, 21, …, as in the published code
_FAR = 16.0  # logarithm of a change of r after which the plan is scaled anew: stored numbers reach from e^-87 to e^88
_CHUNK = {"cpu": 1 << 18, "cuda": 1 << 23}  # numbers at a time, in float64: they fit into a core's cache, or the GPU's


class Assigned(NamedTuple):
    """Labels of a process's images.

    Attributes:
        labels: int64 [n], on the device of the logits.
        iterations: number of them.
        error: Σ |c / c' - 1| over all images at the last look, c' being c an iteration later.
        log_r: float64 [K], the logarithms of r.
    """

    labels: Tensor
    iterations: int
    error: float
    log_r: Tensor


def assign(
    logits: Callable[[slice], Tensor],
    plan: Tensor,
    images: int,
    sharpness: float,
    tolerance: float,
    ranks: Ranks = ALONE,
    pause: Callable[[], None] = lambda: None,
    most: int = MOST,
) -> Assigned:
    """Find balanced labels. Every process brings its images; all must call this together.

    Args:
        logits: rows of this process → their logits, float32 [rows, K]; called for all rows three times or more.
        plan: memory for the scaled P, [n, K] for the n images of this process: float32, or bfloat16, which rounds P
            by up to 0.4 %. It may lie on another device than the logits.
        images: N, over all processes.
        sharpness: λ.
        tolerance: largest error, a sum over N images.
        pause: called from time to time, on all processes equally often.
        most: iterations after which the search ends, whatever the error.

    Raises:
        InputError: a logit is not finite.
    """
    rows, classes = plan.shape
    size = max(1, _CHUNK[logits(slice(0, 1)).device.type] // classes)
    count = math.ceil(images / ranks.world / size)  # equal on all processes, which must pause equally often
    chunks = [slice(*ends) for ends in pairwise(rows * number // count for number in range(count + 1))]

    def logs(chunk: slice) -> Tensor:
        return sharpness * logits(chunk).double().log_softmax(1)

    # r = (1/K) / (P c) with c = 1/N, in logarithms.
    sums = torch.full_like(logs(slice(0, 1))[0], -math.inf)
    for chunk in chunks:
        sums = torch.logaddexp(sums, logs(chunk).logsumexp(0))
        pause()
    sums = ranks.gather(sums[None], [1] * ranks.world).logsumexp(0)
    if not torch.isfinite(sums).all():
        raise InputError(DIVERGED.format("outputs are not finite"))
    log_r = math.log(images / classes) - sums
    log_c = sums.new_zeros(rows)  # of N c
    scales = torch.empty_like(log_c)
    iteration, error = 0, math.inf
    while error > tolerance and iteration < most:
        for chunk in chunks:
            scaled = logs(chunk) + log_r
            scales[chunk] = scaled.logsumexp(1)
            plan[chunk] = (scaled - scales[chunk, None]).exp().to(plan.dtype)  # as in devices.like
            pause()
        change = torch.ones_like(log_r)  # of r since the plan was scaled
        while iteration < most:
            iteration += 1
            looked = iteration % _CHECKED == 1
            sums = torch.zeros(classes + looked, dtype=torch.float64, device=change.device)
            for chunk in chunks:
                part = devices.like(plan[chunk], change)
                total = part @ change
                sums[:classes] += total.reciprocal() @ part
                before, log_c[chunk] = log_c[chunk].clone(), -(scales[chunk] + total.log())
                if looked:
                    sums[-1] += (before - log_c[chunk]).expm1().abs().sum()
            ranks.add(sums)
            pause()
            if looked:
                error = sums[-1].item()
                if error <= tolerance:
                    break
            change = images / (classes * sums[:classes])
            if change.log().abs().max() > _FAR:
                break
        log_r = log_r + change.log()
    labels = torch.cat([(logs(chunk) + log_r).argmax(1) for chunk in chunks])
    return Assigned(labels, iteration, error, log_r)
