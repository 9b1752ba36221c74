"""The samples of a data set for pipelines of webdataset's own stages.

    import webdataset as wds
    from melstream.pipeline.webdataset_stages import shard_samples

    samples = wds.FluidWrapper(shard_samples("s3://bucket/train"))
    batches = samples.decode().map(my_augmentation).to_tuple("logmel.npy", "json").batched(64)
    loader = wds.WebLoader(batches, batch_size=None, num_workers=2)

webdataset's own reader takes a tar that is cut or damaged for a shorter one, and splits whole
shards over ranks and workers. This source of samples reads through the index: a shard that is
not the one that was built is an error, and ranks and workers share the samples evenly.

Tars of audio made elsewhere, without an index, become log-mels in the same way:

    clips = wds.DataPipeline(tar_clips("s3://bucket/others"), AudioLogMels(PRESETS["kaldi128"]))

For training on log-mels alone, ``loader`` is many times faster and draws crops and masks.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from webdataset.utils import pytorch_worker_info

from ..shards.dataset import Dataset, open_dataset
from ..shards.rows import MEMBERS
from ..shards.writer import FIELDS
from .length_order import LengthConfig, LengthOrder
from .member_reader import read_samples
from .order import OrderConfig, TrainingOrder
from .raw_audio import RawAudio, tar_audio


def shard_samples(
    place: str | Path | Dataset,
    order: OrderConfig | LengthConfig | None = None,
    *,
    epoch: int = 0,
    first_step: int = 0,
    members: Sequence[str] = MEMBERS,
    check: bool = True,
) -> Callable[[], Iterator[dict[str, Any]]]:
    """Make the first stage of a ``webdataset.DataPipeline``: a source of raw samples.

    Rank and worker are found as webdataset finds them: in torch's worker info and process
    group, or in ``RANK`` and ``WORLD_SIZE``. Each sample goes to one of them. In stored order,
    each has a range of samples, equal to within one. By an order, a rank has its share of every
    step, and its workers take whole steps in turn: ``batched`` with a rank's share gives the
    batches of the order, and a ``DataLoader`` gives them in the order's sequence.

    Args:
        place: where the data set lies, or one that is open; workers that are spawned open
            their own, from a path or URL.
        order: which samples, and in which sequence; by default, all in stored order.
        epoch: of the order; every iteration serves that one.
        first_step: of the epoch, where an interrupted one goes on.
        members: which of ``logmel``, ``json`` and ``flac``; what a sample lacks is left out.
        check: compare each payload with its hash.

    Returns:
        a function without arguments, which returns an iterator over samples: ``__key__``,
        ``__url__``, and bytes under ``logmel.npy``, ``json`` and, where it is kept, ``flac``.
        Its iterator raises ``ShardError``, which names shard and key, where a shard is missing,
        short or altered.
    """
    return partial(_iterate, place, order, epoch, first_step, tuple(members), check)


def tar_clips(
    place: str | Path, names: Sequence[str] | None = None, *, audio_field: str | None = None
) -> Callable[[], Iterator[RawAudio]]:
    """Make a first stage of the clips of tars without an index, for ``AudioLogMels``.

    Ranks and workers, found as for ``shard_samples``, take whole tars in turn: each clip goes
    to one of them, and where tars are few, some have none.

    Args:
        place, names, audio_field: see ``tar_audio``.

    Returns:
        a function without arguments, which returns an iterator over clips.
    """
    return partial(_iterate_tars, place, names, audio_field)


def _iterate_tars(
    place: str | Path, names: Sequence[str] | None, audio_field: str | None
) -> Iterator[RawAudio]:
    part, n_parts = _part()
    return tar_audio(place, names, audio_field=audio_field, rank=part, world_size=n_parts)


def _iterate(
    place: str | Path | Dataset,
    order: OrderConfig | LengthConfig | None,
    epoch: int,
    first_step: int,
    members: Sequence[str],
    check: bool,
) -> Iterator[dict[str, Any]]:
    dataset = place if isinstance(place, Dataset) else open_dataset(place)
    rows = _stored_rows(dataset) if order is None else _rows(dataset, order, epoch, first_step)
    for row, payloads in read_samples(dataset, rows, members=members, check=check):
        yield {
            "__key__": dataset.key(row),
            "__url__": dataset.storage.url_of(dataset.shard_of(row).name),
            **{FIELDS[name]: payload for name, payload in payloads.items()},
        }


def _stored_rows(dataset: Dataset) -> range:
    part, n_parts = _part()
    return range(len(dataset) * part // n_parts, len(dataset) * (part + 1) // n_parts)


def _part() -> tuple[int, int]:
    """Return the number of this rank's worker among all, and how many there are."""
    rank, world_size, worker, num_workers = pytorch_worker_info()
    return rank * num_workers + worker, world_size * num_workers


def _rows(
    dataset: Dataset, config: OrderConfig | LengthConfig, epoch: int, first_step: int
) -> Iterator[int]:
    """Yield the rows of this rank's share of the steps that are this worker's."""
    rank, world_size, worker, num_workers = pytorch_worker_info()
    if isinstance(config, LengthConfig):
        order = LengthOrder(dataset.index, dataset.manifest.fingerprint, config)
    else:
        order = TrainingOrder(dataset.index, dataset.manifest.fingerprint, config)
    n_steps = order.steps_per_epoch
    for step in range(first_step + worker, n_steps, num_workers):
        yield from order.rows(epoch * n_steps + step, rank=rank, world_size=world_size).tolist()
