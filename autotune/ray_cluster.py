"""Starts Ray on this machine or joins a cluster, and keeps Ray from talking."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from dsv2_compile.errors import IncompatibleError

JOINING = 10.0
"""Seconds within which a cluster must answer."""
OBJECT_STORE = 256 << 20
"""Bytes for cubins on their way, in shared memory."""
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent to anybody
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a warning about a default that will change
    "RAY_enable_metrics_collection": "0",
}
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Read when Ray is imported: it listens on 127.0.0.1 alone. Whoever reaches it can run anything."""
_OPTIONS: dict[str, Any] = {"log_to_driver": False, "logging_level": "CRITICAL"}
_PROBE = f"""\
import sys, ray
try:
    ray.init(sys.argv[1], **{_OPTIONS})
except Exception as e:
    sys.exit(f"{{type(e).__name__}}: {{e}}")
"""


@contextmanager
def connected(address: str | None, workers: int) -> Iterator[None]:
    """Ray is connected inside: to the cluster at ``address``, None for one on this machine with ``workers`` CPUs that
    ends with it. A connection that this process already has is used and kept. Raises IncompatibleError."""
    with _environment({} if address else _LOOPBACK):
        try:
            import ray
        except ImportError as e:
            install = "Install it: pip install 'dsv2-compile[ray]'"
            raise IncompatibleError(f"--executor ray needs Ray: {e}.", install) from None
    if ray.is_initialized():
        yield
        return
    with ExitStack() as stack:
        if address is None:
            folder = tempfile.TemporaryDirectory(prefix="dsv2-ray-", ignore_cleanup_errors=True)
            options, environment = _local(workers, stack.enter_context(folder))
        else:
            options, environment = {"address": address}, QUIET
            _probe(address)
        stack.enter_context(_nothing_printed(ray._private.worker))
        stack.callback(ray.shutdown)
        with _environment(environment), _sigterm_kept():
            try:
                ray.init(**options, **_OPTIONS)
            except (OSError, RuntimeError, ValueError) as e:
                remedy = "Compile without it: --executor local."
                raise IncompatibleError(f"Ray does not start: {_line(str(e))}", remedy) from e
        yield


def _local(workers: int, folder: str) -> tuple[dict[str, Any], Mapping[str, str]]:
    """Options and environment of a Ray whose files are all in ``folder``, those of killed workers too, and whose
    workers are no nicer than processes that we start ourselves."""
    options = {
        "address": "local",
        "num_cpus": workers,
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE,
        "_temp_dir": folder,
    }
    return options, {**QUIET, "TMPDIR": folder, "RAY_worker_niceness": "0"}


def _probe(address: str) -> None:
    """Join and leave in another process: where nobody answers, Ray blocks for a minute and then may end its process."""
    remedy = "Name a cluster that runs: ray start --head prints its address. Without --address one is started here."
    try:
        probe = subprocess.run(
            [sys.executable, "-c", _PROBE, address],
            env={**os.environ, **QUIET},
            capture_output=True,
            text=True,
            timeout=JOINING,
        )
    except subprocess.TimeoutExpired:
        raise IncompatibleError(f"No Ray cluster answers at {address} within {JOINING:g} s.", remedy) from None
    if probe.returncode:
        raise IncompatibleError(f"The Ray cluster at {address} cannot be joined: {_line(probe.stderr)}", remedy)


def _line(text: str) -> str:
    return " ".join(text.split())[-400:]


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            del os.environ[name]
            if name in before:
                os.environ[name] = before[name]


@contextmanager
def _nothing_printed(worker: Any) -> Iterator[None]:
    """Ray prints how its workers end on standard output, whatever its options say."""
    printed, worker.print_to_stdstream = worker.print_to_stdstream, lambda *args, **kwargs: None
    try:
        yield
    finally:
        worker.print_to_stdstream = printed


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself when it connects."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
