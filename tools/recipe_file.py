"""Recipes as files: the packaged ones, those of a user, and what ``--set`` changes of them."""

import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import BaseModel

from .recipe import Recipe
from .recipe_errors import validated

RecipeT = TypeVar("RecipeT", bound=BaseModel)


def packaged_recipes() -> dict[str, str]:
    """Return the recipes that ship: name -> TOML text."""
    folder = resources.files("melstream.tools") / "recipes"
    files = (file for file in folder.iterdir() if file.name.endswith(".toml"))
    return {file.name.removesuffix(".toml"): file.read_text() for file in files}


def load_recipe(name: str, schema: type[RecipeT], overrides: Sequence[str] = ()) -> RecipeT:
    """Read a recipe and apply ``--set`` overrides.

    Args:
        name: a packaged recipe, or the path of a TOML file.
        schema: what it has to be.
        overrides: ``section.field=value``, values written as in TOML (bare words are strings).

    Raises:
        ValueError: no such recipe, not TOML, an unknown key, or a value that does not fit.
    """
    try:
        content = tomllib.loads(_recipe_text(name))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"recipe {name} is not valid TOML: {error}") from error
    for override in overrides:
        _apply(content, override)
    return validated(schema, content, where=f"recipe {name}")


def as_toml(recipe: Recipe) -> str:
    """Write a recipe as the file that ``load_recipe`` reads; what is none is left out."""
    return tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True))


def is_overridden(field: str, overrides: Sequence[str]) -> bool:
    """Say whether one of the ``--set`` overrides gives this field, or the section it is in.

    >>> is_overridden("train.seed", ["train.seed = 3"]), is_overridden("train.seed", ["train.s=3"])
    (True, False)
    """
    paths = (override.partition("=")[0].strip() for override in overrides)
    return any(f"{field}.".startswith(f"{path}.") for path in paths)


def _recipe_text(name: str) -> str:
    packaged = packaged_recipes()
    if name in packaged:
        return packaged[name]
    if not Path(name).is_file():
        raise ValueError(
            f"no recipe {name!r}: give the path of a TOML file, or one of "
            f"{', '.join(sorted(packaged))}"
        )
    return Path(name).read_text()


def _apply(content: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path.strip():
        raise ValueError(f"`--set` takes section.field=value, found {override!r}")
    *sections, field = path.strip().split(".")
    for section in sections:
        content = content.setdefault(section, {})
        if not isinstance(content, dict):
            raise ValueError(f"`--set {override}`: {section!r} is a value, not a section")
    content[field] = _parse_value(text.strip())


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
