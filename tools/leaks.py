"""Leaks: no clip that a model is trained on may stand in a set that it is evaluated on."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ..shards.dataset import open_dataset
from ..shards.errors import listed
from ..shards.keys import stem_of_window, window_stem


def require_disjoint(
    keys: Iterable[str],
    others: Sequence[str],
    *,
    recording_of: Callable[[str], str] = str,
) -> None:
    """Refuse clips that stand in another data set too.

    Args:
        keys: of the clips to build.
        others: data sets, by folder or URL, or text files with an id at the start of each
            line, such as a list of AudioSet segments.
        recording_of: key -> what must not be shared; by default the key. A corpus that
            cuts several clips from one recording says which it is.

    Raises:
        ValueError: a place holds neither, or shares a clip; with the number and some keys.
        DatasetError: a data set has no valid manifest or index.
    """
    key_by_recording: dict[str, str] = {}
    for key in keys:
        key_by_recording[recording_of(key)] = key
        key_by_recording[recording_of(window_stem(key))] = key
    for place in others:
        shared = key_by_recording.keys() & {recording_of(key) for key in read_ids(place)}
        if shared:
            found = sorted({key_by_recording[recording] for recording in shared})
            named = listed(found)
            raise ValueError(
                f"no clip may be from a recording that {place} holds too, found {len(found):,}: "
                f"{named}; take them out of one of the two, or drop `--disjoint-from {place}` if "
                "they are never trained and evaluated on together"
            )


def read_ids(place: str) -> list[str]:
    """Read the keys of a data set's clips, or the ids in a text file.

    Args:
        place: folder or URL of a data set; or a text file, CSV or TSV, whose first field is the
            id. Lines that start with ``# `` are comments.

    Raises:
        ValueError: there is nothing at ``place``, or no id in the file.
        DatasetError: a data set has no valid manifest or index.
    """
    path = Path(place)
    if path.is_file():
        return _read_text(path)
    if "://" not in place and not path.exists():
        raise ValueError(
            f"`--disjoint-from` must be a data set or a text file with an id a line, found "
            f"nothing at {place}"
        )
    dataset = open_dataset(place)
    keys = [key.decode("ascii") for key in dataset.index.sample_keys().tolist()]
    if dataset.manifest.build.window_s is None:
        return keys
    return [stem_of_window(key) for key in keys]  # several of them are of one clip


def _read_text(path: Path) -> list[str]:
    with path.open(encoding="utf-8-sig", errors="backslashreplace") as file:
        fields = [
            line.replace("\t", ",").partition(",")[0].strip(' "\r\n')
            for line in file
            if not line.startswith("# ")
        ]
    ids = [field for field in fields if field]
    if not ids:
        raise ValueError(f"{path} must hold an id a line, found none")
    return ids
