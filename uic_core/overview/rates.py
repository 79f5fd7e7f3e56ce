"""How fast a machine runs the jobs of `make plan`; rates assumed for a GPU."""

from __future__ import annotations

from dataclasses import dataclass

from uic_core.config import Config
from uic_core.models import ARCHS
from uic_core.overview.costs import Job

_MOST_CPUS = 64  # of a job with several GPUs (cpus in workflow/rules/cluster.smk)
# Share of the bf16 matrix rate that float32 reaches: on A100 and H100 the float32 rate is a sixteenth of it, and
# convolutions reach about 60 % of that (assumed; --measure measures it).
_EXACT = 0.6 / 16


@dataclass(frozen=True)
class Rates:
    """How fast a machine is.

    Attributes:
        flops: FLOP/s that training reaches, by architecture.
        exact: the same in float32, at which evaluations are counted.
        decode: images per CPU-second.
        search: CPU-seconds of selective search per image.
        start: seconds until a job does its work, by environment.
        cpus: CPUs of a job that takes many.
        slots: number of GPUs; without a GPU, of CPUs, and every job takes one.
        gpu: whether `slots` are GPUs.
        said: text that says where the rates are from.
    """

    flops: dict[str, float]
    exact: dict[str, float]
    decode: float
    search: float
    start: dict[str, float]
    cpus: int
    slots: int
    gpu: bool
    said: str

    def seconds(self, job: Job) -> float:
        """Return how long a job takes."""
        arithmetic, decoding = self.arithmetic(job), self.decoding(job)
        work = arithmetic + decoding if self.cpus == 1 else max(arithmetic, decoding)
        return self.start[job.environment] + work + job.searched * self.search / min(job.cpus, self.cpus)

    def arithmetic(self, job: Job) -> float:
        """Return the seconds of a job's arithmetic on all its GPUs."""
        if not job.arch:
            return 0.0
        exact = job.exact if job.rule in ("pretrain", "finetune") else job.flops
        seconds = (job.flops - exact) / self.flops[job.arch] + exact / self.exact[job.arch]
        return seconds / self._gpus(job)

    def decoding(self, job: Job) -> float:
        """Return the seconds of a job's decoding on all its CPUs."""
        processes = max(1, min(min(job.cpus, self.cpus) * self._gpus(job), _MOST_CPUS) - 1)
        return job.images / self.decode / processes

    def taken(self, job: Job) -> int:
        """Return the slots that a job takes: its GPUs, at most all there are; without GPUs one."""
        return min(job.gpus, self.slots) * job.gpu if self.gpu else 1

    def _gpus(self, job: Job) -> int:
        """Return over how many GPUs, each with its CPUs, a job is spread; 1 without a GPU."""
        return max(1, self.taken(job)) if self.gpu else 1


def slow(config: Config) -> Rates:
    """Return rates that no hardware in use should fall below; a job asks for the time it takes with them."""
    archs = {recipe.arch for recipe in config.runs.values()}
    start = {"core": 0.0, "openmmlab": 0.0, "report": 0.0}
    return Rates(dict.fromkeys(archs, 1e13), dict.fromkeys(archs, 5e12), 50.0, 8.0, start, 16, 8, True, "slow")


def assumed(config: Config, peak: float, gpus: int, cpus: int = 16) -> Rates:
    """Return rates of GPUs of `peak` TFLOP/s (bf16 matrices), with at most so many CPUs each (bench/RESULTS.md)."""
    archs = {recipe.arch for recipe in config.runs.values()}
    flops = {arch: ARCHS[arch].matrix_share * peak * 1e12 for arch in archs}
    exact = dict.fromkeys(flops, _EXACT * peak * 1e12)
    start = {"core": 20.0, "openmmlab": 40.0, "report": 10.0}
    fewer = "8 or " * (cpus > 8)
    said = (
        f"assumed: a GPU of {peak:g} TFLOP/s in bf16, {fewer}{cpus} CPUs of 750 images/s a job; --measure measures here"
    )
    return Rates(flops, exact, 750.0, 2.0, start, cpus, gpus, True, said)
