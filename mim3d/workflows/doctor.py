"""`mim3d doctor`: checks what goes wrong on machines of this field, or the sums of a store."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from mim3d.foundation.errors import ExitCode
from mim3d.foundation.reporting import PlainReporter, Reporter
from mim3d.foundation.versions import PACKAGES, versions
from mim3d.workflows.result import Result
from mim3d.workflows.verification import Finding, verified

COMPROMISED = {"lightning-fabric": ("2.6.2", "2.6.3"), "lightning": ("2.6.2", "2.6.3")}
"""Releases that carried a credential stealer (advisory GHSA-w37p-236h-pfx3)."""


def doctor(path: str | None = None, *, reporter: Reporter | None = None) -> Result:
    """Checks the machine, or verifies all checksums of a store or run.

    Args:
        path: a store, run or hub folder to verify; None checks the machine.
        reporter: where progress goes.

    Returns:
        A line a check; the exit code is 3 if one failed.
    """
    reporter = reporter or PlainReporter()
    findings = list(_machine() if path is None else verified(Path(path), reporter))
    width = max(len(finding.name) for finding in findings)
    lines = [f"{finding.state:<5}{finding.name:<{width + 2}}{finding.text}" for finding in findings]
    failed = any(finding.state == "fail" for finding in findings)
    return Result(
        text="\n".join(lines),
        facts={finding.name: [finding.state, finding.text] for finding in findings},
        exit_code=ExitCode.INPUT if failed else ExitCode.DONE,
    )


def _machine() -> Iterator[Finding]:
    checks: tuple[Callable[[], Finding], ...] = (
        _packages, _compromised, _torch, _bf16, _allocator, _memory, _disk, _shared_memory,
        _open_files, _inflating, _filters, _readers, _openmp, _network,
    )  # fmt: skip
    for check in checks:
        try:
            yield check()
        except Exception as error:  # a broken installation is what the doctor is for
            yield Finding(check.__name__.strip("_"), "fail", f"{type(error).__name__}: {error}")


def _packages() -> Finding:
    found = versions()
    absent = [name for name in PACKAGES if found[name] == "absent"]
    text = ", ".join(f"{name} {found[name]}" for name in ("python", *PACKAGES))
    return Finding("packages", "fail" if absent else "ok", text)


def _compromised() -> Finding:
    for package, bad in COMPROMISED.items():
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        if version in bad:
            text = f"{package} {version} is a compromised release: remove it, change credentials"
            return Finding("compromised", "fail", text)
    return Finding("compromised", "ok", "no release known to be compromised")


def _torch() -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("torch", "ok", f"{torch.__version__}, {torch.cuda.get_device_name(0)}")
    if torch.version.cuda is not None:
        return Finding(
            "torch", "warn", f"{torch.__version__} is a CUDA build, but no GPU is usable"
        )
    return Finding(
        "torch", "ok", f"{torch.__version__} on the CPU, {torch.get_num_threads()} threads"
    )


def _bf16() -> Finding:
    import torch

    from mim3d.training.fabric import choose_precision

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = choose_precision("auto", device)
    return Finding("precision", "ok", f"`auto` is {chosen} on this {device.type}")


def _allocator() -> Finding:
    if sys.platform != "linux" or Path("/dev/nvidia0").exists():
        return Finding("allocator", "ok", "system")
    on = os.environ.get("THP_MEM_ALLOC_ENABLE") == "1"
    text = (
        "huge pages for large tensors" if on else "system (MIM3D_ALLOCATOR=system, or no `mim3d`)"
    )
    return Finding("allocator", "ok", text)


def _memory() -> Finding:
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    free = os.sysconf("SC_AVPHYS_PAGES") * size / 2**30
    text = f"{free:.1f} of {pages * size / 2**30:.1f} GiB free"
    return Finding("memory", "ok" if free >= 4 else "warn", text)


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    return Finding("disk", "ok" if free >= 10 else "warn", f"{free:.1f} GiB free here")


def _shared_memory() -> Finding:
    if not Path("/dev/shm").is_dir():
        return Finding("shared memory", "ok", "not used on this system")
    free = shutil.disk_usage("/dev/shm").free / 2**30
    text = f"{free:.2f} GiB in /dev/shm"
    if free < 1:
        return Finding("shared memory", "warn", f"{text}: workers may stop with a bus error")
    return Finding("shared memory", "ok", text)


def _open_files() -> Finding:
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Finding("open files", "ok" if soft >= 1024 else "warn", f"limit {soft}")


def _inflating() -> Finding:
    if importlib.util.find_spec("isal") is None:
        return Finding(
            "inflating", "warn", "zlib; `pip install isal` reads .nii.gz about twice as fast"
        )
    return Finding("inflating", "ok", "isal")


def _filters() -> Finding:
    code = (
        "import h5py, hdf5plugin, numpy as n; f = h5py.File('x', 'w', driver='core',"
        " backing_store=False); d = f.create_dataset('d', data=n.arange(4096), chunks=(512,),"
        " **hdf5plugin.Blosc()); assert int(d[:].sum()) == 8386560"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    if done.returncode:
        return Finding("store filters", "fail", done.stderr.strip().splitlines()[-1])
    return Finding("store filters", "ok", "blosc works in a process of its own")


def _readers() -> Finding:
    from mim3d.data.files import read_volume, write_volume
    from mim3d.data.volume import Volume

    voxels = np.arange(2 * 3 * 4, dtype=np.int16).reshape(1, 2, 3, 4)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "volume.nii.gz"
        write_volume(path, voxels, like=Volume.from_array(voxels, np.diag([1.0, 2.0, 3.0, 1.0])))
        same = np.array_equal(read_volume(path).voxels, voxels)
    return Finding("files", "ok" if same else "fail", "a volume written and read back is the same")


def _openmp() -> Finding:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return Finding("openmp", "ok", "not checked on this system")
    import torch  # noqa: F401 - loads its runtime

    names = {Path(line.split()[-1]).name for line in maps.read_text().splitlines() if "omp" in line}
    runtimes = sorted(name for name in names if name.startswith(("libgomp", "libiomp", "libomp")))
    text = ", ".join(runtimes) or "none"
    return Finding("openmp", "ok" if len(runtimes) <= 1 else "warn", f"runtimes loaded: {text}")


def _network() -> Finding:
    return Finding("network", "note", "mim3d opens no connection; none was tried")
