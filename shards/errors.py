"""The errors of a data set, and what each carries.

    MelstreamError
    ├── DatasetError      a data set as a whole: manifest, index, or their place
    │   └── StorageError  its place cannot be reached, or refuses          (storage.py)
    ├── ShardError        one shard: short, altered, missing   (.shard, .key)
    ├── SampleError       one input that cannot be a sample    (.reason, .key)
    └── DeadRunError      a training run that learns nothing           (tools/health.py)

Models and checkpoints have ``melstream.model.CheckpointError``, an ``OSError``.
A wrong call is a ``ValueError`` or ``TypeError``, raised before any work starts;
bad data is one of these. ``SampleError.reason`` is one word, the one under which
``rejects.jsonl`` and the manifest count it.
"""

from collections.abc import Sequence
from typing import Any

REASONS = {
    "missing": "the clip is listed, but no file was found, or a link that leads nowhere",
    "empty": "the file holds no audio at all",
    "undecodable": "neither soundfile nor PyAV could decode it",
    "truncated": "the decoder gave fewer samples than the file declares",
    "not_finite": "the waveform holds NaN or infinity",
    "silent": "every sample of the waveform is zero",
    "too_short": "shorter than the shortest clip allowed",
    "tail": "what is left of a recording after its last window: under a tenth of one",
    "past_end": "the segment starts at or past the end of the recording",
    "too_long": "a whole recording of more than an hour: cut it into windows",
    "mis_sized": "more than twice as long as the metadata says: not the clip it names",
    "crashed": "the decoder crashed on this file, or came to no end: its process died",
    "failed": "an error nobody foresaw; the message has it, please report it",
}
"""Why an input did not become a sample, and what each word means."""


class MelstreamError(Exception):
    """Any error about data that melstream raises on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by attributes: the constructors below take keywords, worker processes raise."""
        return _rebuild, (type(self), self.args, self.__dict__)


class DatasetError(MelstreamError):
    """The data set as a whole cannot be used; the message names place and remedy."""


class ShardError(MelstreamError):
    """A shard is not what the index says it is.

    Args:
        message: what was required, what was found, and the remedy.
        shard: name of the shard, such as ``train-000003.tar``.
        key: key of the sample that was being read, where one was.
    """

    def __init__(self, message: str, *, shard: str, key: str | None = None) -> None:
        super().__init__(message)
        self.shard = shard
        self.key = key


class SampleError(MelstreamError):
    """An input that did not become a sample.

    Args:
        message: what was required and what was found.
        reason: one word for the count, one of ``REASONS``.
        key: key of the sample, where it is known.
    """

    def __init__(self, message: str, *, reason: str, key: str | None = None) -> None:
        if reason not in REASONS:
            raise ValueError(f"`reason` must be one of {', '.join(REASONS)}, found {reason!r}")
        super().__init__(message)
        self.reason = reason
        self.key = key


def listed(names: Sequence[str], most: int = 5) -> str:
    """Write the first of some names, and how many more there are; for messages.

    >>> listed(["a", "b"]), listed(["a", "b", "c", "d"], 2)
    ('a, b', 'a, b and 2 more')
    """
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest:,} more" if rest > 0 else "")


def _rebuild(
    kind: type[MelstreamError], args: tuple[Any, ...], attributes: dict[str, Any]
) -> MelstreamError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(attributes)
    return error
