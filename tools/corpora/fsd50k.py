"""FSD50K: Freesound clips of any sound event, labelled by hand with 200 classes.

Content: clips of 0.3 to 30 s, 44.1 kHz, mono; one or more of 200 classes of the AudioSet
    ontology each, the ancestors of a class included.
Size: 51,197 clips, 108.3 hours: development 40,966 (train 36,796, val 4,170), evaluation
    10,231.
Licence: CC-BY-4.0 as a whole; each clip has its own, of CC0, CC-BY, CC-BY-NC and CC Sampling+.
Origin: https://zenodo.org/records/4060432
Layout: ``SOURCE/FSD50K.ground_truth/dev.csv`` (fname, labels, mids, split), ``eval.csv``
    (fname, labels, mids) and ``vocabulary.csv`` (index, label, mid; no header),
    ``SOURCE/FSD50K.dev_audio/<fname>.wav``, ``SOURCE/FSD50K.eval_audio/<fname>.wav``.
Papers: Fonseca et al. 2022, FSD50K: an Open Dataset of Human-Labeled Sound Events (IEEE/ACM
    TASLP 30, arXiv:2010.00475).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from ...shards.keys import make_key
from .corpus import Clip, Listing
from .labels import require_known
from .published import list_published, require_file
from .tables import at_line, read_rows, read_table, require_new

EXAMPLE = "melstream build fsd50k FSD50K --out shards/fsd50k"

TRUTH = "FSD50K.ground_truth"
SPLITS = ("train", "val", "eval")


def scan(
    source: Annotated[
        Path, typer.Argument(help="Folder that holds FSD50K.ground_truth/.", metavar="SOURCE")
    ],
) -> Listing:
    """List the clips of FSD50K, development and evaluation.

    Args:
        source: the folder that holds ``FSD50K.ground_truth``, ``FSD50K.dev_audio`` and
            ``FSD50K.eval_audio``; without one of the latter its clips are missing.

    Returns:
        listing: one clip per row of ``dev.csv`` and ``eval.csv``; classes in the order of
        ``vocabulary.csv``, ``label_ids`` are their mids; splits train, val, eval.

    Raises:
        ValueError: the metadata is not there or broken, or none of its files is there.
    """
    vocabulary, dev, evaluation = (
        require_file(source, f"{TRUTH}/{name}.csv") for name in ("vocabulary", "dev", "eval")
    )
    mids = _read_vocabulary(vocabulary)
    index = {name: number for number, name in enumerate(mids)}

    def parse_labels(text: str) -> tuple[int, ...]:
        names = text.split(",")
        require_known(names, index, str(vocabulary))
        return tuple(sorted({index[name] for name in names}))

    clips = _read_clips(dev, "FSD50K.dev_audio", parse_labels, split=None)
    clips |= _read_clips(evaluation, "FSD50K.eval_audio", parse_labels, split="eval")
    return list_published(
        source, clips, label_names=tuple(mids), label_ids=tuple(mids.values()), splits=SPLITS
    )


def _read_vocabulary(path: Path) -> dict[str, str]:
    """Read class name -> mid, in the order of the indices."""
    mids: dict[str, str] = {}
    for line, row in read_rows(path):
        is_right = len(row) == 3 and row[0] == str(len(mids)) and row[1] not in mids
        if not is_right:
            raise ValueError(
                f"{path}, line {line}: expected index {len(mids)}, a name not seen before and a "
                f"mid; found {','.join(row)!r}"
            )
        mids[row[1]] = row[2]
    if not mids:
        raise ValueError(f"{path} must list the classes, found none")
    return mids


def _read_clips(
    path: Path, folder: str, parse_labels: Callable[[str], tuple[int, ...]], *, split: str | None
) -> dict[str, Clip]:
    """Read the clips by file; with ``split=None`` the table names the split of each."""
    columns = ["fname", "labels", "mids"] if split else ["fname", "labels", "mids", "split"]
    clips: dict[str, Clip] = {}
    lines: dict[str, int] = {}
    for line, row in read_table(path, columns):
        with at_line(path, line):
            require_new(row["fname"], line, lines)
            labels = parse_labels(row["labels"])
            name = split or row["split"]
            if name not in SPLITS:
                raise ValueError(f"`split` must be train or val, found {name!r}")
        key = make_key(row["fname"])
        clips[f"{folder}/{row['fname']}.wav"] = Clip(
            key=key, path=None, labels=labels, source=key, split=SPLITS.index(name)
        )
    return clips
