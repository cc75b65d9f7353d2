"""Local runners for the actors of a Ray cluster that end when they should not, or tell where they are. Itself a
worker of measuring processes, which tells what it was given."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import ray

from dsv2_compile.autotune.measure.pool import MeasuringPool
from dsv2_compile.backends.cuda.pool import Pool
from dsv2_compile.devices.identify import Gpu, profile_of


class Mortal(Pool):
    """Compiles for real, but a ``matmul`` kills the actor the first time, and ``unlucky`` does every time."""

    def __init__(self, folder):
        super().__init__(1)
        self._died = Path(folder, "died")

    def run(self, jobs):
        (job,) = jobs
        if job.function == "unlucky" or (job.function == "matmul" and not self._died.exists()):
            self._died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().run(jobs)


class Declared(MeasuringPool):
    """Measuring processes on a GPU that is only said to be there."""

    name = "NVIDIA H800"

    def device(self):
        return Gpu(self.name, "sm_90", "13.0", profile_of(self.name, "sm_90"))


class Other(Declared):
    name = "NVIDIA H200"


class Where:
    """Answers (job, node); on the node ``stuck`` it does not answer. Its GPU is only said to be there."""

    device = Declared.device
    name = Declared.name

    def __init__(self, stuck=""):
        self._stuck = stuck

    def run(self, jobs):
        node = ray.get_runtime_context().get_node_id()
        if node == self._stuck:
            time.sleep(600)
        for index, job in enumerate(jobs):
            yield index, (job, node)

    def close(self):
        pass


def start(setup):
    return lambda job: ((setup, job, os.environ.get("CUDA_VISIBLE_DEVICES")), False)
