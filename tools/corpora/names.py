"""What the clips of a folder are called where nothing but their paths tells."""

from collections import Counter
from collections.abc import Collection

from ...shards.keys import make_key
from .corpus import Clip


def stem_of(name: str) -> str:
    """Cut the suffix of a path.

    >>> stem_of("audio/1-100032-A-0.wav")
    'audio/1-100032-A-0'
    """
    folder, slash, file = name.rpartition("/")
    stem, dot, _ = file.rpartition(".")
    return f"{folder}{slash}{stem if dot else file}"


def short_names(names: Collection[str]) -> dict[str, str]:
    """Cut the suffixes of paths, but of those that differ by their suffix only.

    >>> short_names(["dog/1.wav", "dog/2.wav", "dog/2.flac"])
    {'dog/1.wav': 'dog/1', 'dog/2.wav': 'dog/2.wav', 'dog/2.flac': 'dog/2.flac'}
    """
    n_same = Counter(map(stem_of, names))
    return {name: stem_of(name) if n_same[stem_of(name)] == 1 else name for name in names}


def times_text(offset_s: float | None, duration_s: float | None) -> str:
    """Write a clip's times in its file as part of a name; nothing where the file is the clip.

    >>> times_text(0.5, 10.0), times_text(0.5, None), times_text(None, 10.0)
    ('_0.5_10.5', '_0.5', '')
    """
    if offset_s is None:
        return ""
    end = "" if duration_s is None else f"_{_text(offset_s + duration_s)}"
    return f"_{_text(offset_s)}{end}"


def possible_keys(clip: Clip) -> tuple[str, str]:
    """Return the keys a clip can have by its path: alone, and beside files of the same stem.

    >>> possible_keys(Clip("2", "2.wav", (), "2.wav"))
    ('2', '2_wav-e02b040c5f15cce5')
    """
    times = times_text(clip.offset_s, clip.duration_s)
    return make_key(stem_of(clip.source) + times), make_key(clip.source + times)


def _text(seconds: float) -> str:
    """Write a time, the same where it is the same to the microsecond."""
    return f"{seconds:.6f}".rstrip("0").rstrip(".")
