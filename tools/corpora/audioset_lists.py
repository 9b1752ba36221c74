"""Merge the lists of AudioSet into one set of clips with unique keys, and no leak among them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...shards.errors import listed
from .audioset_metadata import Classes, read_segments, read_strong
from .corpus import Clip

SPLITS = {
    "balanced_train_segments": "balanced_train",
    "unbalanced_train_segments": "unbalanced_train",
    "eval_segments": "eval",
    "audioset_train_strong": "train_strong",
    "audioset_eval_strong": "eval_strong",
}
"""What the splits are called, by the published name of their list; others keep their own."""


@dataclass(slots=True)
class Lists:
    """The clips of several lists.

    Args:
        splits: one name per list.
        n_weak: how many of them, the first ones, have weak labels, and state where a clip ends.
        clips: key -> clip, without a file.
        videos: id -> keys, of the videos that several clips are from; in all others the id is
            the key.
    """

    splits: tuple[str, ...]
    n_weak: int
    clips: dict[str, Clip] = field(default_factory=dict)
    videos: dict[str, tuple[str, ...]] = field(default_factory=dict)


def read_lists(segments: Sequence[Path], strong: Sequence[Path], classes: Classes) -> Lists:
    """Read lists of clips: each becomes a split.

    Args:
        segments: lists with weak labels; no clip may stand in two of them.
        strong: lists with strong labels. A clip that stands in a weak list too keeps the split
            and the labels it has there, and gets its events.
        classes: what the labels mean.

    Raises:
        ValueError: a list is broken, two have one name, a clip stands in two weak or in two
            strong lists, or a video in a list for training and in one for evaluation (``eval``
            is in the name of the split).
    """
    if not segments and not strong:
        raise ValueError("a list of clips is required: give --segments, --strong, or both")
    lists = Lists(_split_names([*segments, *strong]), n_weak=len(segments))
    is_eval = tuple("eval" in name for name in lists.splits)
    for split, path in enumerate(segments):
        repeats = _add_weak(lists.clips, path, split, classes)
        _require_disjoint(repeats, split, lists.splits, is_eval)
    further: dict[str, list[Clip]] = {}
    owners: dict[str, int] = {}
    for split, path in enumerate(strong, start=lists.n_weak):
        repeats = []
        for clip in read_strong(path, split, classes):
            other = _add_strong(clip, lists.clips, further, owners, is_eval)
            if other is not None:
                repeats.append((clip.key, other))
        _require_disjoint(repeats, split, lists.splits, is_eval)
    _rename(lists, further)
    return lists


def _add_weak(
    clips: dict[str, Clip], path: Path, split: int, classes: Classes
) -> list[tuple[str, int]]:
    """Add the clips of a list; return the ids that stand in another, and in which."""
    repeats: list[tuple[str, int]] = []
    for number, clip in read_segments(path, split, classes):
        first = clips.setdefault(clip.key, clip)
        if first is clip:
            continue
        if first.split == split:
            rows = read_segments(path, split, classes)
            above = next(n for n, found in rows if found.key == clip.key)
            raise ValueError(
                f"{path}, line {number}: every id must stand once, {clip.key!r} stands on line "
                f"{above} too"
            )
        repeats.append((clip.key, first.split))
    return repeats


def _add_strong(
    clip: Clip,
    clips: dict[str, Clip],
    further: dict[str, list[Clip]],
    owners: dict[str, int],
    is_eval: Sequence[bool],
) -> int | None:
    """Add a clip, or its events to a clip that is there; return a list it may not stand in too.

    Args:
        clip: what to add.
        clips: the first clip of each video, by id.
        further: the others.
        owners: segment -> the strong list it is from.
        is_eval: per list.
    """
    segment = _segment_id(clip)
    first = clips.setdefault(clip.key, clip)
    if is_eval[first.split] != is_eval[clip.split]:
        return first.split
    if segment in owners:
        return owners[segment]
    owners[segment] = clip.split
    if _segment_id(first) != segment:
        further.setdefault(clip.key, []).append(clip)
    elif first is not clip:
        clips[clip.key] = replace(first, events=clip.events)
    return None


def _require_disjoint(
    repeats: Iterable[tuple[str, int]], split: int, splits: Sequence[str], is_eval: Sequence[bool]
) -> None:
    """Refuse ids that stand in ``split`` and, second of each pair, another list."""
    ids_by_other: dict[int, list[str]] = {}
    for ytid, other in repeats:
        ids_by_other.setdefault(other, []).append(ytid)
    for other, ids in ids_by_other.items():
        leak = " (a leak: trained on and evaluated on)" if is_eval[other] != is_eval[split] else ""
        named = listed(ids)
        raise ValueError(
            f"{splits[other]!r} and {splits[split]!r} must not share a video{leak}, found "
            f"{len(ids):,} in both: {named}; remove their lines from one of the lists"
        )


def _rename(lists: Lists, further: dict[str, list[Clip]]) -> None:
    """Give the clips of a video that has several keys of their own."""
    for ytid, others in further.items():
        renamed = []
        for clip in (lists.clips.pop(ytid), *others):
            key = _segment_id(clip)
            lists.clips[key] = replace(clip, key=key, source=key)
            renamed.append(key)
        lists.videos[ytid] = tuple(renamed)


def _segment_id(clip: Clip) -> str:
    """Name a clip as the strong lists do."""
    assert clip.start_s is not None
    return f"{clip.key}_{round(1000 * clip.start_s)}"


def _split_names(paths: Sequence[Path]) -> tuple[str, ...]:
    names = [SPLITS.get(path.stem, path.stem) for path in paths]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise ValueError(
                f"every list must have a name of its own, found {paths[names.index(name)]} and "
                f"{paths[number]}: both are called {name!r}; give each once, or rename one"
            )
    return tuple(names)
