"""CSV: any audio files that a table lists, with labels, segments and splits by column.

Content: whatever you have; any number of classes per clip, or none.
Size: any.
Licence: yours.
Origin: your disk.
Layout: SOURCE is a table with a header, its columns separated by commas, tabs or semicolons.
    One row per clip: the path of its file and, as you name the columns, its labels, its start
    and end in the file, its split, its id. Paths start from the table's folder or ``--root``.
    A column called ``label`` or the like has to be named, or left aside by ``--unlabelled``.
Papers: none.
"""

import dataclasses
import difflib
import os
import posixpath
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import typer

from ...shards.errors import listed
from ...shards.keys import make_key
from ..text_tables import many
from .corpus import Clip, Listing
from .files import is_audio_name, printable
from .labels import (
    LabelSeparator,
    LabelsFile,
    read_labels,
    require_known,
    require_separator,
    split_labels,
)
from .names import short_names, times_text
from .tables import at_line, parse_seconds, read_rows, read_table

EXAMPLE = (
    "melstream build csv clips.csv --path-column file --label-column tags --label-separator ';' "
    "--out shards/clips"
)

DELIMITERS = (",", "\t", ";")
LABEL_NAMES = {"label", "labels", "class", "classes", "category", "categories", "tag", "tags"}
"""Columns that nobody leaves out on purpose without saying so, in lower case."""
PATH_NAMES = {"file", "filename", "file_name", "filepath", "file_path", "audio", "wav"}
MAX_REPEATS = 10  # rows in a message

_Source = Annotated[
    Path, typer.Argument(help="Table with one row per clip and a header.", metavar="SOURCE")
]
_Root = Annotated[
    Path | None,
    typer.Option(
        help="Where relative paths start. Without it: the table's folder.", metavar="FOLDER"
    ),
]
_PathColumn = Annotated[str, typer.Option(help="Column with the path of the file.", metavar="NAME")]
_LabelColumn = Annotated[
    str | None, typer.Option(help="Column with the label or labels.", metavar="NAME")
]
_Unlabelled = Annotated[bool, typer.Option("--unlabelled", help="Leave a column of labels aside.")]
_StartColumn = Annotated[
    str | None,
    typer.Option(help="Column with the clip's start in its file, in seconds.", metavar="NAME"),
]
_EndColumn = Annotated[
    str | None, typer.Option(help="Column with its end in the file, in seconds.", metavar="NAME")
]
_DurationColumn = Annotated[
    str | None,
    typer.Option(help="Column with its duration in seconds, in place of its end.", metavar="NAME"),
]
_SplitColumn = Annotated[
    str | None, typer.Option(help="Column with the split or fold.", metavar="NAME")
]
_IdColumn = Annotated[
    str | None,
    typer.Option(
        help="Column with the clip's id. Without it: made of its path and times.", metavar="NAME"
    ),
]


@dataclass(frozen=True, slots=True)
class _Columns:
    """The names of the columns; None where there is none."""

    path: str
    label: str | None
    start: str | None
    end: str | None
    duration: str | None
    split: str | None
    id: str | None

    def named(self) -> list[str]:
        return [name for name in dataclasses.astuple(self) if name is not None]


@dataclass(frozen=True, slots=True)
class _Row:
    """What a row says."""

    line: int
    path: str
    offset_s: float | None
    duration_s: float | None
    labels: tuple[str, ...]
    split: str
    id: str | None


def scan(
    source: _Source,
    *,
    root: _Root = None,
    path_column: _PathColumn = "path",
    label_column: _LabelColumn = None,
    unlabelled: _Unlabelled = False,
    label_separator: LabelSeparator = None,
    labels: LabelsFile = None,
    start_column: _StartColumn = None,
    end_column: _EndColumn = None,
    duration_column: _DurationColumn = None,
    split_column: _SplitColumn = None,
    id_column: _IdColumn = None,
) -> Listing:
    """List the clips of a table.

    A field that is empty says nothing: no label, no split, from the start of the file, to its
    end. A file that is not there is listed as missing.

    Args:
        source: the table; its delimiter is that of comma, tab and semicolon that makes a header
            with the path's column.
        root: the folder that relative paths start from.
        path_column, label_column, start_column, end_column, duration_column, split_column,
            id_column: names in the header.
        unlabelled: no clip has a label, although a column is called ``label`` or the like.
        label_separator: between the labels of one field.
        labels: text file with one class name per line; a label that it does not name is an
            error.

    Returns:
        listing: one clip per row; classes in the order of ``labels``, or sorted; splits in the
        order in which they appear.

    Raises:
        ValueError: no such table or column, a column that seems to hold labels and is not named,
            a broken row, a clip stands twice, a label that is not in ``labels``, or no file is
            there.
    """
    columns = _Columns(
        path_column,
        label_column,
        start_column,
        end_column,
        duration_column,
        split_column,
        id_column,
    )
    _require_options(source, columns, label_separator, labels)
    _require_path_column(source, columns.path)
    _require_named_labels(source, columns, unlabelled=unlabelled)
    known = None if labels is None else read_labels(labels)
    rows = list(_read_rows(source, columns, label_separator, known, str(labels)))
    label_names = known or tuple(sorted({label for row in rows for label in row.labels}))
    splits = tuple(dict.fromkeys(row.split for row in rows if row.split))
    root = source.parent if root is None else root
    clips = _make_clips(rows, root, label_names, splits)
    _require_a_file(clips, source, root / rows[0].path)
    return Listing(root=root, clips=clips, label_names=label_names, splits=splits)


def _require_options(
    source: Path, columns: _Columns, label_separator: str | None, labels: Path | None
) -> None:
    if not source.is_file():
        found = "a folder" if source.is_dir() else "nothing"
        raise ValueError(f"the source must be a table with a header, found {found} at {source}")
    if columns.end is not None and columns.duration is not None:
        raise ValueError("`--end-column` and `--duration-column` exclude each other; leave one out")
    if columns.start is None and (columns.end is not None or columns.duration is not None):
        option = "--end-column" if columns.end is not None else "--duration-column"
        raise ValueError(f"`{option}` goes with `--start-column`, which says where a clip starts")
    if columns.label is None and (labels is not None or label_separator is not None):
        option = "--labels" if labels is not None else "--label-separator"
        raise ValueError(f"`{option}` goes with `--label-column`, which names the labels' column")
    require_separator(label_separator)


def _require_path_column(source: Path, name: str) -> None:
    """Refuse a table without it, if another column looks like it by its content or its name."""
    rows = read_rows(source, delimiter=_find_delimiter(source, name))
    header, first = (next(rows, (0, []))[1] for _ in range(2))
    if name in header:
        return
    likely = [
        *(column for column, field in zip(header, first, strict=False) if is_audio_name(field)),
        *(column for column in header if column.lower() in PATH_NAMES),
        *difflib.get_close_matches(name, header, n=1),
    ]
    if likely:
        raise ValueError(
            f"{source} has no column {name!r}, found {', '.join(header)}: type `--path-column "
            f"{shlex.quote(likely[0])}` if that one holds the paths of the files"
        )


def _require_named_labels(source: Path, columns: _Columns, *, unlabelled: bool) -> None:
    """Refuse to guess whether a column of labels counts."""
    if columns.label is not None and unlabelled:
        raise ValueError("`--label-column` and `--unlabelled` exclude each other; leave one out")
    if columns.label is not None or unlabelled:
        return
    header = _read_header(source, _find_delimiter(source, columns.path))
    others = [name for name in header if name not in columns.named()]
    found = next((name for name in others if name.lower() in LABEL_NAMES), None)
    if columns.path in header and found is not None:
        raise ValueError(
            f"{source} has a column {found!r}: type `--label-column {found}` if it holds the "
            "labels, `--unlabelled` if the clips shall have none"
        )


def _require_a_file(clips: tuple[Clip, ...], source: Path, first: Path) -> None:
    if not any(clip.path for clip in clips):
        raise ValueError(
            f"none of the {len(clips)} files of {source} is there, looked for "
            f"{printable(str(first))} and the like; `--root` is where relative paths start"
        )


def _read_rows(
    source: Path,
    columns: _Columns,
    label_separator: str | None,
    known: tuple[str, ...] | None,
    list_name: str,
) -> Iterator[_Row]:
    """Read the rows, none of a clip that was there before, labels only of those that are known."""
    first_lines: dict[object, int] = {}
    repeats: list[str] = []
    delimiter = _find_delimiter(source, columns.path)
    # A path that is not UTF-8 must still lead to its file.
    table = read_table(source, columns.named(), delimiter=delimiter, errors="surrogateescape")
    for line, fields in table:
        with at_line(source, line):
            row = _parse_row(line, fields, columns, label_separator)
            if known is not None:
                require_known(row.labels, known, list_name)
        path = posixpath.normpath(row.path)  # `./a.wav` is `a.wav`
        identity = (path, row.offset_s, row.duration_s) if row.id is None else row.id
        first = first_lines.setdefault(identity, line)
        if first != line:
            repeats.append(f"line {line} ({row.id or printable(path)!r}, of line {first})")
        yield row
    if repeats:
        raise ValueError(
            f"{source}: every clip must stand once, found {many(len(repeats), 'row')} of clips "
            f"that stand further up: {listed(repeats, MAX_REPEATS)}; write the labels of a clip in "
            "one row (`--label-separator`), or name a column that tells rows apart (`--id-column`)"
        )


def _find_delimiter(source: Path, path_column: str) -> str:
    """Choose the delimiter that gives the path's column, or else the most columns."""

    def fit(delimiter: str) -> tuple[bool, int]:
        header = _read_header(source, delimiter)
        return path_column in header, len(header)

    return max(DELIMITERS, key=fit)


def _read_header(source: Path, delimiter: str) -> list[str]:
    _, header = next(read_rows(source, delimiter=delimiter), (1, []))
    return header


def _parse_row(
    line: int, fields: dict[str, str], columns: _Columns, label_separator: str | None
) -> _Row:
    path = fields[columns.path]
    if not path or "://" in path:
        raise ValueError(f"`{columns.path}` must be the path of a file, found {path!r}")
    if columns.id is not None and not fields[columns.id]:
        raise ValueError(f"`{columns.id}` must not be empty")
    offset_s, duration_s = _parse_times(fields, columns)
    label = _utf8(fields, columns.label)
    return _Row(
        line=line,
        path=path,
        offset_s=offset_s,
        duration_s=duration_s,
        labels=split_labels(label, label_separator),
        split=_utf8(fields, columns.split),
        id=None if columns.id is None else fields[columns.id],
    )


def _utf8(fields: dict[str, str], name: str | None) -> str:
    """Return a name, which must be the same in other tables; nothing without a column."""
    text = "" if name is None else fields[name]
    if printable(text) != text:
        raise ValueError(
            f"`{name}` must be UTF-8, found {printable(text)!r}; save the table as UTF-8 (iconv -f "
            "latin1 -t utf-8)"
        )
    return text


def _parse_times(fields: dict[str, str], columns: _Columns) -> tuple[float | None, float | None]:
    """Read where the clip starts in its file and how long it is; None, None: it is the file."""
    start, end, duration = (
        "" if name is None else fields[name]
        for name in (columns.start, columns.end, columns.duration)
    )
    if not start and not end and not duration:
        return None, None
    offset_s = parse_seconds(start, columns.start or "") if start else 0.0
    if not end and not duration:
        return offset_s, None
    if end:
        duration_s = round(parse_seconds(end, columns.end or "") - offset_s, 6)
    else:
        duration_s = parse_seconds(duration, columns.duration or "")
    if duration_s <= 0:
        raise ValueError(f"a clip must end after its start, found {start!r} to {end or duration!r}")
    return offset_s, duration_s


def _make_clips(
    rows: Sequence[_Row], root: Path, label_names: Sequence[str], splits: Sequence[str]
) -> tuple[Clip, ...]:
    index = {name: number for number, name in enumerate(label_names)}
    split_index = {name: number for number, name in enumerate(splits)} | {"": -1}
    short = short_names({printable(row.path) for row in rows})
    is_file = lru_cache(100_000)(lambda path: os.path.isfile(os.path.join(root, path)))
    clips = []
    for row in rows:
        name = printable(row.path)
        times = times_text(row.offset_s, row.duration_s)
        clips.append(
            Clip(
                key=make_key(row.id or short[name] + times),
                path=row.path if is_file(row.path) else None,
                labels=tuple(sorted({index[label] for label in row.labels})),
                source=name,
                start_s=row.offset_s,
                duration_s=row.duration_s,
                offset_s=row.offset_s,
                split=split_index[row.split],
            )
        )
    return tuple(sorted(clips, key=lambda clip: clip.key))
