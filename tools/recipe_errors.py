"""What is wrong in a recipe, in words: unknown keys, missing sections, values that do not fit."""

import difflib
from collections.abc import Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

ModelT = TypeVar("ModelT", bound=BaseModel)


def validated(schema: type[ModelT], content: dict[str, Any], *, where: str) -> ModelT:
    """Make a model of plain data.

    Args:
        schema: what it has to be.
        content: its fields.
        where: the data came from, for the error.

    Raises:
        ValueError: an unknown key, or a value that does not fit; the message lists all of them.
    """
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        problems = [_explain(schema, e["loc"], e["type"], e["msg"]) for e in error.errors()]
        raise ValueError(f"{where}: " + "; ".join(problems)) from error


def _explain(
    schema: type[BaseModel], location: tuple[int | str, ...], kind: str, message: str
) -> str:
    path = ".".join(str(part) for part in location)
    if kind == "value_error":  # our own words, which name the fields
        return message.removeprefix("Value error, ")
    if kind == "missing" and len(location) == 1 and _section(schema, location[0]) is not None:
        return f"`[{path}]` is missing: --print-config writes a whole recipe to start from"
    if kind != "extra_forbidden":
        return f"`{path}`: {message[0].lower()}{message[1:]}"
    valid = sorted(_fields_at(schema, location[:-1]))
    close = difflib.get_close_matches(str(location[-1]), valid, n=1)
    hint = f", did you mean {close[0]!r}?" if close else ""
    return f"unknown key `{path}`{hint} (valid keys there: {', '.join(valid)})"


def _fields_at(schema: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    for part in location:
        section = _section(schema, part)
        assert section is not None
        schema = section
    return list(schema.model_fields)


def _section(schema: type[BaseModel], name: int | str) -> type[BaseModel] | None:
    """Return what the fields of a section are; None for a plain value."""
    annotation = schema.model_fields[str(name)].annotation
    kinds = [annotation, *get_args(annotation)]
    sections = (kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel))
    return next(sections, None)
