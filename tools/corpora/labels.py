"""Class names: a fixed list of them, and what to say of a name that is not in it."""

import difflib
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer

LabelsFile = Annotated[
    Path | None,
    typer.Option(
        "--labels",
        help="Class names, one a line, in the order of their indices, so that several data "
        "sets share one list. Without it: the names found, sorted.",
        metavar="FILE",
    ),
]
"""The option of every corpus that has no list of classes of its own."""

LabelSeparator = Annotated[
    str | None,
    typer.Option(
        help="What stands between two labels, such as ';'. Without it: a field is one label.",
        metavar="TEXT",
    ),
]
"""The option of every corpus that finds its labels in fields of text."""

_N_NAMED = 5  # at most so many names in one message


def read_labels(path: Path) -> tuple[str, ...]:
    """Read a list of class names, one a line; blank lines count for nothing.

    Raises:
        ValueError: no such file, a name stands twice, or there is none.
    """
    if not path.is_file():
        raise ValueError(
            f"`--labels` must be a text file with one class name a line, found no {path}"
        )
    text = path.read_text(encoding="utf-8-sig", errors="backslashreplace")  # as `printable`
    first_line: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        name = line.strip()
        if name in first_line:
            raise ValueError(
                f"{path}, line {number}: every class name must stand once, found {name!r} on line "
                f"{first_line[name]} too"
            )
        if name:
            first_line[name] = number
    if not first_line:
        raise ValueError(f"{path} must hold one class name a line, found none")
    return tuple(first_line)


def split_labels(text: str, separator: str | None) -> tuple[str, ...]:
    """Read the labels of one field; blanks around them count for nothing.

    >>> split_labels("dog; bark;", ";"), split_labels("Cough; sneeze", None)
    (('dog', 'bark'), ('Cough; sneeze',))
    """
    parts = [text] if separator is None else text.split(separator)
    return tuple(part.strip() for part in parts if part.strip())


def require_separator(separator: str | None) -> None:
    """Refuse a separator that separates nothing.

    Raises:
        ValueError: it is empty.
    """
    if separator == "":
        raise ValueError("`--label-separator` must not be empty; leave it out for one label each")


def require_known(names: Iterable[str], known: Collection[str], where: str) -> None:
    """Insist that every name is a class.

    Args:
        names: the labels of a clip.
        known: the classes.
        where: what lists them, for the message.

    Raises:
        ValueError: a name is not in ``known``.
    """
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(
            f"every label must be a class of {where} ({len(known)} names), "
            f"found {describe(unknown, known)}"
        )


def describe(unknown: Sequence[str], known: Collection[str]) -> str:
    """Name what was found and what it is close to, at most five names.

    >>> describe(["basss", "drum"], ["bass", "snare"])
    "'basss' (close: 'bass'), 'drum'"
    """
    described = []
    for name in unknown[:_N_NAMED]:
        close = difflib.get_close_matches(name, list(known))
        described.append(
            f"{name!r} (close: {', '.join(map(repr, close))})" if close else repr(name)
        )
    rest = len(unknown) - _N_NAMED
    return ", ".join(described) + (f" and {rest} more" if rest > 0 else "")
