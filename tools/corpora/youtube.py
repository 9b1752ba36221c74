"""How downloaders name a clip of a YouTube video: its id and, often, its times.

Ids have 11 characters, start with ``-``, hold ``_`` and differ by case only, so a name is
read by position: the id is its first 11 characters, or the 11 after a ``Y``, or those in the
last brackets.
"""

import re
from dataclasses import dataclass

YTID_LENGTH = 11

TIME_TOLERANCE_S = 1.0  # downloaders round and cut the times in a name to whole seconds

# The length of what follows the id decides whether a leading `Y` belongs to it: no name can be
# read both ways.
_TIMES = r"(?:[_-](?P<start>\d+(?:\.\d+)?)(?:[_-](?P<end>\d+(?:\.\d+)?))?)?"
_NAME = re.compile(rf"Y?(?P<ytid>[A-Za-z0-9_-]{{11}}){_TIMES}")
_TITLED = re.compile(rf".*\[(?P<ytid>[A-Za-z0-9_-]{{11}})\]{_TIMES}", re.DOTALL)
_YTID = re.compile(r"[A-Za-z0-9_-]{11}")


@dataclass(frozen=True, slots=True)
class VideoName:
    """What the name of a file says.

    Args:
        ytid: the video.
        start: where the clip starts, in seconds or in whole milliseconds, as it is written.
        end: where it ends.
    """

    ytid: str
    start: str | None
    end: str | None

    def agrees(self, start_s: float, end_s: float) -> bool:
        """Tell whether the times, where the name has any, are those of a clip."""
        return _is_time(self.start, start_s) and _is_time(self.end, end_s)


def parse_name(stem: str) -> VideoName | None:
    """Read the name of a file, without its suffix.

    >>> parse_name("Y--PJHxphWEs_30.000_40.000")
    VideoName(ytid='--PJHxphWEs', start='30.000', end='40.000')
    >>> parse_name("FwVYUHKoLtQ_000034").agrees(34, 44)
    True
    """
    match = _NAME.fullmatch(stem) or ("]" in stem and _TITLED.fullmatch(stem))
    return VideoName(match["ytid"], match["start"], match["end"]) if match else None


def require_ytid(text: str) -> str:
    """Insist that a text is a YouTube id.

    Raises:
        ValueError: it is none.
    """
    if not _YTID.fullmatch(text):
        raise ValueError(f"a YouTube id has 11 characters of [A-Za-z0-9_-], found {text!r}")
    return text


def _is_time(text: str | None, expected_s: float) -> bool:
    if text is None:
        return True
    time = float(text)
    return abs(time - expected_s) < TIME_TOLERANCE_S or time == round(1000 * expected_s)
