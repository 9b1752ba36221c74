"""AudioSet: 10-second clips of YouTube videos with labels from 527 classes.

Content: 10 s excerpts; one or more of 527 classes of the AudioSet ontology each.
Size: balanced train 22,160 clips, unbalanced train 2,041,789, evaluation 20,371; parts of
    each can no longer be downloaded.
Licence: labels CC-BY-4.0; the audio belongs to those who uploaded the videos.
Origin: https://research.google.com/audioset/download.html
Layout: ``SOURCE/**/<name>.<any audio suffix>`` as a downloader left it, the metadata as
    published. Names: ``<ytid>``, ``Y<ytid>``, ``<ytid>_<start>``, ``<ytid>_<start>_<end>``,
    ``<ytid>_<start>-<end>``, with or without the ``Y``; times in seconds with or without
    decimals, or in whole milliseconds. Folders mean nothing.
Papers: Gemmeke et al. 2017, Audio Set: an ontology and human-labeled dataset for audio
    events (ICASSP).

A clip's key is its YouTube id. Ids start with ``-``, hold ``_`` and differ by case only,
so a name is read by position: the id is its first 11 characters, or the 11 after a ``Y``.
"""

import csv
import dataclasses
import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from .corpus import Clip, Listing
from .files import find_audio

EXAMPLE = (
    "melstream build audioset clips/ --segments balanced_train_segments.csv "
    "--class-labels class_labels_indices.csv --out shards/balanced"
)

SEGMENT_COLUMNS = ["YTID", "start_seconds", "end_seconds", "positive_labels"]
CLASS_COLUMNS = ["index", "mid", "display_name"]

TIME_TOLERANCE_S = 1.0  # downloaders round and cut the times in a name to whole seconds

# The length of what follows the id decides whether a leading `Y` belongs to it: no name can be
# read both ways.
_NAME = re.compile(
    r"Y?(?P<ytid>[A-Za-z0-9_-]{11})"
    r"(?:[_-](?P<start>\d+(?:\.\d+)?)(?:[_-](?P<end>\d+(?:\.\d+)?))?)?"
)
_YTID = re.compile(r"[A-Za-z0-9_-]{11}")


def scan(
    source: Annotated[
        Path, typer.Argument(help="Folder with the downloaded files.", metavar="SOURCE")
    ],
    *,
    segments: Annotated[
        Path,
        typer.Option(
            help="The official list of clips, such as balanced_train_segments.csv.", metavar="CSV"
        ),
    ],
    class_labels: Annotated[
        Path,
        typer.Option(help="The official list of classes, class_labels_indices.csv.", metavar="CSV"),
    ],
) -> Listing:
    """Match downloaded files with the official list of clips.

    Every row of the list gives one clip, with ``path=None`` where no file is there.
    A file whose name states other times than the list (by a second or more) holds
    another part of the video, to which the labels do not apply: it is counted as
    mistimed and not used. Of several files of one clip the one with times in its
    name is taken, then the first by path; the others are counted as duplicates.

    Args:
        source: folder with the downloaded files, at any depth.
        segments: ``YTID, start_seconds, end_seconds, positive_labels`` with ``#`` header lines.
        class_labels: ``index,mid,display_name``.

    Returns:
        listing: one clip per row of ``segments``; ``label_ids`` are the mids.

    Raises:
        ValueError: a CSV has another column or a broken row, an id stands twice, a
            mid is not in the class list, or no file under ``source`` is in the list.
    """
    mids, names = _read_classes(class_labels)
    clips = _read_segments(segments, mids, class_labels)
    best, counts = _match_files(source, clips)
    if not best:
        raise ValueError(
            f"none of the {counts.total()} audio files under {source} is a clip of {segments}: "
            f"{counts['unlisted']} have an id that is not in it or a name other than <ytid>, "
            f"Y<ytid>, <ytid>_<start> or <ytid>_<start>_<end>, {counts['mistimed']} other times"
        )
    for ytid, (_, name, path) in best.items():
        clips[ytid] = dataclasses.replace(clips[ytid], path=path, source=name)
    return Listing(
        clips=tuple(clips[ytid] for ytid in sorted(clips)),
        label_names=names,
        label_ids=mids,
        n_unlisted=counts["unlisted"],
        n_duplicates=counts["listed"] - len(best),
        n_mistimed=counts["mistimed"],
    )


def _match_files(
    source: Path, clips: dict[str, Clip]
) -> tuple[dict[str, tuple[bool, str, Path]], Counter[str]]:
    """Find the best file of each clip, and count the files by what they are.

    Returns:
        best: id -> (has no times in its name, source, path): the smallest is the best.
        counts: how many files are ``listed``, ``mistimed``, ``unlisted``.
    """
    best: dict[str, tuple[bool, str, Path]] = {}
    counts: Counter[str] = Counter()
    for name, path in find_audio(source):
        if path is None:
            continue
        match = _NAME.fullmatch(path.stem)
        clip = clips.get(match["ytid"]) if match else None
        if match is None or clip is None:
            counts["unlisted"] += 1
        elif not _agrees(match, clip):
            counts["mistimed"] += 1
        else:
            counts["listed"] += 1
            rank = (match["start"] is None, name, path)
            best[clip.key] = min(rank, best.get(clip.key, rank))
    return best, counts


def _agrees(match: re.Match[str], clip: Clip) -> bool:
    assert clip.start_s is not None
    assert clip.duration_s is not None
    return _is_time(match["start"], clip.start_s) and _is_time(
        match["end"], clip.start_s + clip.duration_s
    )


def _is_time(text: str | None, expected_s: float) -> bool:
    if text is None:
        return True
    time = float(text)
    return abs(time - expected_s) < TIME_TOLERANCE_S or time == round(1000 * expected_s)


def _read_classes(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Read the mids and the display names, in the order of the indices."""
    names: dict[str, str] = {}
    for number, line in _lines(path, "--class-labels"):
        (row,) = csv.reader([line])
        if number == 1:
            required = f"the columns {','.join(CLASS_COLUMNS)}"
            is_right = row == CLASS_COLUMNS
        else:
            required = f"index {len(names)}, a mid not seen before and a name"
            is_right = len(row) == 3 and row[0] == str(len(names)) and row[1] not in names
        if not is_right:
            raise ValueError(f"{path}, line {number}: expected {required}, found {line!r}")
        if number > 1:
            names[row[1]] = row[2]
    if not names:
        raise ValueError(f"{path} must list the classes, found none")
    return tuple(names), tuple(names.values())


def _read_segments(path: Path, mids: tuple[str, ...], class_labels: Path) -> dict[str, Clip]:
    """Read the list of clips: id -> clip, none with a file yet."""
    index = {mid: number for number, mid in enumerate(mids)}

    @functools.cache  # millions of rows share far fewer sets of labels
    def parse_labels(text: str) -> tuple[int, ...]:
        unknown = [mid for mid in text.split(",") if mid not in index]
        if unknown:
            raise ValueError(
                f"every label must be a mid of {class_labels} ({len(mids)} classes), "
                f"found {unknown[0]!r}"
            )
        return tuple(sorted({index[mid] for mid in text.split(",")}))

    clips: dict[str, Clip] = {}
    for number, line in _lines(path, "--segments"):
        fields = [field.strip(' "') for field in line.split(",", 3)]
        try:
            if _is_header(fields):
                continue
            clip = _parse_row(fields, parse_labels)
            if clip.key in clips:
                first = next(n for n, row in _lines(path, "--segments") if clip.key in row[:13])
                raise ValueError(
                    f"every id must stand once, {clip.key!r} stands on line {first} too"
                )
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        clips[clip.key] = clip
    if not clips:
        raise ValueError(f"{path} must list clips, found none")
    return clips


def _is_header(fields: list[str]) -> bool:
    """Tell the ``# `` lines, and a line of column names without one, from a row.

    The blank is part of it: ``#NAME?`` is what a spreadsheet makes of an id that starts with ``-``.
    """
    first = fields[0].lstrip("# ")
    if first != SEGMENT_COLUMNS[0]:
        return fields[0].startswith("# ")
    if [first, *fields[1:]] != SEGMENT_COLUMNS:
        raise ValueError(
            f"the columns must be {', '.join(SEGMENT_COLUMNS)}, "
            f"found {', '.join([first, *fields[1:]])}"
        )
    return True


def _parse_row(fields: list[str], parse_labels: Callable[[str], tuple[int, ...]]) -> Clip:
    if len(fields) != len(SEGMENT_COLUMNS):
        raise ValueError(
            f"a row must hold {', '.join(SEGMENT_COLUMNS)}, found {len(fields)} fields: {fields}"
        )
    ytid, start, end, labels = fields
    if not _YTID.fullmatch(ytid):
        raise ValueError(f"a YouTube id has 11 characters of [A-Za-z0-9_-], found {ytid!r}")
    try:
        start_s, end_s = float(start), float(end)
    except ValueError:
        start_s = end_s = math.nan
    if not 0 <= start_s < end_s < math.inf:
        raise ValueError(
            f"start_seconds must be 0 or more and end_seconds greater, found {start!r} and {end!r}"
        )
    return Clip(
        key=ytid,
        path=None,
        labels=parse_labels(labels),
        source=ytid,
        start_s=start_s,
        duration_s=round(end_s - start_s, 3),
    )


def _lines(path: Path, option: str) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank, with their numbers from 1."""
    if not path.is_file():
        raise ValueError(f"`{option}` must be a CSV file, found no {path}")
    with path.open(encoding="utf-8-sig", errors="backslashreplace") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line.strip()
