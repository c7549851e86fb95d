"""Where configs are found: by path, or by name among those that ship with mim3d."""

from __future__ import annotations

from pathlib import Path

from mim3d.config.tree import similar
from mim3d.foundation.errors import ConfigError

ENDINGS = (".yaml", ".yml", ".json")


def shipped_folder() -> Path:
    """The folder `configs/`: inside the installed package, else beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def shipped_names(verb: str) -> list[str]:
    """The names of the configs that ship for a verb."""
    return sorted(file.stem for file in (shipped_folder() / verb).glob("*.yaml"))


def locate(path_or_name: str | Path, verb: str) -> Path:
    """The file of a config: a path as it stands, a bare name as `configs/<verb>/<name>.yaml`.

    Raises:
        ConfigError: neither a file nor a name that ships.
    """
    path = Path(path_or_name)
    if path.is_file():
        return path
    names = shipped_names(verb)
    is_name = len(path.parts) == 1 and path.suffix.lower() not in ENDINGS
    if is_name and str(path) in names:
        return shipped_folder() / verb / f"{path}.yaml"
    what = f"config `{path}` for `mim3d {verb}`" if is_name else f"config file `{path}`"
    meant = similar(path.stem, names)
    listed = f"by name there are: {', '.join(names)}" if is_name and names else None
    remedy = f"did you mean `{meant}`?" if meant else listed
    raise ConfigError(f"there is no {what}", remedy=remedy, code="no-config")
