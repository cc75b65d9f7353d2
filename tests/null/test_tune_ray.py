"""Jobs through Ray: a Ray of two workers on this machine, and a cluster of nodes that are processes on it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import pytest

import dsv2_compile
from dsv2_compile.autotune import judges, ray_cluster, ray_runner
from dsv2_compile.autotune.executors import executor
from dsv2_compile.autotune.ray_runner import RayRunner
from dsv2_compile.autotune.ray_worker import Facts
from dsv2_compile.autotune.record import PREDICTED
from dsv2_compile.backends.cuda.build_cache import Built
from dsv2_compile.backends.cuda.pool import Failed, Pool
from dsv2_compile.errors import IncompatibleError, PartialError, ResourceError, UsageError
from dsv2_compile.kernels.gpu import aot
from dsv2_compile.targets import target
from tests.gpu_fakes import FAKES, double, matmul, unlucky
from tests.ray_fakes import Declared, Mortal, Other, Where

ROOT = Path(__file__).parents[2]
H800 = target("h800")


def job(request):
    return aot.job(FAKES[request.kernel], dict(request.dims), dict(request.config), request.dtype, H800)


def seen(outcome):
    """What must not depend on where it was compiled."""
    if isinstance(outcome, Failed):
        return outcome.reason
    return hashlib.sha256(outcome.cubin.image).hexdigest()


def outcomes(runner, jobs):
    with closing(runner.run(jobs)) as found:
        by_index = list(found)
    assert sorted(index for index, _ in by_index) == list(range(len(jobs)))
    return [outcome for _, outcome in sorted(by_index, key=lambda pair: pair[0])]


@contextmanager
def short_folder():
    """Ray's sockets have their paths in it, which may not be long."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# A Ray of our own ----------------------------------------------------------------------------------

MIXED = [double(256), unlucky("segfault"), double(512), unlucky("raise")]
LOCAL_RAY = """
import json, sys
from dsv2_compile.autotune.executors import executor
from dsv2_compile.cli.failures import Stopped, stopping_on_signals
from tests.gpu_fakes import unlucky
from tests.null.test_tune_ray import H800, MIXED, job, outcomes, seen

try:
    with stopping_on_signals(), executor("ray", H800, workers=2) as runner:
        print(json.dumps([seen(o) for o in outcomes(runner, [job(r) for r in MIXED])]), flush=True)
        outcomes(runner, [job(unlucky("hang"))])
except Stopped as e:
    sys.exit(128 + e.number)
"""


def processes_of(folder):
    """Those that have ``folder`` for their temporary files, or for a folder above them."""
    out = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"TMPDIR={folder}".encode() in (entry / "environ").read_bytes():
                out.append((entry / "cmdline").read_text().replace("\0", " "))
        except OSError:
            pass
    return out


def until(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return condition()


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_two_workers_make_the_same_and_a_signal_leaves_nothing(number):
    with short_folder() as folder:
        process = subprocess.Popen(
            [sys.executable, "-c", LOCAL_RAY],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "TMPDIR": folder},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with Pool(2) as pool:
            expected = [seen(o) for o in outcomes(pool, [job(r) for r in MIXED])]
        assert expected[1] == "the compiler was ended by SIGSEGV"
        assert json.loads(process.stdout.readline()) == expected
        assert until(lambda: any(p.startswith("sleep") for p in processes_of(folder)))
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (128 + number, "", "")
        assert until(lambda: not processes_of(folder), 5), processes_of(folder)
        assert [p.name for p in Path(folder).iterdir() if p.name.startswith("dsv2-")] == []


# What cannot be ------------------------------------------------------------------------------------


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(IncompatibleError, match="needs Ray") as e:
        executor("ray", H800)
    assert "pip install 'dsv2-compile[ray]'" in e.value.remedy


def test_an_address_where_nobody_answers_is_told_in_time(monkeypatch):
    assert ray_cluster.JOINING <= 10
    monkeypatch.setattr(ray_cluster, "JOINING", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        with pytest.raises(IncompatibleError, match="No Ray cluster answers at 127"):
            executor("ray", H800, address=f"127.0.0.1:{silent.getsockname()[1]}")
        assert time.monotonic() - start < 5


def test_what_is_no_address_is_told():
    with pytest.raises(IncompatibleError, match="Invalid address format"):
        executor("ray", H800, address="nowhere")


def test_options_that_have_no_effect_are_a_usage_error():
    with pytest.raises(UsageError, match="--address has no effect"):
        executor("local", H800, address="auto")
    with pytest.raises(UsageError, match="no executor is called cloud"):
        executor("cloud", H800)


def test_differences_are_listed():
    here = Facts({"triton": "3.7.1", "ptxas": "a"}, {"x.py": "1", "y.py": "2"})
    assert here.differences(here) == []
    there = Facts({"triton": "3.7.1"}, {"x.py": "1", "y.py": "3", **{f"{i}.py": "" for i in range(4)}})
    assert there.differences(here) == ["ptxas is None, here a", "sources differ: 0.py, 1.py, 2.py, 2 more"]


# A cluster -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster():
    """A node with a CPU, and one with a CPU and a GPU that is nothing but a number."""
    from ray._private.utils import get_ray_address_file
    from ray.cluster_utils import Cluster

    quiet = pytest.MonkeyPatch()
    for name, value in ray_cluster.QUIET.items():
        quiet.setenv(name, value)
    Path(get_ray_address_file(None)).parent.mkdir(parents=True, exist_ok=True)  # Ray writes there, wherever it is told
    with short_folder() as folder:
        cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 1, "temp_dir": folder, "include_dashboard": False}
        )
        cluster.add_node(num_cpus=1, num_gpus=1)
        yield cluster
        cluster.shutdown()
    quiet.undo()


@pytest.fixture(scope="module")
def joined(cluster):
    with ray_cluster.connected(cluster.address, 1):
        yield cluster


def failed(reason):
    return Failed(reason, "")


def runner(make, **options):
    return RayRunner(make, failed, H800, **options)


def test_a_worker_that_dies_loses_nothing(joined, tmp_path, capfd):
    jobs = [job(r) for r in (double(256), matmul(num_stages=2), unlucky("none"), double(512))]
    with Pool(2) as pool:
        expected = outcomes(pool, jobs)
    with runner(partial(Mortal, tmp_path)) as ray:
        found = outcomes(ray, jobs)
        again = outcomes(ray, jobs[:1])
    assert (tmp_path / "died").exists()
    assert [o.cubin for o in found[:2] + found[3:]] == [o.cubin for o in expected[:2] + expected[3:]]
    assert isinstance(expected[2], Built) and found[2].reason.startswith("lost with 3 workers, the last time: ")
    assert again[0].cubin == expected[0].cubin
    assert capfd.readouterr() == ("", "")


def test_what_is_left_is_cancelled_and_the_workers_come_back(joined):
    with runner(partial(Pool, 1)) as ray:
        with closing(ray.run([job(unlucky("hang")), job(double()), job(unlucky("hang"))])) as found:
            assert next(found)[0] == 1
        (found,) = outcomes(ray, [job(double())])
        assert isinstance(found, Built)


def test_measuring_jobs_go_to_the_nodes_with_gpus(joined):
    with runner(partial(Declared, "setup", "tests.ray_fakes"), gpus=1) as ray:
        assert ray.device == "NVIDIA H800, CUDA 13.0"
        assert outcomes(ray, ["a", "b"]) == [("setup", "a", "0"), ("setup", "b", "0")]
    with runner(Where) as ray:
        assert len({node for _, node in outcomes(ray, range(20))}) == 2


def test_nodes_with_other_gpus_do_not_measure(joined):
    with pytest.raises(IncompatibleError) as e:
        runner(partial(Other, "setup", "tests.ray_fakes"), gpus=1)
    assert e.value.problems[0].endswith("the GPU is h200, here h800")


def test_times_are_predicted_where_the_cluster_has_no_gpu_to_measure_on(joined, monkeypatch):
    """The node says that it has one, but none can be opened there."""
    monkeypatch.setattr(judges.speed, "compiled", lambda target, runner: {})
    told = pytest.warns(UserWarning, match="times are predicted: .* the GPU is ")
    with told, Pool(1) as pool, judges.judge_for(H800, pool, False, "ray") as judge:
        assert judge.provenance == PREDICTED


def test_two_runs_share_the_workers(joined):
    with runner(Where) as ray, closing(ray.run(["a", "b", "c", "d"])) as first:
        early = [next(first)]
        assert [job for job, _ in outcomes(ray, ["x", "y", "z"])] == ["x", "y", "z"]
        assert sorted(job for _, (job, _) in [*early, *first]) == ["a", "b", "c", "d"]


def test_a_cluster_with_nothing_free_is_told(joined, monkeypatch):
    with pytest.raises(ResourceError, match="it has no GPU"):
        runner(Where, gpus=2)
    with runner(Where), monkeypatch.context() as impatient:
        impatient.setattr(ray_runner, "STARTING", 1.0)
        with pytest.raises(ResourceError, match="none of its 2 CPUs is free"):
            runner(Where)


def test_a_node_that_would_make_other_cubins_is_refused(joined, monkeypatch, tmp_path):
    """Its ptxas is of another build, and this package is of another version here."""
    ptxas = tmp_path / "ptxas"
    ptxas.write_text("#!/bin/sh\necho Cuda compilation tools, release 99.1, V99.1.0\necho Build cuda_99.1\n")
    ptxas.chmod(0o755)
    with monkeypatch.context() as odd:
        odd.setenv("TRITON_PTXAS_PATH", str(ptxas))
        node = joined.add_node(num_cpus=1)
    try:
        monkeypatch.setattr(dsv2_compile, "__version__", "0.0.7")
        with pytest.raises(IncompatibleError, match="would not make the same kernels") as e:
            runner(Where)
    finally:
        joined.remove_node(node)
    version, other = e.value.problems
    assert version.endswith("dsv2-compile is 0.1.0, here 0.0.7")
    assert "ptxas is cuda_99.1, here cuda_" in other


@pytest.mark.slow
def test_a_node_that_goes_away_costs_its_jobs_a_retry(joined):
    """On the nodes that stay; when there are none, what is not done is told."""
    node = joined.add_node(num_cpus=2, num_gpus=2)
    stuck = partial(Where, stuck=node.node_id)
    with runner(stuck, workers=3) as everywhere, runner(stuck, gpus=2) as there:
        leaving = threading.Timer(1.0, joined.remove_node, [node], {"allow_graceful": False})
        leaving.start()
        found = outcomes(everywhere, list(range(6)))
        leaving.join()
        assert [answer for answer, _ in found] == list(range(6))
        assert node.node_id not in {where for _, where in found}
        with pytest.raises(PartialError, match="no worker left; 2 jobs"):
            outcomes(there, ["a", "b"])
