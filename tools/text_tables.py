"""Tables, bars and lines of blocks for pages in a terminal."""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from rich.console import Group
from rich.table import Table
from rich.text import Text

BLOCKS = " ▁▂▃▄▅▆▇█"
MAX_MARKS = 32  # of a line of blocks, so that it fits a narrow terminal


def section(title: str, table: Table, style: str = "bold") -> Group:
    """Put a title above a table, as wide as the page and not as the table."""
    return Group(safe(title, style), table)


def safe(text: str, style: str = "") -> Text:
    """Keep rich from reading markup, and terminals from obeying codes, in names from the data.

    >>> safe("[red]a\\x1b[2J").plain
    '[red]a\\\\x1b[2J'
    """
    escaped = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return Text("".join(escaped), style)


def table(*headers: str, right: Iterable[int] = (), blocks: int | None = None) -> Table:
    """Make a table without lines.

    Args:
        headers: of the columns; no header line where all are empty.
        right: columns of numbers.
        blocks: the column of bars, which does not wrap.
    """
    made = Table(*headers, box=None, pad_edge=False, show_header=any(headers), header_style="dim")
    for column in right:
        made.columns[column].justify = "right"
        made.columns[column].no_wrap = True
    if blocks is not None:
        made.columns[blocks].no_wrap = True
    return made


def bar(value: int, largest: int) -> str:
    """Draw one number as a bar; what is above 0 is seen.

    >>> bar(1, 1_000), bar(0, 1_000), len(bar(1_000, 1_000))
    ('▏', '', 32)
    """
    if not value:
        return ""
    return "█" * round(MAX_MARKS * value / max(1, largest)) or "▏"


def marks(values: Sequence[float] | npt.NDArray[np.number], n_marks: int = MAX_MARKS) -> str:
    """Draw values of 0 and more as a line of blocks; what is above 0 is seen.

    >>> marks([0, 1, 50, 100])
    ' ▁▄█'
    """
    parts = np.array_split(np.asarray(values, float), min(len(values), n_marks))
    means = [float(part.mean()) for part in parts]
    largest = max(means) or 1.0
    levels = [max(int(8 * mean / largest), int(mean > 0)) for mean in means]
    return "".join(BLOCKS[level] for level in levels)


def trend(values: Sequence[float] | npt.NDArray[np.number], n_marks: int = MAX_MARKS) -> str:
    """Draw values of any sign, from the least to the largest, as a line of blocks.

    >>> trend([-3, -2, -1])
    '▁▄█'
    """
    levels = np.asarray(values, float)
    low, high = levels.min(), levels.max()
    return marks(levels - low + 0.1 * ((high - low) or 1), n_marks)


def number(value: float) -> str:
    """Write a number with the digits that matter.

    >>> number(0), number(0.1234), number(12.345), number(8_000.0), number(1e-5)
    ('0', '0.123', '12.3', '8,000', '<0.001')
    """
    size = abs(value)
    if size < 0.001:
        return "<0.001" if size else "0"
    if size >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.3g}"


def many(n: int, word: str) -> str:
    """Write a number and what is counted.

    >>> many(1, "sample"), many(2_000, "sample")
    ('1 sample', '2,000 samples')
    """
    return f"{n:,} {word}{'' if n == 1 else 's'}"
