"""Keys: what a sample is called inside a data set.

WebDataset cuts a member name at its first dot, so a key has none: it is made of
``[A-Za-z0-9_-]`` only. Keys that differ only by case are distinct, and a key may
start with ``-``: YouTube ids do both. A key is short enough that the longest
member name, ``<key>.logmel.npy``, fits the 100 bytes of a plain tar header.
"""

import hashlib
import re

TAR_NAME_BYTES = 100  # POSIX.1-1988 ustar header, field `name`
MAX_KEY_BYTES = TAR_NAME_BYTES - len(".logmel.npy")  # 89
KEY_PATTERN = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_KEY_BYTES}}}")
WINDOW_SUFFIX_BYTES = 11  # `-` and up to ten digits: a hundred days in milliseconds

_HASH_BYTES = 8  # two million names that need a hash: a collision in 1 of 10 million data sets


def make_key(name: str) -> str:
    """Turn any name into a key, the same one each time.

    A name that is a key already stays as it is. In any other, each run of other
    characters becomes one ``_``, the middle of a long name is left out, and a
    hash of the whole name follows, so that two names do not share a key.

    Args:
        name: a file name, a relative path or an id; bytes that are not UTF-8 may
            stand in it as Python's file functions give them (surrogates).

    Returns:
        key: 1 to 89 characters of ``[A-Za-z0-9_-]``.

    >>> make_key("-0RWZT-miFs")
    '-0RWZT-miFs'
    >>> make_key("bass drum/Kick #3")
    'bass_drum_Kick_3-987a2ba5e9a9b3fc'
    """
    if KEY_PATTERN.fullmatch(name):
        return name
    readable = re.sub(r"[^A-Za-z0-9_-]+", "_", name)
    digest = hashlib.blake2b(
        name.encode("utf-8", "surrogatepass"), digest_size=_HASH_BYTES
    ).hexdigest()
    room = MAX_KEY_BYTES - len(digest) - 1
    if len(readable) > room:  # the end of a path tells more than its middle
        readable = readable[: room // 2] + readable[-(room - room // 2) :]
    return f"{readable}-{digest}"


def window_stem(clip_key: str) -> str:
    """Return what the keys of a clip's windows start with: its key, shortened where it is long.

    >>> window_stem("rain"), len(window_stem("r" * 89))
    ('rain', 78)
    """
    room = MAX_KEY_BYTES - WINDOW_SUFFIX_BYTES
    if len(clip_key) <= room:
        return clip_key
    digest = hashlib.blake2b(clip_key.encode(), digest_size=_HASH_BYTES).hexdigest()
    return f"{clip_key[: room - len(digest) - 1]}-{digest}"


def window_key(clip_key: str, start_ms: int) -> str:
    """Return the key of a window that starts so many milliseconds into its clip.

    >>> window_key("rain", 10_000)
    'rain-00010000'
    """
    return f"{window_stem(clip_key)}-{start_ms:08d}"


def stem_of_window(key: str) -> str:
    """Return the stem of a window's key.

    >>> stem_of_window("rain-00010000")
    'rain'
    """
    return key.rpartition("-")[0]


def check_key(key: str) -> None:
    """Refuse what cannot be a key.

    Raises:
        ValueError: ``key`` is empty, too long, or holds another character.

    >>> check_key("Y--aE2O5G5WE_0.000")
    Traceback (most recent call last):
        ...
    ValueError: a key must be 1 to 89 characters of [A-Za-z0-9_-], found \
'Y--aE2O5G5WE_0.000'; `melstream.shards.keys.make_key` makes one from any name
    """
    if not KEY_PATTERN.fullmatch(key):
        raise ValueError(
            f"a key must be 1 to {MAX_KEY_BYTES} characters of [A-Za-z0-9_-], found {key!r}; "
            "`melstream.shards.keys.make_key` makes one from any name"
        )
