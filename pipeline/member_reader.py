"""Whole samples of a data set as bytes, checked, in any order, from disk or object storage.

Local shards are mapped. Of an object store, rows that follow each other in a shard are read
with one request, and a few requests are in flight at a time: in stored order that is as fast
as the line, in random order a request a sample. What is read is not kept: a training run
over log-mels alone reads faster through ``shard_source``, which has a cache.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ..shards.dataset import Dataset
from ..shards.errors import ShardError
from ..shards.rows import MEMBERS
from ..shards.storage import Payload
from ..shards.verify import members as members_of
from .parallel_map import parallel_map

MAX_RUN_BYTES = 8 * 2**20  # of one request
N_PARALLEL = 16  # requests in flight

Payloads = dict[str, bytes]


@dataclass(slots=True)
class _Run:
    """Rows of one shard that are read at once.

    - shard: row of the manifest's shard table
    - start, end: in bytes from the start of the shard
    - spans: row, and the start and size of each of its members
    """

    shard: int
    start: int
    end: int
    spans: list[tuple[int, dict[str, tuple[int, int]]]]


def read_samples(
    dataset: Dataset,
    rows: Iterable[int],
    *,
    members: Sequence[str] = MEMBERS,
    check: bool = True,
) -> Iterator[tuple[int, Payloads]]:
    """Read the members of some samples.

    Memory: at most ``N_PARALLEL`` runs of ``MAX_RUN_BYTES``, of an object store; none but the
    sample in hand, of a local folder.

    Args:
        dataset: the open data set.
        rows: of its index, in any order; each time a row stands here, it is read.
        members: which of ``logmel``, ``json`` and ``flac``; what a sample lacks is left out.
        check: compare each payload with its hash. Sizes are always compared.

    Yields:
        row, and the bytes of each member by its name in the index, in the order of ``rows``.

    Raises:
        ShardError: a shard is missing, short or altered; names shard and key.
        StorageError: the object store cannot be reached within its time limit, or refuses.
    """
    if dataset.storage.folder is not None:
        return _read_mapped(dataset, rows, members, check)
    return _read_remote(dataset, rows, members, check)


def _read_mapped(
    dataset: Dataset, rows: Iterable[int], members: Sequence[str], check: bool
) -> Iterator[tuple[int, Payloads]]:
    for row in rows:
        try:
            names = [name for name in members_of(dataset, row) if name in members]
            payloads = {name: dataset.read_member(row, name, check=check) for name in names}
        except ShardError as error:
            raise _with_key(error, dataset.key(row)) from None
        yield row, payloads


def _read_remote(
    dataset: Dataset, rows: Iterable[int], members: Sequence[str], check: bool
) -> Iterator[tuple[int, Payloads]]:
    check_size = lru_cache(None)(dataset.check_size)  # once a shard

    def read(run: _Run) -> list[tuple[int, Payloads]]:
        try:
            check_size(run.shard)
            name = dataset.manifest.shards[run.shard].name
            data = dataset.storage.read_range(name, run.start, run.end - run.start)
        except ShardError as error:
            raise _with_key(error, dataset.key(run.spans[0][0])) from None
        return [(row, _cut(dataset, row, run, spans, data, check)) for row, spans in run.spans]

    runs = _runs(dataset, rows, members)
    for samples in parallel_map(read, runs, n_threads=N_PARALLEL, n_ahead=N_PARALLEL):
        yield from samples


def _cut(
    dataset: Dataset,
    row: int,
    run: _Run,
    spans: dict[str, tuple[int, int]],
    data: Payload,
    check: bool,
) -> Payloads:
    payloads = {}
    for name, (offset, size) in spans.items():
        payloads[name] = bytes(data[offset - run.start : offset - run.start + size])
        if check:
            dataset.check_payload(row, name, payloads[name])
    return payloads


def _runs(dataset: Dataset, rows: Iterable[int], members: Sequence[str]) -> Iterator[_Run]:
    """Put rows that follow each other in a shard together, up to ``MAX_RUN_BYTES``."""
    run: _Run | None = None
    for row in rows:
        names = [name for name in members_of(dataset, row) if name in members]
        spans = {name: dataset.member_span(row, name) for name in names}
        shard = int(dataset.index.shard[row])
        start = min((offset for offset, _ in spans.values()), default=0)
        end = max((offset + size for offset, size in spans.values()), default=0)
        _require_within(dataset, row, shard, start, end)
        if run is not None and _follows(run, row, shard, start, end):
            run.end = end
            run.spans.append((row, spans))
            continue
        if run is not None:
            yield run
        run = _Run(shard, start, end, [(row, spans)])
    if run is not None:
        yield run


def _follows(run: _Run, row: int, shard: int, start: int, end: int) -> bool:
    return (
        shard == run.shard
        and row == run.spans[-1][0] + 1
        and start >= run.end
        and end - run.start <= MAX_RUN_BYTES
    )


def _require_within(dataset: Dataset, row: int, shard: int, start: int, end: int) -> None:
    entry = dataset.manifest.shards[shard]
    if not 0 <= start <= end <= entry.size_bytes:
        raise ShardError(
            f"the index places {dataset.key(row)} at bytes {start}..{end} of {entry.name}, which "
            f"has {entry.size_bytes}; build the data set again",
            shard=entry.name,
            key=dataset.key(row),
        )


def _with_key(error: ShardError, key: str) -> ShardError:
    if error.key is None:
        error.key = key
        error.add_note(f"shard {error.shard}, key {key}")
    return error
