"""Read the published files of AudioSet: classes, and clips with weak or with strong labels.

Formats: https://research.google.com/audioset/download.html and, for the strong labels,
https://research.google.com/audioset/download_strong.html. Every error names file and line.
Equal labels and times are one object in memory, for there are two million clips.
"""

import csv
import functools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from .corpus import Clip
from .youtube import YTID_LENGTH, require_ytid

SEGMENT_COLUMNS = ("YTID", "start_seconds", "end_seconds", "positive_labels")
STRONG_COLUMNS = ("segment_id", "start_time_seconds", "end_time_seconds", "label")
CLASS_COLUMNS = ["index", "mid", "display_name"]

STRONG_DURATION_S = 10.0  # a strong list states no end: "the beginning of the 10 sec clip"

_SEGMENT_ID = re.compile(r"[A-Za-z0-9_-]{11}_(0|[1-9][0-9]*)")

_Row = TypeVar("_Row")


@dataclass(frozen=True, slots=True)
class Classes:
    """One or more class lists, joined.

    Args:
        index: mid -> label, in the order of labels.
        names: display names.
        paths: the files, for messages.
    """

    index: dict[str, int]
    names: tuple[str, ...]
    paths: tuple[Path, ...]

    def label(self, mid: str) -> int:
        """Look a mid up.

        Raises:
            ValueError: it is in no list.
        """
        if mid not in self.index:
            raise ValueError(
                f"every label must be a mid of {' or '.join(map(str, self.paths))} "
                f"({len(self.names)} classes), found {mid!r}; the labels of --segments stand in "
                "class_labels_indices.csv, those of --strong in mid_to_display_name.tsv: "
                "--class-labels takes both, given twice"
            )
        return self.index[mid]


def read_classes(paths: Sequence[Path]) -> Classes:
    """Read class lists in either published format, and join them.

    A mid that stands in several lists is one class, with the name in the first: 382 of the 456
    strong classes are weak ones too, 12 of them under another name.

    Raises:
        ValueError: a line has another format, or a list names a mid twice or no mid at all.
    """
    names: dict[str, str] = {}
    for path in paths:
        for mid, name in _read_class_list(path).items():
            names.setdefault(mid, name)
    index = {mid: label for label, mid in enumerate(names)}
    return Classes(index=index, names=tuple(names.values()), paths=tuple(paths))


def read_segments(path: Path, split: int, classes: Classes) -> Iterator[tuple[int, Clip]]:
    """Read a list of clips with weak labels.

    Args:
        path: ``YTID, start_seconds, end_seconds, positive_labels`` with ``#`` header lines.
        split: what the clips get.
        classes: what the labels mean.

    Yields:
        number: of the line, from 1.
        clip: key is the YouTube id; no file yet.

    Raises:
        ValueError: a line has another format, or a label is not in ``classes``.
    """

    @functools.cache  # millions of rows share far fewer sets of labels
    def parse_labels(text: str) -> tuple[int, ...]:
        return tuple(sorted({classes.label(mid) for mid in text.split(",")}))

    @functools.cache
    def parse_times(start: str, end: str) -> tuple[float, float]:
        start_s, end_s = _times(SEGMENT_COLUMNS, start, end)
        return start_s, round(end_s - start_s, 3)

    def parse(fields: list[str]) -> Clip:
        ytid, start, end, labels = fields
        require_ytid(ytid)
        start_s, duration_s = parse_times(start, end)
        return Clip(ytid, None, parse_labels(labels), ytid, start_s, duration_s, None, split)

    yield from _read_rows(path, "--segments", SEGMENT_COLUMNS, ",", parse)


def read_strong(path: Path, split: int, classes: Classes) -> list[Clip]:
    """Read a list of clips with strong labels.

    Args:
        path: ``segment_id, start_time_seconds, end_time_seconds, label`` between tabs, one event
            a row, the rows of a clip in any order; a segment id is ``<ytid>_<start in ms>``.
        split: what the clips get.
        classes: what the labels mean.

    Returns:
        clips: key is the YouTube id, which several clips may share; no file yet.

    Raises:
        ValueError: a line has another format, or a label is not in ``classes``.
    """
    events: dict[str, list[tuple[float, float, int]]] = {}
    share_times = functools.cache(float)

    def parse(fields: list[str]) -> None:
        segment_id, start, end, mid = fields
        if segment_id not in events and not _SEGMENT_ID.fullmatch(segment_id):
            raise ValueError(
                "a segment_id is a YouTube id of 11 characters, `_` and the start in milliseconds, "
                f"found {segment_id!r}"
            )
        _times(STRONG_COLUMNS, start, end)
        event = (share_times(start), share_times(end), classes.label(mid))
        events.setdefault(segment_id, []).append(event)

    for _ in _read_rows(path, "--strong", STRONG_COLUMNS, "\t", parse):
        pass
    return [_strong_clip(segment_id, found, split) for segment_id, found in events.items()]


def _strong_clip(segment_id: str, events: list[tuple[float, float, int]], split: int) -> Clip:
    ytid, start_ms = segment_id[:YTID_LENGTH], segment_id[YTID_LENGTH + 1 :]
    return Clip(
        key=ytid,
        path=None,
        labels=tuple(sorted({label for _, _, label in events})),
        source=ytid,
        start_s=int(start_ms) / 1000,
        duration_s=STRONG_DURATION_S,
        split=split,
        events=tuple(sorted(events)),
    )


def _times(columns: Sequence[str], start: str, end: str) -> tuple[float, float]:
    """Read start and end; an event may take no time, a clip may not."""
    try:
        start_s, end_s = float(start), float(end)
    except ValueError:
        start_s = end_s = math.nan
    may_be_empty = columns is STRONG_COLUMNS
    if not (0 <= start_s <= end_s < math.inf and (may_be_empty or start_s < end_s)):
        order = "not before it" if may_be_empty else "greater"
        raise ValueError(
            f"{columns[1]} must be 0 or more and {columns[2]} {order}, found {start!r} and {end!r}"
        )
    return start_s, end_s


def _read_class_list(path: Path) -> dict[str, str]:
    """Read mids and display names, in the order of the file."""
    names: dict[str, str] = {}
    for number, line in _lines(path, "--class-labels"):
        parse = _parse_tab_class if "\t" in line else _parse_csv_class
        try:
            parse(line, names, is_first=number == 1)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: expected {error}, found {line!r}") from None
    if not names:
        raise ValueError(f"{path} must list the classes, found none")
    return names


def _parse_csv_class(line: str, names: dict[str, str], *, is_first: bool) -> None:
    """Read a line of class_labels_indices.csv."""
    (row,) = csv.reader([line])
    if is_first:
        if row != CLASS_COLUMNS:
            raise ValueError(f"the columns {','.join(CLASS_COLUMNS)}")
        return
    if len(row) != 3 or row[0] != str(len(names)) or row[1] in names:
        raise ValueError(f"index {len(names)}, a mid not seen before and a name")
    names[row[1]] = row[2]


def _parse_tab_class(line: str, names: dict[str, str], *, is_first: bool) -> None:
    """Read a line of mid_to_display_name.tsv, which has no header."""
    mid, _, name = line.partition("\t")
    if not mid.startswith("/") or "\t" in name or mid in names:
        raise ValueError("a mid not seen before, a tab and a name")
    names[mid] = name


def _read_rows(
    path: Path,
    option: str,
    columns: Sequence[str],
    separator: str,
    parse: Callable[[list[str]], _Row],
) -> Iterator[tuple[int, _Row]]:
    """Yield the number of each line that is not a header, and what its fields mean."""
    has_rows = False
    for number, line in _lines(path, option):
        fields = [field.strip(' "') for field in line.split(separator, len(columns) - 1)]
        try:
            if line.startswith(("#", columns[0])) and _is_header(fields, columns):
                continue
            if len(fields) != len(columns):
                raise ValueError(
                    f"a row must hold {', '.join(columns)}, found {len(fields)} fields: {fields}"
                )
            row = parse(fields)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        has_rows = True
        yield number, row
    if not has_rows:
        raise ValueError(f"{path} must list clips, found none")


def _is_header(fields: list[str], columns: Sequence[str]) -> bool:
    """Tell a ``# `` line, and a line of column names with or without it, from a row.

    The blank is part of it: ``#NAME?`` is what a spreadsheet makes of an id that starts with ``-``.
    """
    names = [fields[0].lstrip("# "), *fields[1:]]
    if names[0] != columns[0]:
        return fields[0].startswith("# ")
    if names != list(columns):
        raise ValueError(f"the columns must be {', '.join(columns)}, found {', '.join(names)}")
    return True


def _lines(path: Path, option: str) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank, with their numbers from 1."""
    if not path.is_file():
        raise ValueError(f"`{option}` must be a file, found no {path}")
    with path.open(encoding="utf-8-sig", errors="backslashreplace") as file:
        for number, line in enumerate(file, start=1):
            if stripped := line.strip():
                yield number, stripped
