"""Reading the tables that corpora bring: CSV with checked columns, errors with line numbers."""

import contextlib
import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from .labels import describe


def read_rows(
    path: Path, *, delimiter: str = ",", errors: str = "backslashreplace"
) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a CSV file that are not blank, each with the line it starts on.

    Args:
        path: the file; UTF-8, with or without a byte order mark.
        delimiter: one character.
        errors: what becomes of bytes that are not UTF-8; ``surrogateescape`` keeps them, so
            that a path still leads to its file.

    Yields:
        line: number of the row's first line, from 1.
        fields: its fields, without blanks around them.

    Raises:
        ValueError: the quotes of a row do not match, or the like.
    """
    with path.open(encoding="utf-8-sig", errors=errors, newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True, strict=True)
        while True:
            line = reader.line_num + 1
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise ValueError(f"{path}, line {line}: not a row of a table: {error}") from None
            fields = [field.strip() for field in row]
            if any(fields):
                yield line, fields


def read_table(
    path: Path,
    columns: Sequence[str],
    *,
    delimiter: str = ",",
    errors: str = "backslashreplace",
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the rows below a header, by column name.

    Args:
        path: the file.
        columns: the columns that must be there; others may be.
        delimiter: one character.
        errors: as in ``read_rows``.

    Yields:
        line: number of the row's first line, from 1.
        row: column name -> field.

    Raises:
        ValueError: no header, a column is not there or there twice, a row has more or fewer
            fields than the header, or there is no row.
    """
    rows = read_rows(path, delimiter=delimiter, errors=errors)
    number, header = next(rows, (1, []))
    missing = [column for column in columns if column not in header]
    if missing or len(set(header)) < len(header):
        raise ValueError(
            f"{path}, line {number}: the header must name the columns {', '.join(columns)}, each "
            f"once; found {', '.join(header) or 'none'}"
            + (f", without {describe(missing, header)}" if missing else "")
        )
    is_empty = True
    for number, fields in rows:
        if len(fields) != len(header):
            raise ValueError(
                f"{path}, line {number}: a row must have {len(header)} fields "
                f"({', '.join(header)}), found {len(fields)}: {fields}"
            )
        is_empty = False
        yield number, dict(zip(header, fields, strict=True))
    if is_empty:
        raise ValueError(f"{path} must list clips below its header, found none")


@contextlib.contextmanager
def at_line(path: Path, line: int) -> Iterator[None]:
    """Say in every ``ValueError`` of the block where the row stands."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}, line {line}: {error}") from None


def require_new(name: str, line: int, first_lines: dict[str, int]) -> None:
    """Insist that a name stands once in a table.

    Args:
        name: the id of a row.
        line: where it stands.
        first_lines: name -> line of those before; the name is added.

    Raises:
        ValueError: the name was there before.
    """
    first = first_lines.setdefault(name, line)
    if first != line:
        raise ValueError(f"every id must stand once, {name!r} stands on line {first} too")


def require_one_name(names: dict[int, str], number: int, name: str) -> None:
    """Insist that a class number has the same name in each row.

    Args:
        names: number -> name of the rows before; the pair is added.
        number: of the class.
        name: in this row.

    Raises:
        ValueError: it had another name before.
    """
    known = names.setdefault(number, name)
    if known != name or not name:
        raise ValueError(f"class {number} must have one name, found {known!r} and {name!r}")


def parse_int(text: str, column: str, low: int, high: int | None = None) -> int:
    """Read a whole number of a column, from ``low`` to ``high`` inclusive.

    Raises:
        ValueError: it is none.
    """
    number = int(text) if text.isascii() and text.isdecimal() else None
    if number is None or number < low or (high is not None and number > high):
        required = f"{low} or more" if high is None else f"one of {low}..{high}"
        raise ValueError(f"`{column}` must be a whole number, {required}; found {text!r}")
    return number


def parse_seconds(text: str, column: str) -> float:
    """Read a time of a column, in seconds, 0 or more.

    Raises:
        ValueError: it is none.
    """
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ValueError(f"`{column}` must be a time in seconds, 0 or more; found {text!r}")
    return seconds
