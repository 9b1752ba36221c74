"""lhotse: any corpus that lhotse has manifests of: cuts, or recordings and supervisions.

Content: what the manifests list; labels from a field of the supervisions.
Size: any; manifests are read line by line.
Licence: that of the corpus.
Origin: https://github.com/lhotse-speech/lhotse, whose recipes write the manifests.
Layout: SOURCE is a manifest of cuts (``MonoCut``, ``MultiCut``) or of recordings, ``.jsonl`` or
    ``.jsonl.gz``, or a folder that holds one of them, named as lhotse names them:
    ``*cuts*.jsonl.gz``, or ``*recordings*.jsonl.gz`` with ``*supervisions*.jsonl.gz``. Recordings
    are single files; relative paths start from the current folder, as in lhotse, or ``--root``.
Papers: Żelasko et al. 2021, Lhotse: a speech data representation library for the modern deep
    learning ecosystem (arXiv:2110.12561).

A cut becomes a clip: its start and duration say which part of the file is decoded. A recording
becomes one clip with all its supervisions; for one clip per supervision, write cuts with
``CutSet.trim_to_supervisions``. Channels are mixed down; a cut of some channels only is an error.
"""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...shards.keys import make_key
from .corpus import Clip, Listing
from .files import printable
from .labels import (
    LabelSeparator,
    LabelsFile,
    read_labels,
    require_known,
    require_separator,
    split_labels,
)
from .manifests import Manifests, find_manifests, read_manifest
from .tables import at_line, require_new

if TYPE_CHECKING:  # it takes seconds to import, and torch with it
    from lhotse import MonoCut, MultiCut, Recording, SupervisionSegment

    DataCut = MonoCut | MultiCut

EXAMPLE = "melstream build lhotse data/manifests/cuts.jsonl.gz --out shards/cuts"

TIME_TOLERANCE_S = 1e-3  # lhotse's own, of supervisions at the ends of a cut
MAX_CLASSES = 10_000  # more are no classes; AudioSet's ontology has 632
OWN_FIELDS = ("text", "speaker", "language", "gender")  # of a supervision; all others are custom
HARMLESS_TRANSFORMS = {"Resample"}  # the build resamples whatever it gets

_PLAIN_FILES = "write plain files and a manifest of them with `CutSet.save_audios`"


_Source = Annotated[
    Path,
    typer.Argument(
        help="Manifest of cuts or recordings, or the folder that holds it.", metavar="SOURCE"
    ),
]
_Recordings = Annotated[
    Path | None, typer.Option(help="Manifest of recordings in SOURCE, a folder.", metavar="FILE")
]
_Supervisions = Annotated[
    Path | None, typer.Option(help="Manifest of the recordings' supervisions.", metavar="FILE")
]
_Root = Annotated[
    Path | None,
    typer.Option(
        help="Where relative paths start. Without it: the current folder, as in lhotse.",
        metavar="FOLDER",
    ),
]
_LabelField = Annotated[
    str,
    typer.Option(
        help="Field of a supervision that holds its label: text, speaker …, or a custom one.",
        metavar="NAME",
    ),
]
_Unlabelled = Annotated[bool, typer.Option("--unlabelled", help="Leave the supervisions aside.")]
_SplitField = Annotated[
    str | None, typer.Option(help="Custom field of a cut that names its split.", metavar="NAME")
]


@dataclass(frozen=True, slots=True)
class _Fields:
    """Where the labels and the split stand; None: nowhere."""

    label: str | None
    separator: str | None
    split: str | None


@dataclass(frozen=True, slots=True)
class _Row:
    """What a cut says; its clip still lacks labels, events and split.

    Args:
        line: of the manifest.
        clip: with its path as the manifest has it.
        labels: of all supervisions.
        events: start and end in the clip, label: of those that do not span it.
        split: the split's name, or nothing.
    """

    line: int
    clip: Clip
    labels: tuple[str, ...]
    events: tuple[tuple[float, float, str], ...]
    split: str


def scan(
    source: _Source,
    *,
    recordings: _Recordings = None,
    supervisions: _Supervisions = None,
    root: _Root = None,
    label_field: _LabelField = "text",
    label_separator: LabelSeparator = None,
    labels: LabelsFile = None,
    unlabelled: _Unlabelled = False,
    split_field: _SplitField = None,
) -> Listing:
    """List the cuts of a manifest, or its recordings.

    A supervision that spans its cut is a label; one that does not is an event as well, with
    its times.

    Args:
        source: a manifest of cuts or recordings, or a folder that holds one.
        recordings, supervisions: manifests, as typed or below ``source``.
        root: the folder that relative paths start from.
        label_field: ``text``, ``speaker``, ``language``, ``gender`` or a custom field, with or
            without ``custom.`` before it.
        label_separator: between the labels of one field.
        labels: text file with one class name per line; another label is an error.
        unlabelled: no clip has a label.
        split_field: a custom field of the cuts.

    Returns:
        listing: one clip per cut; keys are made from the cuts' ids; classes in the order of
        ``labels``, or sorted; splits in the order in which they appear.

    Raises:
        ValueError: no manifest, or a broken line; a cut that is not part of a plain file; an id
            that stands twice; no supervision has the field, or what it holds are no classes;
            no file is there.
    """
    if unlabelled and labels is not None:
        raise ValueError("`--labels` and `--unlabelled` exclude each other; leave one out")
    require_separator(label_separator)
    manifests = find_manifests(source, recordings, supervisions)
    fields = _Fields(None if unlabelled else label_field, label_separator, split_field)
    known = None if labels is None else read_labels(labels)
    rows = []
    for row in _read_rows(manifests, fields):
        if known is not None:
            with at_line(manifests.main, row.line):
                require_known(row.labels, known, str(labels))
        rows.append(row)
    label_names = known or _label_names(rows, fields)
    splits = tuple(dict.fromkeys(row.split for row in rows if row.split))
    root = Path() if root is None else root
    clips = _make_clips(rows, root, label_names, splits)
    if not any(clip.path for clip in clips):
        raise ValueError(
            f"none of the {len(rows)} files of {manifests.main} is there, looked for "
            f"{root / (rows[0].clip.path or '')} and the like; `--root` is where relative paths "
            "start"
        )
    return Listing(root=root, clips=clips, label_names=label_names, splits=splits)


def _read_rows(manifests: Manifests, fields: _Fields) -> Iterator[_Row]:
    """Read the cuts, one by one."""
    lines: dict[str, int] = {}
    fields_seen: set[str] = set()
    n_supervisions = n_labelled = 0
    for line, cut in _read_cuts(manifests):
        with at_line(manifests.main, line):
            require_new(cut.id, line, lines)
            row = _make_row(line, cut, fields)
        n_supervisions += len(cut.supervisions)
        n_labelled += bool(row.labels)
        if fields.label is not None and not n_labelled:
            fields_seen |= {name for one in cut.supervisions for name in _fields_of(one)}
        yield row
    if fields.label is not None and n_supervisions and not n_labelled:
        raise ValueError(
            f"`--label-field` must be a field of the supervisions of {manifests.main}, found "
            f"{fields.label!r} in none of {n_supervisions}; they have "
            f"{', '.join(sorted(fields_seen)) or 'none'}. `--unlabelled` leaves them aside"
        )


def _read_cuts(manifests: Manifests) -> Iterator[tuple[int, "DataCut"]]:
    """Read cuts, or make one of each recording."""
    from lhotse import MonoCut, MultiCut, Recording

    of_recording = _read_supervisions(manifests.supervisions) if manifests.supervisions else {}
    for line, item in read_manifest(manifests.main):
        with at_line(manifests.main, line):
            if isinstance(item, Recording):
                cut = item.to_cut()
                cut.supervisions = of_recording.pop(item.id, [])
            elif not isinstance(item, (MonoCut, MultiCut)):
                raise ValueError(
                    f"a cut of one recording or a recording is required, found a "
                    f"{type(item).__name__}; {_PLAIN_FILES}"
                )
            elif manifests.supervisions is not None:
                raise ValueError(
                    "`--supervisions` goes with recordings, found a cut; cuts hold their own"
                )
            else:
                cut = item
        yield line, cut
    if of_recording:
        raise ValueError(
            f"every supervision must belong to a recording of {manifests.main}; "
            f"{manifests.supervisions} has {len(of_recording)} other recordings, such as "
            f"{next(iter(of_recording))!r}; `lhotse fix` makes the two agree"
        )


def _read_supervisions(path: Path) -> dict[str, list["SupervisionSegment"]]:
    from lhotse import SupervisionSegment

    of_recording: dict[str, list[SupervisionSegment]] = {}
    for line, item in read_manifest(path):
        if not isinstance(item, SupervisionSegment):
            raise ValueError(
                f"{path}, line {line}: a supervision is required, found a {type(item).__name__}"
            )
        of_recording.setdefault(item.recording_id, []).append(item)
    return of_recording


def _make_row(line: int, cut: "DataCut", fields: _Fields) -> _Row:
    if cut.recording is None:
        raise ValueError(f"the cut {cut.id!r} must have a recording, found features alone")
    path = _require_plain_file(cut.recording)
    _require_all_channels(cut, cut.recording)
    is_whole = cut.start <= 0 and cut.duration >= cut.recording.duration - TIME_TOLERANCE_S
    labels: dict[str, None] = {}
    events = []
    for supervision in cut.supervisions if fields.label is not None else []:
        names = _labels_of(supervision, fields)
        labels |= dict.fromkeys(names)
        start_s, end_s = max(supervision.start, 0.0), min(supervision.end, cut.duration)
        spans = start_s <= TIME_TOLERANCE_S and end_s >= cut.duration - TIME_TOLERANCE_S
        if not spans and end_s > start_s:
            events += [(round(start_s, 6), round(end_s, 6), name) for name in names]
    clip = Clip(
        key=make_key(cut.id),
        path=path,
        labels=(),
        source=printable(cut.id),
        start_s=float(cut.start),
        duration_s=float(cut.duration),
        offset_s=None if is_whole else float(cut.start),
    )
    split = (cut.custom or {}).get(fields.split, "") if fields.split is not None else ""
    return _Row(line, clip, tuple(labels), tuple(sorted(events)), str(split or ""))


def _require_plain_file(recording: "Recording") -> str:
    """Give the path of a recording's file."""
    names = [
        one["name"] if isinstance(one, dict) else type(one).__name__
        for one in recording.transforms or []
    ]
    changes = [name for name in names if name not in HARMLESS_TRANSFORMS]
    kinds = [one.type for one in recording.sources]
    if kinds != ["file"]:
        raise ValueError(
            f"the recording {recording.id!r} must be one file, found sources of type "
            f"{', '.join(kinds) or 'none'}; {_PLAIN_FILES}"
        )
    if changes:
        raise ValueError(
            f"the recording {recording.id!r} must be as in its file, found {', '.join(changes)} "
            f"to be applied; {_PLAIN_FILES}"
        )
    return str(recording.sources[0].source)


def _require_all_channels(cut: "DataCut", recording: "Recording") -> None:
    channels = [cut.channel] if isinstance(cut.channel, int) else cut.channel
    if set(channels) != set(recording.channel_ids or channels):
        raise ValueError(
            f"the cut {cut.id!r} must take all channels of its recording, for they are mixed down: "
            f"{recording.channel_ids}; found {channels}; {_PLAIN_FILES}"
        )


def _fields_of(supervision: "SupervisionSegment") -> list[str]:
    """Names of the fields that could be labels."""
    own = [n for n in OWN_FIELDS if getattr(supervision, n)]
    return [*own, *(f"custom.{name}" for name in supervision.custom or {})]


def _labels_of(supervision: "SupervisionSegment", fields: _Fields) -> list[str]:
    assert fields.label is not None
    if fields.label in OWN_FIELDS:
        value = getattr(supervision, fields.label)
    else:
        value = (supervision.custom or {}).get(fields.label.removeprefix("custom."))
    values = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
    return [
        label for one in values for label in split_labels(printable(str(one)), fields.separator)
    ]


def _label_names(rows: Sequence[_Row], fields: _Fields) -> tuple[str, ...]:
    names = sorted({name for row in rows for name in row.labels})
    if len(names) > MAX_CLASSES:
        raise ValueError(
            f"the labels must be classes, found {len(names)} different ones in the field "
            f"{fields.label!r}, such as {names[0]!r}: transcripts, it seems. Choose another with "
            "`--label-field`, or leave them aside with `--unlabelled`"
        )
    return tuple(names)


def _make_clips(
    rows: Sequence[_Row], root: Path, label_names: Sequence[str], splits: Sequence[str]
) -> tuple[Clip, ...]:
    index = {name: number for number, name in enumerate(label_names)}
    split_index = {name: number for number, name in enumerate(splits)} | {"": -1}
    # many cuts, one recording
    is_file = lru_cache(100_000)(lambda path: os.path.isfile(os.path.join(root, path)))
    clips = []
    for row in rows:
        path = row.clip.path if is_file(row.clip.path) else None
        clips.append(
            dataclasses.replace(
                row.clip,
                path=path,
                source=row.clip.source if path is None else printable(path),
                labels=tuple(sorted({index[name] for name in row.labels})),
                events=tuple((start, end, index[name]) for start, end, name in row.events),
                split=split_index[row.split],
            )
        )
    return tuple(sorted(clips, key=lambda clip: clip.key))
