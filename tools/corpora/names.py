"""What the clips of a folder are called where nothing but their paths tells."""

from collections import Counter
from collections.abc import Collection


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
