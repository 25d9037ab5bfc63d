"""Where recipes lie: beside the caller, in a checkout, or shipped inside the installed package."""

import difflib
from pathlib import Path

from data_prep.errors import UserError

_HERE = Path(__file__).resolve().parent


def recipe_folder() -> Path:
    """The folder `configs` of the installed package, or of the checkout that runs."""
    shipped = _HERE / "configs"
    return shipped if shipped.is_dir() else _HERE.parent / "configs"


def find_recipe(name: str) -> Path:
    """Finds a configuration: a path of the user's, or the name of a recipe that came with Trimline.

    ``runs/demo``, ``runs/demo.yaml`` and ``configs/runs/demo.yaml`` all mean the same shipped recipe.

    Raises:
        UserError: where there is no such file.
    """
    given = Path(name)
    if given.is_file():
        return given
    if not given.is_absolute():
        relative = Path(*given.parts[1:]) if given.parts[:1] == ("configs",) else given
        for candidate in (relative, relative.with_name(relative.name + ".yaml")):
            if (recipe_folder() / candidate).is_file():
                return recipe_folder() / candidate
    raise UserError(f"no configuration {name}: give the path of a YAML file, or one of the recipes: {_known(name)}")


def recipes() -> list[str]:
    """The names of all recipes that came with Trimline, such as ``configs/runs/demo.yaml``."""
    folder = recipe_folder()
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml"))
    return sorted(f"configs/{name}" for name in found if not name.startswith("cluster/"))  # those are not ours to read


def _known(name: str) -> str:
    names = recipes()
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    return (
        ", ".join(sorted(close) or [known for known in names if known.startswith("configs/runs/")]) or "none are here"
    )
