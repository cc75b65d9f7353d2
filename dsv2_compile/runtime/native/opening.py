"""What stands between an engine and a GPU: the architecture, the kernels, and the memory."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from dsv2_compile.errors import COPY_AGAIN, IncompatibleError, IntegrityError, ResourceError
from dsv2_compile.plan.plan import KernelEntry
from dsv2_compile.runtime.native.driver import Driver, Kernel, explaining
from dsv2_compile.runtime.native.launches import widths
from dsv2_compile.runtime.native.memory import Needs
from dsv2_compile.targets import GPUS


def require_architecture(driver: Driver, capability: str, target: str) -> None:
    """IncompatibleError unless the GPU is of the very architecture that the cubins are for."""
    found = driver.capability
    if found != capability:
        names = [t.name for t in GPUS.values() if t.capability == found]
        raise IncompatibleError(
            f"The engine is built for {capability} ({target}), found {found} ({driver.name}).",
            f"Rebuild it with --gpu {' or '.join(names)}." if names else f"Run it on a GPU of {capability}.",
        )


def load(driver: Driver, root: Path, entry: KernelEntry) -> Kernel:
    """IncompatibleError if the cubin is missing, the driver refuses it, or it takes other parameters."""
    path = PurePosixPath(entry.cubin)
    if path.is_absolute() or ".." in path.parts:
        raise IntegrityError(f"The plan names a file outside the engine: {entry.cubin[:80]!r}.", COPY_AGAIN)
    try:
        image = (root / path).read_bytes()
    except OSError as e:
        raise IncompatibleError(f"The engine has no {entry.cubin}: {e.strerror}.", COPY_AGAIN) from None
    with explaining(f"load {entry.cubin} (it is for CUDA {driver.version})"):
        kernel = driver.load(image, entry.symbol, entry.shared)
        found = driver.widths(kernel)
    if found not in (None, widths(entry)):
        raise IncompatibleError(
            f"{entry.cubin} takes parameters of {found} bytes, the plan has {widths(entry)}.",
            "Rebuild the engine with this version of dsv2-compile.",
        )
    return kernel


def reserve(driver: Driver, needs: Needs) -> dict[str, int]:
    """Addresses of one block for each purpose. ResourceError, and nothing is held, if they do not all fit."""
    with explaining("tell its memory"):
        free, total = driver.memory()
    if needs.total > free:
        raise ResourceError(
            f"The engine needs {needs} of GPU memory; {free / 1e9:.2f} of {total / 1e9:.2f} GB are free on "
            f"{driver.name}.",
            "Open it for fewer or shorter sequences, free memory on the GPU, or use a larger one.",
        )
    blocks: dict[str, int] = {}
    try:
        with explaining(f"reserve {needs}"):
            for name, nbytes in vars(needs).items():
                blocks[name] = driver.alloc(max(nbytes, 1))
    except BaseException:
        for address in blocks.values():
            driver.free(address)
        raise
    return blocks
