"""Finding lhotse's manifests and reading them line by line, errors with line numbers."""

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ...shards.errors import listed
from .tables import at_line

SUFFIXES = (".jsonl", ".jsonl.gz")


@dataclass(frozen=True, slots=True)
class Manifests:
    """What there is to read.

    Args:
        main: cuts or recordings.
        supervisions: those of the recordings, where they stand apart.
    """

    main: Path
    supervisions: Path | None = None


def find_manifests(
    source: Path, recordings: Path | None = None, supervisions: Path | None = None
) -> Manifests:
    """Find the manifests that a user means.

    Args:
        source: a manifest of cuts or recordings, or a folder that holds manifests.
        recordings: a manifest of recordings, as typed or below ``source``.
        supervisions: one of supervisions, likewise.

    Raises:
        ValueError: there is none, or several and nothing says which; both ``recordings`` and a
            manifest as ``source``; another format.
    """
    if source.is_file():
        if recordings is not None:
            raise ValueError(
                f"`--recordings` goes with a folder as the source, found the file {source}; "
                "leave one out"
            )
        folder, main = source.parent, source
    elif source.is_dir():
        folder = source
        main = _named(folder, recordings, "--recordings") if recordings else _only_main(folder)
    else:
        raise ValueError(
            f"the source must be a lhotse manifest or a folder that holds one, found nothing at "
            f"{source}"
        )
    if supervisions is not None:
        found: Path | None = _named(folder, supervisions, "--supervisions")
    elif source.is_dir() and recordings is None and "recordings" in main.name:
        found = _only(folder, "supervisions", "--supervisions")
    else:
        found = None
    return Manifests(_require_format(main), found and _require_format(found))


def _named(folder: Path, name: Path, option: str) -> Path:
    for path in (name, folder / name):
        if path.is_file():
            return path
    raise ValueError(f"`{option}` must be a lhotse manifest, found no {name}, nor one in {folder}")


def _only_main(folder: Path) -> Path:
    main = _only(folder, "cuts", "SOURCE") or _only(folder, "recordings", "--recordings")
    if main is None:
        names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        raise ValueError(
            f"the source must hold a lhotse manifest, *cuts*{' or *cuts*'.join(SUFFIXES)} or the "
            f"like for recordings; found in {folder}: {listed(names) or 'nothing'}"
        )
    return main


def _only(folder: Path, word: str, option: str) -> Path | None:
    found = sorted(
        path for path in folder.iterdir() if word in path.name and path.name.endswith(SUFFIXES)
    )
    if len(found) > 1:
        raise ValueError(
            f"{folder} holds {len(found)} manifests of {word}: "
            f"{listed([path.name for path in found])}; name one ({option})"
        )
    return found[0] if found else None


def _require_format(path: Path) -> Path:
    if not path.name.endswith(SUFFIXES):
        raise ValueError(
            f"a manifest must be {' or '.join(SUFFIXES)}, found {path}; "
            f"`lhotse copy {path.name} {path.name.partition('.')[0]}.jsonl.gz` makes one"
        )
    return path


def read_manifest(path: Path) -> Iterator[tuple[int, Any]]:
    """Read the items of a manifest one by one.

    Args:
        path: ``.jsonl`` or ``.jsonl.gz``.

    Yields:
        line: from 1.
        item: a lhotse cut, recording or supervision.

    Raises:
        ValueError: a line is not JSON or no such item, the file is cut short, or has no item.
    """
    from lhotse.serialization import deserialize_item

    is_empty = True
    for line, text in _read_lines(path):
        with at_line(path, line):
            try:
                item = deserialize_item(json.loads(text))
            except (KeyError, TypeError, AttributeError, AssertionError, ValueError) as error:
                raise ValueError(
                    f"not an item of a lhotse manifest ({type(error).__name__}: {error})"
                ) from None
        is_empty = False
        yield line, item
    if is_empty:
        raise ValueError(f"{path} must hold a lhotse manifest, found no line in it")


def _read_lines(path: Path) -> Iterator[tuple[int, str]]:
    line = 0
    try:
        with _open(path) as file:
            for line, text in enumerate(file, start=1):
                if text.strip():
                    yield line, text
    except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is damaged after line {line} ({error}); copy or write it again"
        ) from None


def _open(path: Path) -> IO[str]:
    if path.name.endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")
