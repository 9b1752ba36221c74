"""AudioSet: 10-second clips of YouTube videos with labels from 527 classes.

Content: 10 s excerpts; one or more of 527 classes of the AudioSet ontology each. For about
    120,000 of them strong labels: what is heard from when to when, 456 classes.
Size: balanced train 22,160 clips, unbalanced train 2,041,789, evaluation 20,371; strong
    labels: train 103,463, evaluation 16,996. Parts of each can no longer be downloaded.
Licence: labels CC-BY-4.0; the audio belongs to those who uploaded the videos.
Origin: https://research.google.com/audioset/download.html, download_strong.html beside it
Layout: ``SOURCE/**/<name>.<any audio suffix>`` as a downloader left it, the metadata as
    published. Names: ``<ytid>``, ``Y<ytid>``, ``<ytid>_<start>``, ``<ytid>_<start>_<end>``,
    ``<ytid>_<start>-<end>``, with or without the ``Y``, and ``<any title> [<ytid>]``; times in
    seconds with or without decimals, or in whole milliseconds. Folders mean nothing: labels
    are those of the lists. HDF5 packs (PANNs, PaSST) and parquet copies are not folders of
    files: write each row's bytes to ``<ytid>.mp3`` or what they are; unpack a WebDataset of
    audio with ``tar -x``; one of log-mels is adopted by ``melstream index``.
Papers: Gemmeke et al. 2017, Audio Set: an ontology and human-labeled dataset for audio
    events (ICASSP). Strong labels: Hershey et al. 2021, The benefit of temporally-strong
    labels in audio event classification (ICASSP).

A clip's key is its YouTube id: all published clips are from distinct videos. Where lists name
several parts of a video, each of them has the key ``<ytid>_<start in ms>``, as in the strong
lists. Ids start with ``-``, hold ``_`` and differ by case only, so a name is read by position:
the id is its first 11 characters, or the 11 after a ``Y``, or those in the last brackets.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from .audioset_lists import Lists, read_lists
from .audioset_metadata import read_classes
from .corpus import Clip, Listing
from .files import find_audio
from .names import stem_of
from .youtube import YTID_LENGTH, VideoName, parse_name

EXAMPLE = (
    "melstream build audioset clips/ --segments balanced_train_segments.csv "
    "--class-labels class_labels_indices.csv --out shards/balanced"
)

_KEY = re.compile(r"[A-Za-z0-9_-]{11}(_[0-9]+)?")


_Source = Annotated[
    Path, typer.Argument(help="Folder with the downloaded files.", metavar="SOURCE")
]
_Segments = Annotated[
    list[Path] | None,
    typer.Option(
        help="An official list of clips, such as balanced_train_segments.csv; can be repeated.",
        metavar="CSV",
    ),
]
_Strong = Annotated[
    list[Path] | None,
    typer.Option(
        help="An official list of strong labels, such as audioset_train_strong.tsv, beside "
        "or instead of --segments; can be repeated.",
        metavar="TSV",
    ),
]
_ClassLabels = Annotated[
    list[Path],
    typer.Option(
        help="The official list of classes: class_labels_indices.csv, for --strong "
        "mid_to_display_name.tsv; can be repeated.",
        metavar="FILE",
    ),
]
_WholeVideos = Annotated[
    bool,
    typer.Option(
        "--whole-videos",
        help="Files without times in their name hold the whole video: cut the clip out.",
    ),
]


def scan(
    source: _Source,
    *,
    segments: _Segments = None,
    strong: _Strong = None,
    class_labels: _ClassLabels,
    whole_videos: _WholeVideos = False,
) -> Listing:
    """Match downloaded files with the official lists of clips.

    Every clip of the lists is listed, with ``path=None`` where no file is there. Each list is a
    split, called by its published name: ``balanced_train``, ``unbalanced_train``, ``eval``,
    ``train_strong``, ``eval_strong``; any other by its own. A clip that stands in a weak and in
    a strong list is one clip: split and labels are those of the weak list.

    A file whose name states other times than the list (by a second or more) holds
    another part of the video, to which the labels do not apply: it is counted as
    mistimed and not used. Of several files of one clip the one with times in its
    name is taken, then the first by path; the others are counted as duplicates.

    Args:
        source: folder with the downloaded files, at any depth.
        segments: ``YTID, start_seconds, end_seconds, positive_labels`` with ``#`` header lines.
        strong: ``segment_id, start_time_seconds, end_time_seconds, label``, tab-separated;
            they become the clips' events, and the labels where no weak list has the clip.
        class_labels: ``index,mid,display_name``, or mid, tab, name; several are joined.
        whole_videos: a file without times in its name holds the whole video, of which only
            the clip is decoded. By default it is the clip itself.

    Returns:
        listing: ``label_ids`` are the mids.

    Raises:
        ValueError: a list has another column or a broken row, a clip stands twice, a video is
            in a list for training and in one for evaluation, a mid is not in the class
            lists, or no file under ``source`` is in the lists.
    """
    classes = read_classes(class_labels)
    lists = read_lists(segments or (), strong or (), classes)
    counts = _match_files(source, lists, whole_videos=whole_videos)
    n_used = _n_files(lists)
    if not n_used:
        raise _nothing_found(source, counts, [*(segments or ()), *(strong or ())])
    return Listing(
        root=source,
        clips=tuple(lists.clips[key] for key in sorted(lists.clips)),
        label_names=classes.names,
        label_ids=tuple(classes.index),
        splits=lists.splits,
        n_unlisted=counts["unlisted"],
        n_duplicates=counts["listed"] - n_used,
        n_mistimed=counts["mistimed"],
    )


def _nothing_found(source: Path, counts: Counter[str], lists: Sequence[Path]) -> ValueError:
    return ValueError(
        f"none of the {counts.total()} audio files under {source} is a clip of "
        f"{', '.join(map(str, lists))}: "
        f"{counts['unlisted']} have an id that is not listed or a name other than <ytid>, "
        "Y<ytid>, <ytid>_<start>, <ytid>_<start>_<end> or <title> [<ytid>], "
        f"{counts['mistimed']} other times"
    )


def recording_of(key: str) -> str:
    """Say which recording a clip is from: clips of one video are no independent test.

    >>> recording_of("s9d-2nhuJCQ"), recording_of("s9d-2nhuJCQ_30000"), recording_of("dog_1")
    ('s9d-2nhuJCQ', 's9d-2nhuJCQ', 'dog_1')
    """
    return key[:YTID_LENGTH] if _KEY.fullmatch(key) else key


def _match_files(source: Path, lists: Lists, *, whole_videos: bool) -> Counter[str]:
    """Give each clip its best file.

    Returns:
        counts: how many files are ``listed``, ``mistimed``, ``unlisted``.
    """
    counts: Counter[str] = Counter()
    for name, path in find_audio(source):
        if path is None:
            continue
        video = _parse(name)
        keys = _keys_of(video.ytid, lists) if video else ()
        is_timed = video is not None and video.start is not None
        if video is None or not keys or not (is_timed or whole_videos or len(keys) == 1):
            counts["unlisted"] += 1
            continue
        if is_timed:
            keys = [key for key in keys if _agrees(video, lists.clips[key], lists.n_weak)]
        counts["listed" if keys else "mistimed"] += 1
        for key in keys:
            clip = lists.clips[key]
            if clip.path is None or (not is_timed, name) < (_is_untimed(clip), clip.source):
                is_cut = whole_videos and not is_timed
                lists.clips[key] = _with_file(clip, path, name, is_cut=is_cut)
    return counts


def _parse(source: str) -> VideoName | None:
    return parse_name(stem_of(source.rpartition("/")[2]))


def _keys_of(ytid: str, lists: Lists) -> Sequence[str]:
    return (ytid,) if ytid in lists.clips else lists.videos.get(ytid, ())


def _is_untimed(clip: Clip) -> bool:
    video = _parse(clip.source)
    return video is None or video.start is None


def _with_file(clip: Clip, path: str, source: str, *, is_cut: bool) -> Clip:
    # measured: 2026-11-22, AMD EPYC: 1.5 us; `dataclasses.replace` takes 3.4, for 2 M clips.
    return Clip(
        clip.key,
        path,
        clip.labels,
        source,
        clip.start_s,
        clip.duration_s,
        clip.start_s if is_cut else None,
        clip.split,
        clip.events,
    )


def _agrees(video: VideoName, clip: Clip, n_weak: int) -> bool:
    assert clip.start_s is not None
    assert clip.duration_s is not None
    if clip.split >= n_weak:  # a strong list states no end
        video = dataclasses.replace(video, end=None)
    return video.agrees(clip.start_s, clip.start_s + clip.duration_s)


def _n_files(lists: Lists) -> int:
    """Count the files that are used: several clips of a video may share one."""
    n_found = sum(clip.path is not None for clip in lists.clips.values())
    keys = [key for keys in lists.videos.values() for key in keys]
    shared = [path for key in keys if (path := lists.clips[key].path) is not None]
    return n_found - len(shared) + len(set(shared))
