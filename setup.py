"""What `pyproject.toml` cannot say: the top-level `configs/` travels as `mim3d/configs`."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["mim3d", "mim3d.*"]), "mim3d.configs"],
    package_dir={"mim3d.configs": "configs"},
)
