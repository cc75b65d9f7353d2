"""Jobs on the nodes of a Ray cluster: an actor for every CPU or GPU, each with a local runner of one process."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from dsv2_compile.autotune.ray_cluster import connected
from dsv2_compile.autotune.ray_worker import Facts, RayWorker, facts
from dsv2_compile.devices.identify import Gpu
from dsv2_compile.errors import IncompatibleError, PartialError, ResourceError
from dsv2_compile.targets import Target

J = TypeVar("J")
R = TypeVar("R")
RETRIES = 2
"""How often a job is given to another worker after it was lost with one."""
STARTING = 60.0
"""Seconds that workers may take to start when there are no others."""
ENDING = 2.0
"""Seconds that workers may take to end by themselves."""
_INSTALL = "Install the same dsv2-compile and Triton on all its machines."


@dataclass(eq=False)
class _Slot:
    """A worker. ``node``: its id. ``last``: of the job that it was given last."""

    node: str
    actor: Any
    last: Future[Any] | None = None

    @property
    def free(self) -> bool:
        return self.last is None or (self.last.done() and not self.last.exception())


@dataclass(eq=False)
class _Task(Generic[J]):
    """``lost``: the nodes it was lost with."""

    index: int
    job: J
    lost: list[str] = field(default_factory=list)


class RayRunner(Generic[J, R]):
    """A `Runner` that lives until `close`. A worker or a node that is lost costs its job a retry, on another node if
    there is one, `RETRIES` times.

    ``make``: the local runner of a worker, see `RayWorker`; it is pickled. ``lost``: outcome of a job that was lost
    every time, from the reason. ``target``: what jobs are for. ``workers``: at most so many, None for one a CPU, or
    one a GPU if ``gpus``; their runners say which by ``device()``, and all GPUs have to be of ``target``. ``device``:
    one of them. ``address``: see `connected`. Raises IncompatibleError if Ray or the cluster is missing, or
    if nodes differ from here in what decides the bytes of kernels; ResourceError if the cluster has nothing free.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        lost: Callable[[str], R],
        target: Target,
        *,
        workers: int | None = None,
        address: str | None = None,
        gpus: int = 0,
    ) -> None:
        wanted = Gpu(target.name, target.capability, "", target.name) if gpus else None
        self._make, self._lost, self._target, self._here = make, lost, target, facts(target, wanted)
        self._needs = {"num_cpus": 0 if gpus else 1, "num_gpus": gpus}
        self.device = ""
        self._vacant: list[str] = []
        """Nodes that a worker is to be started on."""
        self._starting: dict[Future[Facts], _Slot] = {}
        self._ready: list[_Slot] = []
        with ExitStack() as stack:
            stack.enter_context(connected(address, workers or len(os.sched_getaffinity(0))))
            stack.callback(self._end)
            self._begin(workers)
            self._stack = stack.pop_all()

    def run(self, jobs: Sequence[J]) -> Generator[tuple[int, R], None, None]:
        """See `Runner.run`. Raises PartialError when no worker is left."""
        waiting = deque(_Task(i, job) for i, job in enumerate(jobs))
        busy: dict[Future[R], tuple[_Slot, _Task[J]]] = {}
        try:
            while waiting or busy:
                self._fill()
                while pair := self._pair(waiting):
                    slot, task = pair
                    slot.last = future = slot.actor.run.remote(task.job).future()
                    busy[future] = pair
                # of other runs too, which may be suspended: a worker is free as soon as its job is done
                working: list[Future[Any]] = [s.last for s in self._ready if s.last and not s.free]
                done, _ = wait({*busy, *working, *self._starting}, None if working else STARTING, FIRST_COMPLETED)
                if not done:
                    raise PartialError(
                        f"Ray has no worker left; {len(waiting)} jobs are not done.",
                        "Run the same command again when the cluster is back.",
                    )
                for future in done & self._starting.keys():
                    self._started(future)
                for future in done & busy.keys():
                    slot, task = busy.pop(future)
                    outcome = self._outcome(future, slot, task)
                    if outcome is None:
                        waiting.appendleft(task)
                    else:
                        yield task.index, outcome
        finally:
            self._drop([slot for future, (slot, _) in busy.items() if not future.done()])

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> RayRunner[J, R]:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _begin(self, workers: int | None) -> None:
        """Start the workers, evenly on all nodes, and wait until they are ready."""
        import ray

        nodes = {n["NodeID"]: n for n in ray.nodes() if n["Alive"]}
        places = sorted((k, node) for node, n in nodes.items() for k in range(self._room(n["Resources"])))[:workers]
        self._vacant = [node for _, node in places]
        try:
            self._fill()
        except ImportError as e:  # a Ray client's server reads what it is sent
            raise IncompatibleError(f"The Ray cluster has no dsv2-compile: {e}.", _INSTALL) from None
        done, _ = wait(self._starting, STARTING)
        where = {future: nodes[self._starting[future].node]["NodeManagerAddress"] for future in done}
        if problems := sorted({f"{where[f]}: {problem}" for f in done for problem in self._started(f)}):
            raise IncompatibleError(
                "Machines of the Ray cluster would not make the same kernels as this one.",
                _INSTALL,
                problems,
            )
        if not self._ready:
            what = "GPU" if self._needs["num_gpus"] else "CPU"
            cause = f"none of its {len(places)} {what}s is free" if places else f"it has no {what}"
            raise ResourceError(f"The Ray cluster cannot take jobs: {cause}.", "Wait, or use --executor local.")

    def _room(self, resources: Mapping[str, float]) -> int:
        """Workers that a node with ``resources`` takes."""
        have = {"num_cpus": resources.get("CPU", 0.0), "num_gpus": resources.get("GPU", 0.0)}
        return min(int(have[name] // need) for name, need in self._needs.items() if need)

    def _fill(self) -> None:
        """Replace workers that are lost. One of a node that is gone will not get ready."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._drop([s for s in self._ready if s.last and s.last.done() and not s.free])
        while self._vacant:
            node = self._vacant.pop()
            place = NodeAffinitySchedulingStrategy(node, soft=False)
            options = {**self._needs, "scheduling_strategy": place, "max_concurrency": 2}
            actor: Any = ray.remote(RayWorker).options(**options).remote(self._make)
            told = actor.facts.remote(self._target, self._needs["num_gpus"] > 0)
            self._starting[told.future()] = _Slot(node, actor)

    def _started(self, future: Future[Facts]) -> list[str]:
        """What is wrong with a worker that was started; if nothing, it may be given jobs."""
        from ray.exceptions import RayError

        slot = self._starting.pop(future)
        try:
            there = future.result()
            problems, self.device = there.differences(self._here), there.device
        except RayError as e:
            problems = [_line(e)]
        if problems:
            _stop([slot])
        else:
            self._ready.append(slot)
        return problems

    def _outcome(self, future: Future[R], slot: _Slot, task: _Task[J]) -> R | None:
        """None if the job is to be tried again."""
        error = future.exception()
        if error is None:
            return future.result()
        task.lost.append(slot.node)
        if len(task.lost) <= RETRIES:
            return None
        return self._lost(f"lost with {len(task.lost)} workers, the last time: {_line(error)}")

    def _drop(self, slots: Collection[_Slot]) -> None:
        _stop(slots)
        self._ready = [slot for slot in self._ready if slot not in slots]
        self._vacant += [slot.node for slot in slots]

    def _pair(self, waiting: deque[_Task[J]]) -> tuple[_Slot, _Task[J]] | None:
        """A worker and what it does next: nothing that was lost with its node before, unless there is no other."""
        nodes = {slot.node for slot in self._ready}
        for slot in self._ready:
            for task in waiting:
                if slot.free and (slot.node not in task.lost or nodes <= {*task.lost}):
                    waiting.remove(task)
                    return slot, task
        return None

    def _end(self) -> None:
        wait([slot.actor.close.remote().future() for slot in self._ready if slot.free], ENDING)
        _stop([*self._ready, *self._starting.values()])


def _stop(slots: Collection[_Slot]) -> None:
    import ray

    wait([slot.actor.stop.remote().future() for slot in slots], ENDING)
    for slot in slots:
        ray.kill(slot.actor)


def _line(e: BaseException) -> str:
    """The error of a worker: its first line says what Ray saw, its last one why."""
    text = re.sub(r"\x1b\[\d*m", "", str(getattr(e, "cause", None) or e))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ... ".join(line[:200] for line in dict.fromkeys([*lines[:1], *lines[-1:]])) or type(e).__name__
