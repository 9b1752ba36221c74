"""VGGSound: 10-second clips of YouTube videos in which a sound is heard and its source seen.

Content: 10 s excerpts; one of 309 classes each.
Size: 199,176 clips listed, 15,446 of them for testing; parts can no longer be downloaded.
    Some videos give two clips.
Licence: CC-BY-4.0; the copyright of the videos remains with their owners.
Origin: https://github.com/hche11/VGGSound
Layout: ``vggsound.csv`` (YouTube id, start in seconds, label, train or test; no header) and
    ``SOURCE/**/<ytid>_<start in six digits>.<any audio or video suffix>``, as published, or
    the names other downloaders give: ``<ytid>``, ``<ytid>_<start>``, ``<ytid>_<start>_<end>``,
    ``<ytid>_<start>-<end>``, with or without a leading ``Y``, and ``<any title> [<ytid>]``;
    times in seconds or in whole milliseconds. Folders mean nothing.
Papers: Chen, Xie, Vedaldi, Zisserman 2020, VGGSound: A Large-scale Audio-Visual Dataset
    (ICASSP, arXiv:2004.14368).

A clip's key is its published name, ``<ytid>_<start in six digits>``.
"""

import dataclasses
from collections import Counter
from pathlib import Path, PurePath
from typing import Annotated

import typer

from .corpus import Clip, Listing
from .files import find_audio
from .published import require_file
from .tables import at_line, parse_int, read_rows, require_new
from .youtube import YTID_LENGTH, parse_name, require_ytid

EXAMPLE = "melstream build vggsound clips/ --metadata vggsound.csv --out shards/vggsound"

METADATA = "vggsound.csv"
SPLITS = ("train", "test")
DURATION_S = 10.0
MAX_START_S = 999_999  # six digits

_Rank = tuple[bool, str, str]
"""Names no times, source, path: the smallest is the best file of a clip."""


def scan(
    source: Annotated[
        Path, typer.Argument(help="Folder with the downloaded files.", metavar="SOURCE")
    ],
    *,
    metadata: Annotated[
        Path | None,
        typer.Option(
            help="The official list of clips. Without it: vggsound.csv in SOURCE.", metavar="CSV"
        ),
    ] = None,
    whole_videos: Annotated[
        bool,
        typer.Option(
            "--whole-videos",
            help="Files without times in their name hold the whole video: cut the clips out.",
        ),
    ] = False,
) -> Listing:
    """Match downloaded files with the official list of clips.

    A file named without times is the clip, if the video gives one clip only, or the whole
    video with ``whole_videos``. A file whose name states other times than the list (by a
    second or more) is counted as mistimed and not used. Of several files of one clip the one
    with times in its name is taken, then the first by path; the others are duplicates.

    Args:
        source: folder with the downloaded files, at any depth.
        metadata: the list of clips.
        whole_videos: a file named without times holds the whole video and serves all its clips.

    Returns:
        listing: one clip per row; classes sorted by name, as in the authors' code; splits
        train and test.

    Raises:
        ValueError: the list is not there or broken, or no file is in it.
    """
    path = _find_metadata(source, metadata)
    clips, label_names = _read_metadata(path)
    best, counts = _match_files(source, clips, whole_videos=whole_videos)
    if not best:
        raise ValueError(
            f"none of the {counts.total()} audio files under {source} is a clip of {path}: "
            f"{counts['unlisted']} have an id that is not in it or a name other than "
            f"<ytid>_<start>, {counts['mistimed']} other times"
        )
    for key, rank in best.items():
        clips[key] = _place(clips[key], rank, is_cut=whole_videos and rank[0])
    return Listing(
        root=source,
        clips=tuple(clips[key] for key in sorted(clips)),
        label_names=label_names,
        splits=SPLITS,
        n_unlisted=counts["unlisted"],
        n_duplicates=counts["duplicate"],
        n_mistimed=counts["mistimed"],
    )


def recording_of(key: str) -> str:
    """Say which recording a clip is from: AudioSet has clips of the same videos.

    >>> recording_of("FwVYUHKoLtQ_000034")
    'FwVYUHKoLtQ'
    """
    return key[:YTID_LENGTH]


def _find_metadata(source: Path, metadata: Path | None) -> Path:
    if metadata is None:
        return require_file(source, METADATA)
    if not metadata.is_file():
        raise ValueError(f"`--metadata` must be a CSV file, found no {metadata}")
    return metadata


def _read_metadata(path: Path) -> tuple[dict[str, Clip], tuple[str, ...]]:
    """Read the clips by key, none with a file yet, and the class names."""
    lines: dict[str, int] = {}
    rows: list[tuple[str, int, str, str]] = []  # key, start, label, split
    for line, row in read_rows(path):
        with at_line(path, line):
            if len(row) != 4:
                raise ValueError(
                    f"a row must hold YouTube id, start, label and split, found {len(row)} "
                    f"fields: {row}"
                )
            ytid, start, label, split = row
            start_s = parse_int(start, "start", 0, MAX_START_S)
            key = f"{require_ytid(ytid)}_{start_s:06d}"
            require_new(key, line, lines)
            if not label or split not in SPLITS:
                raise ValueError(
                    f"a label and one of {', '.join(SPLITS)} are required, found {label!r} and "
                    f"{split!r}"
                )
        rows.append((key, start_s, label, split))
    if not rows:
        raise ValueError(f"{path} must list clips, found none")
    label_names = tuple(sorted({label for _, _, label, _ in rows}))
    index = {name: number for number, name in enumerate(label_names)}
    return {
        key: Clip(
            key=key,
            path=None,
            labels=(index[label],),
            source=key,
            start_s=float(start_s),
            duration_s=DURATION_S,
            split=SPLITS.index(split),
        )
        for key, start_s, label, split in rows
    }, label_names


def _match_files(
    source: Path, clips: dict[str, Clip], *, whole_videos: bool
) -> tuple[dict[str, _Rank], Counter[str]]:
    """Find the best file of each clip, and count the files by what they are."""
    of_video: dict[str, list[Clip]] = {}
    for key, clip in clips.items():
        of_video.setdefault(key[:YTID_LENGTH], []).append(clip)
    best: dict[str, _Rank] = {}
    counts: Counter[str] = Counter()
    n_listed = 0
    for name, path in find_audio(source):
        if path is None:
            continue
        parsed = parse_name(PurePath(path).stem)
        candidates = of_video.get(parsed.ytid, []) if parsed else []
        is_bare = parsed is None or parsed.start is None
        if (
            parsed is None
            or not candidates
            or (is_bare and not whole_videos and len(candidates) > 1)
        ):
            counts["unlisted"] += 1  # or one clip of the video, and nothing says which
            continue
        matches = [clip for clip in candidates if parsed.agrees(*_times(clip))]
        n_listed += bool(matches)
        counts["mistimed"] += not matches
        for clip in matches:
            rank = (is_bare, name, path)
            best[clip.key] = min(rank, best.get(clip.key, rank))
    counts["duplicate"] = n_listed - len({path for _, _, path in best.values()})
    return best, counts


def _times(clip: Clip) -> tuple[float, float]:
    assert clip.start_s is not None
    return clip.start_s, clip.start_s + DURATION_S


def _place(clip: Clip, rank: _Rank, *, is_cut: bool) -> Clip:
    _, name, path = rank
    return dataclasses.replace(
        clip, path=path, source=name, offset_s=clip.start_s if is_cut else None
    )
