"""Which versions made a file: written into every run, store and result."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path

PACKAGES = (
    "mim3d", "torch", "monai", "nibabel", "SimpleITK", "einops", "numpy", "scipy", "h5py",
    "hdf5plugin", "safetensors", "jsonargparse", "rich", "lightning-fabric", "matplotlib",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Versions of Python, of mim3d's dependencies, and the commit mim3d runs from, if any."""
    system = f"{platform.system()} {platform.machine()}"
    found = {"python": platform.python_version(), "system": system}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    found["commit"] = commit()
    return found


def commit() -> str:
    """The git commit of the source tree mim3d is imported from; `unknown` outside of one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return "unknown"
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()
