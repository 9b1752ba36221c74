"""The order of one epoch: shards permuted, end to end, cut into streams, shuffled in windows.

An epoch holds where its shards lie and draws a stream when it is first asked for: a rank
pays for its own streams only. With weights, a sample stands as often as its count of this
epoch says. Its copies are spread evenly over a stretch of its shard, longer than a window
where streams are long: a clip that stands sixty times must not fill the batches of an hour.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from numba import njit

from ..shards.index import Index
from .draws import derive_key, draw, permutation
from .weights import count_of, phase_key

Rows = npt.NDArray[np.int64]

_SHARDS, _WHOLE, _WINDOW, _, _SPREAD = range(5)  # purposes of draws; 3 is that of weights
_STRETCHES = 32  # of a stream, so that both its ends together read little that others serve
_SHIFT = np.uint64(32)


@dataclass(frozen=True, slots=True)
class Selection:
    """The samples that take part; a place is a number among them, 0..n_samples-1.

    - index: of the data set
    - rows: int64 (n_samples,), ascending, the row of each place
    - starts: int64 (n_shards + 1,), the first place of each shard, and the end
    - n_bytes: of all samples
    - fixed: uint64 (n_samples,), expected counts in multiples of 2**-32; None = all 1
    """

    index: Index
    rows: Rows
    starts: Rows
    n_bytes: int
    fixed: npt.NDArray[np.uint64] | None = None

    @classmethod
    def of(
        cls, index: Index, rows: Rows | None = None, fixed: npt.NDArray[np.uint64] | None = None
    ) -> Self:
        """Select rows of an index (default: all).

        Raises:
            ValueError: the rows are not ascending.
        """
        if rows is None:
            rows, shard = np.arange(len(index)), index.shard
        else:
            _require_ascending(rows)
            shard = index.shard[rows]
        borders = np.flatnonzero(shard[1:] != shard[:-1]) + 1
        starts = np.concatenate([[0], borders, [len(rows)]] if len(rows) else [[0]])
        n_bytes = sum(int(size[rows].sum()) for size in (index.logmel_size, index.json_size))
        return cls(index, rows, starts.astype(np.int64), n_bytes, fixed)

    def sizes(self, places: Rows) -> Rows:
        """Return the bytes of samples, shape as that of ``places``."""
        rows = self.rows[places]
        return self.index.logmel_size[rows] + self.index.json_size[rows]


class Epoch:
    """Which row stands at which offset of one epoch.

    Args:
        selection: what takes part.
        seed, epoch: of the draws.
        n_streams: ranges read side by side; offset p belongs to stream p mod ``n_streams``.
        shuffle_bytes: bytes the windows of all streams hold together.
    """

    def __init__(
        self, selection: Selection, *, seed: int, epoch: int, n_streams: int, shuffle_bytes: int
    ) -> None:
        self._selection, self._seed, self._epoch = selection, seed, epoch
        self._window_bytes = max(1, shuffle_bytes // n_streams)
        self._is_whole = selection.n_bytes <= shuffle_bytes
        self._n_streams = 1 if self._is_whole else n_streams
        n_samples = len(selection.rows)
        in_window = self._window_bytes * n_samples // max(1, selection.n_bytes)
        self._stretch = max(1, in_window, n_samples // n_streams // _STRETCHES)
        sizes = self._shard_sizes()
        self._shards = permutation(derive_key(seed, epoch, _SHARDS), len(sizes))
        self._ends = np.cumsum(sizes[self._shards])
        self.n_places = int(self._ends[-1])
        longest = -(-self.n_places // self._n_streams)
        dtype = np.uint32 if len(selection.index) < 2**32 else np.int64
        self._served = np.empty((self._n_streams, longest), dtype)
        self._is_drawn = np.zeros(self._n_streams, np.bool_)

    def rows(self, offsets: Rows) -> Rows:
        """Return the row at each offset; past the end it goes on from the start."""
        place, stream = np.divmod(offsets % self.n_places, self._n_streams)
        if not self._is_drawn.all():
            for missing in np.unique(stream[~self._is_drawn[stream]]).tolist():
                self._draw_stream(missing)
        return self._served[stream, place].astype(np.int64)

    def _draw_stream(self, stream: int) -> None:
        """Lay one stream out and shuffle it; the first streams are one longer than the last."""
        length, n_longer = divmod(self.n_places, self._n_streams)
        first = stream * length + min(stream, n_longer)
        laid = self._lay_out(first, first + length + (stream < n_longer))
        if self._is_whole:
            key = derive_key(self._seed, self._epoch, _WHOLE)
            laid = laid[permutation(key, len(laid))]
        else:
            key = derive_key(self._seed, self._epoch, _WINDOW, stream)
            laid = self._shuffle_windows(laid, key)
        self._served[stream, : len(laid)] = self._selection.rows[laid]
        self._is_drawn[stream] = True

    def _shard_sizes(self) -> Rows:
        """Return how many samples each shard gives to this epoch."""
        starts, fixed = self._selection.starts, self._selection.fixed
        if fixed is None:
            return np.diff(starts)
        key = phase_key(self._seed)
        return _count_shards(starts, fixed, self._selection.rows, key, np.uint64(self._epoch))

    def _lay_out(self, first: int, last: int) -> Rows:
        """Return the places first..last-1 of the shards laid end to end."""
        pieces = [np.empty(0, np.int64)]
        begin, end = np.searchsorted(self._ends, [first, last - 1], side="right")
        for at in range(int(begin), int(end) + 1) if last > first else ():
            start = int(self._ends[at - 1]) if at else 0
            low, high = max(first - start, 0), min(last, int(self._ends[at])) - start
            pieces.append(self._shard_places(int(self._shards[at]), low, high))
        return np.concatenate(pieces)

    def _shard_places(self, shard: int, low: int, high: int) -> Rows:
        """Return the places low..high-1 of a shard as it is laid out in this epoch."""
        selection = self._selection
        first, last = int(selection.starts[shard]), int(selection.starts[shard + 1])
        if selection.fixed is None:
            return np.arange(first + low, first + high)
        places, when = _spread_copies(
            selection.fixed[first:last],
            selection.rows[first:last],
            phase_key(self._seed),
            derive_key(self._seed, self._epoch, _SPREAD),
            np.uint64(self._epoch),
            self._stretch,
        )
        return first + places[np.argsort(when, kind="stable")][low:high]

    def _shuffle_windows(self, places: Rows, key: np.uint64) -> Rows:
        """Shuffle one stream inside windows of consecutive samples bounded in bytes."""
        window = np.cumsum(self._selection.sizes(places)) // self._window_bytes
        is_new = np.diff(window, prepend=window[:1]) > 0
        n = len(places)
        return places[np.argsort(np.cumsum(is_new) * n + permutation(key, n))]


def _require_ascending(rows: Rows) -> None:
    wrong = np.flatnonzero(rows[1:] <= rows[:-1])
    if len(wrong):
        at = int(wrong[0])
        raise ValueError(
            f"`rows` must be ascending, found {rows[at + 1]} after {rows[at]}; sort them, each once"
        )


@njit(cache=True, nogil=True)
def _count_shards(starts, fixed, rows, key, epoch):
    out = np.zeros(starts.size - 1, np.int64)
    for shard in range(out.size):
        for i in range(starts[shard], starts[shard + 1]):
            out[shard] += count_of(fixed[i], np.uint64(rows[i]), key, epoch)
    return out


@njit(cache=True, nogil=True)
def _spread_copies(fixed, rows, key, spread_key, epoch, stretch):
    """Return each copy's sample and its place in the shard, in multiples of 2**-32 stretches.

    Copy j of c stands at (j + u) / c of its stretch, u in [0, 1) drawn for the sample.
    """
    counts = np.empty(fixed.size, np.int64)
    for i in range(fixed.size):
        counts[i] = count_of(fixed[i], np.uint64(rows[i]), key, epoch)
    places = np.empty(counts.sum(), np.int64)
    when = np.empty(places.size, np.uint64)
    at = 0
    for i in range(fixed.size):
        begin = np.uint64(i // stretch) << _SHIFT
        shift = draw(spread_key, np.uint64(rows[i])) >> _SHIFT
        for copy in range(counts[i]):
            places[at] = i
            when[at] = begin + ((np.uint64(copy) << _SHIFT) + shift) // np.uint64(counts[i])
            at += 1
    return places, when
