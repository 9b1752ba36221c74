"""Several data sets in one order, each with its share of every batch: a pure function.

    place q of the run  -> row i = q // L of lane l = q mod L, L = gcd(n_streams, batch size)
    (i, l)              -> a data set, and how many of its places lane l has had before: c
    its place there     -> c L + l, in the set's own order, with epochs of its own

How many places of a row belong to each set is such that after every row, hence after every
batch, each set has had its share of all samples to within one. Which lanes they are in is
such that all lanes of a set keep pace, to within a few samples. Since a set's place and the
run's are equal mod L, rank r of w reads its own streams of every set, for every w that divides
L; and since all of this follows a pattern that repeats, it is looked up, not replayed.

Source:
    Baruah, Cohen, Plaxton, Varvel 1996, Proportionate progress, Algorithmica 15: windows
    for each place of a set, the earliest deadline first, keep every share to within one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import xxhash
from numba import njit

from ..shards.dataset import Dataset
from .order import OrderConfig, Rows, TrainingOrder, check_world, differences, require_same

MAX_DENOMINATOR = 10_000  # shares finer than this are rounded to it
PATTERN_PLACES = 2**18  # a pattern whose lanes do not come out even ends here, 2 MB
_GOLDEN = (math.sqrt(5) - 1) / 2
_SHARED = ("seed", "global_batch_size", "n_streams", "tail")


def mix_orders(
    datasets: Sequence[Dataset],
    config: OrderConfig,
    shares: Sequence[float] | None,
    rows: Sequence[Rows | None],
) -> "TrainingOrder | MixtureOrder":
    """Return the order of one data set, or of a mixture of several.

    Args:
        datasets: open data sets.
        config: seed, batch size, streams, class balance.
        shares: of the data sets in every batch; None: by their samples.
        rows: of each data set, those that take part, ascending; None: all.

    Raises:
        ValueError: a data set is too small, or the shares do not fit.
    """
    parts = [
        TrainingOrder(dataset.index, dataset.manifest.fingerprint, config, chosen)
        for dataset, chosen in zip(datasets, rows, strict=True)
    ]
    shares = [part.n_samples for part in parts] if shares is None else shares
    _check_parts(parts, shares)
    return parts[0] if len(parts) == 1 else MixtureOrder(parts, shares)


class MixtureOrder:
    """An endless order over several data sets, each with its share.

    Each set goes through its own order, epoch after epoch, at its own pace. The mixture's
    epoch is a name for as many steps as serve the samples of all sets together once.

    Args:
        parts: the orders of the sets; equal in seed, batch size, ``n_streams`` and ``tail``.
        shares: of each set in every batch, above 0; only their ratios count.

    Raises:
        ValueError: the numbers do not fit, or the parts differ.
    """

    def __init__(self, parts: Sequence[TrainingOrder], shares: Sequence[float]) -> None:
        _check_parts(parts, shares)
        self.parts = tuple(parts)
        self.config = parts[0].config
        self._wanted = [float(share) for share in shares]
        counts, denominator = _whole_shares(self._wanted)
        self.shares = tuple(count / denominator for count in counts)
        n_lanes = math.gcd(self.config.n_streams, self.config.global_batch_size)
        self._table = _Table.build(counts, denominator, n_lanes)

    @property
    def fingerprint(self) -> str:
        """Hash of the parts' fingerprints and shares, 32 hex digits."""
        text = "\n".join(
            f"{part.fingerprint} {share!r}"
            for part, share in zip(self.parts, self._wanted, strict=True)
        )
        return xxhash.xxh3_128(text.encode()).hexdigest()

    @property
    def n_samples(self) -> int:
        """Samples of all sets together."""
        return sum(part.n_samples for part in self.parts)

    @property
    def steps_per_epoch(self) -> int:
        """Steps that serve as many samples as the sets have together, rounded down."""
        return max(1, self.n_samples // self.config.global_batch_size)

    def epoch_of(self, step: int) -> int:
        """Return the epoch of the mixture; ``part_epochs`` gives those of the sets."""
        return step // self.steps_per_epoch

    def part_epochs(self, step: int) -> list[float]:
        """Return how often each set has been gone through before a step."""
        served = self.served(step)
        return [
            n / part.places_per_epoch for n, part in zip(served.tolist(), self.parts, strict=True)
        ]

    def served(self, step: int) -> Rows:
        """Return how many samples of each set the steps before this one take, (n_parts,)."""
        return self._table.served(step * self.config.global_batch_size)

    def positions(self, step: int, *, rank: int = 0, world_size: int = 1) -> Rows:
        """Return the positions, in the mixture's epoch, of this rank's share of a batch.

        Returns:
            int64, shape (global_batch_size / world_size,).

        Raises:
            ValueError: ``world_size`` does not divide ``n_streams`` and the batch size.
        """
        return self._places(step % self.steps_per_epoch, rank, world_size)

    def sources(self, step: int, *, rank: int = 0, world_size: int = 1) -> Rows:
        """Return the number of the data set of each sample of this rank's batch.

        Returns:
            int64, shape (global_batch_size / world_size,).
        """
        return self._table.look_up(self._places(step, rank, world_size))[0]

    def rows(self, step: int, *, rank: int = 0, world_size: int = 1) -> Rows:
        """Return the row of each sample of this rank's batch in its data set's index.

        Returns:
            int64, shape (global_batch_size / world_size,).
        """
        sources, places = self._table.look_up(self._places(step, rank, world_size))
        rows = np.empty(len(places), np.int64)
        for source in np.unique(sources).tolist():
            here = sources == source
            rows[here] = self.parts[source].rows_at(places[here])
        return rows

    def state(self, step: int) -> dict[str, Any]:
        """Describe a place in the order; goes into checkpoints."""
        return {
            "position": step * self.config.global_batch_size,
            "shares": self._wanted,
            "parts": [part.identity() for part in self.parts],
        }

    def resume(self, state: Mapping[str, Any]) -> int:
        """Return the step at which a saved state goes on.

        Raises:
            ValueError: a data set, a share or a setting changed; both values are shown.
        """
        saved = state.get("parts") or []
        changed = differences(state, {"shares": self._wanted})
        if len(saved) != len(self.parts):
            changed.append(f"number of data sets: saved {len(saved)}, now {len(self.parts)}")
        else:
            changed += [
                f"data set {number}: {change}"
                for number, (part, then) in enumerate(zip(self.parts, saved, strict=True))
                for change in differences(then, part.identity())
            ]
        require_same(changed)
        return int(state["position"]) // self.config.global_batch_size

    def _places(self, step: int, rank: int, world_size: int) -> Rows:
        check_world(rank, world_size, self.config)
        first = step * self.config.global_batch_size
        return np.arange(first + rank, first + self.config.global_batch_size, world_size)


@dataclass(frozen=True, slots=True)
class _Table:
    """Who stands where: a pattern of ``n_rows`` rows, repeated with the lanes turned.

    After ``n_lanes`` repeats every lane has stood once in each column of the pattern, so that
    all lanes have had the same. Lane l has the slot s(l), and in repeat j the column
    (s(l) + j) mod ``n_lanes``; slots that follow each other are far apart as lanes.

    - slot: int64 (n_lanes,), of each lane
    - source: int16 (n_lanes, n_rows), the data set at each column and row
    - before: int32 (n_lanes, n_rows), places of that set earlier in the column
    - column_sums: int64 (n_sets, 2 n_lanes + 1), its places in the first columns, twice round
    - row_sums: int64 (n_sets, n_rows + 1), its places in the first rows
    """

    slot: Rows
    source: npt.NDArray[np.int16]
    before: npt.NDArray[np.int32]
    column_sums: Rows
    row_sums: Rows

    @classmethod
    def build(cls, counts: Sequence[int], denominator: int, n_lanes: int) -> Self:
        """Make a pattern of whole rows that gives each set its exact share."""
        n_places = math.lcm(denominator, n_lanes)
        shares = np.array(counts, np.int64) * (n_places // denominator)
        rows = _share_places(shares).reshape(-1, n_lanes)
        wanted = np.stack([(rows == number).sum(axis=1) for number in range(len(counts))], axis=1)
        n_times = max(1, PATTERN_PLACES // n_places)
        by_share = np.argsort(shares, kind="stable")
        lanes = np.arange(n_lanes) * _golden_step(n_lanes) % n_lanes  # of each slot
        source = _share_lanes(wanted, n_lanes, n_times, by_share).T[lanes]
        before = np.zeros(source.shape, np.int32)
        column_sums, row_sums = [], []
        for number in range(len(counts)):
            is_here = source == number
            before[is_here] = (np.cumsum(is_here, axis=1) - 1)[is_here]
            column_sums.append(np.cumsum(np.tile(is_here.sum(axis=1), 2)))
            row_sums.append(np.cumsum(is_here.sum(axis=0)))
        sums = (_from_zero(np.array(each)) for each in (column_sums, row_sums))
        return cls(np.argsort(lanes), source, before, *sums)

    def look_up(self, places: Rows) -> tuple[Rows, Rows]:
        """Return the data set of each place, and the place in that set's own order."""
        n_lanes, n_rows = self.source.shape
        row, lane = np.divmod(places, n_lanes)
        repeat, row = np.divmod(row, n_rows)
        turns, turn = np.divmod(repeat, n_lanes)
        slot = self.slot[lane]
        column = (slot + turn) % n_lanes
        source = self.source[column, row].astype(np.int64)
        earlier = turns * self.column_sums[source, n_lanes]
        earlier += self.column_sums[source, slot + turn] - self.column_sums[source, slot]
        return source, (earlier + self.before[column, row]) * n_lanes + lane

    def served(self, n_places: int) -> Rows:
        """Return how many of the first places, whole rows, belong to each set, (n_sets,)."""
        n_lanes, n_rows = self.source.shape
        repeats, row = divmod(n_places // n_lanes, n_rows)
        return repeats * self.row_sums[:, -1] + self.row_sums[:, row]


def _check_parts(parts: Sequence[TrainingOrder], shares: Sequence[float]) -> None:
    if not parts or len(parts) != len(shares):
        raise ValueError(
            f"a mixture needs one share for each data set, found {len(shares)} shares for "
            f"{len(parts)} data sets"
        )
    wrong = [share for share in shares if not 0 < share < math.inf]
    if wrong:
        raise ValueError(
            f"`shares` must be above 0 and finite, found {wrong[0]}; leave a data set out instead"
        )
    for number, part in enumerate(parts):
        for name in _SHARED:
            first, found = (getattr(p.config, name) for p in (parts[0], part))
            if first != found:
                raise ValueError(
                    f"the data sets of a mixture must have the same `{name}`, found {first!r} "
                    f"for data set 0 and {found!r} for data set {number}"
                )


def _whole_shares(wanted: Sequence[float]) -> tuple[list[int], int]:
    """Return the shares as whole numbers and their sum.

    They are taken as they are written in decimals. Where their common denominator is
    above ``MAX_DENOMINATOR``, shares are rounded to it, each to at least one.

    >>> _whole_shares([0.7, 0.2, 0.1])
    ([7, 2, 1], 10)
    >>> _whole_shares([2, 1])
    ([2, 1], 3)
    """
    exact = [Fraction(repr(share)) for share in wanted]
    shares = [share / sum(exact) for share in exact]
    denominator = math.lcm(*(share.denominator for share in shares))
    if denominator <= MAX_DENOMINATOR:
        return [int(share * denominator) for share in shares], denominator
    counts = [max(1, int(share * MAX_DENOMINATOR)) for share in shares]
    owed = sorted(
        range(len(counts)), key=lambda i: counts[i] - shares[i] * MAX_DENOMINATOR
    )  # the most short-changed first
    for place in range(MAX_DENOMINATOR - sum(counts)):
        counts[owed[place]] += 1
    while sum(counts) > MAX_DENOMINATOR:  # tiny sets were given more than their share
        counts[counts.index(max(counts))] -= 1
    return counts, MAX_DENOMINATOR


def _golden_step(n: int) -> int:
    """Return the number nearest to 0.618 n that has no divisor in common with n."""
    near = sorted(range(1, n + 1), key=lambda step: abs(step - _GOLDEN * n))
    return next(step for step in near if math.gcd(step, n) == 1)


def _from_zero(sums: Rows) -> Rows:
    """Put the empty sum in front of cumulative sums along the last axis."""
    return np.concatenate([np.zeros((len(sums), 1), np.int64), sums], axis=1)


@njit(cache=True, nogil=True)
def _share_places(shares):
    """Give sum(shares) places to sets so that every set is within one of its share throughout.

    Place t may be a set's j-th (from 0) once j / share < t + 1; it must be by
    (j + 1) / share. Of those that may, the one that must first takes it.
    """
    n_places = shares.sum()
    given = np.zeros(shares.size, np.int64)
    out = np.empty(n_places, np.int16)
    for t in range(n_places):
        chosen, earliest = -1, np.int64(0)
        for s in range(shares.size):
            deadline = ((given[s] + 1) * n_places + shares[s] - 1) // shares[s]
            may = given[s] * n_places < (t + 1) * shares[s] and given[s] < shares[s]
            if may and (chosen < 0 or deadline < earliest):
                chosen, earliest = s, deadline
        out[t] = chosen
        given[chosen] += 1
    return out


@njit(cache=True, nogil=True)
def _share_lanes(wanted, n_lanes, n_times, by_share):
    """Give the places of each row to lanes so that all lanes of a set keep pace.

    The rarest set chooses first, the lanes that have had it least, in turn. Ends where all
    lanes have had the same, or after ``wanted`` was gone through ``n_times``.
    """
    n_rows, n_sets = wanted.shape
    out = np.full((n_rows * n_times, n_lanes), -1, np.int16)
    had = np.zeros((n_sets, n_lanes), np.int64)
    next_lane = np.zeros(n_sets, np.int64)
    for row in range(len(out)):
        for s in by_share:
            missing, level = wanted[row % n_rows, s], had[s].min()
            while missing:
                start = next_lane[s]
                for turn in range(n_lanes):
                    lane = (start + turn) % n_lanes
                    if missing and out[row, lane] < 0 and had[s, lane] == level:
                        out[row, lane] = s
                        next_lane[s] = lane + 1
                        missing -= 1
                level += 1
            for lane in range(n_lanes):
                had[s, lane] += out[row, lane] == s
        if (row + 1) % n_rows == 0 and (had == had[:, :1]).all():
            return out[: row + 1]
    return out
