"""What `pyproject.toml` cannot say: `configs/` at the top travels in the wheel as `mim3d/configs`."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["mim3d", "mim3d.*"]), "mim3d.configs"],
    package_dir={"mim3d.configs": "configs"},
)
