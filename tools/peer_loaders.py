"""Other loaders over the same clips: a program that imports nothing of ours.

    python -I peer_loaders.py webdataset FOLDER --work FOLDER --cores 0 --workers 0

FOLDER holds tars of clips of one length, as melstream writes them. What cannot read them gets
a copy in its own format, made by its own writer, in the work folder. Then each number of
seconds on standard input is answered by a line of JSON: epochs were run for at least so long.

Each is used as its documentation says, and gives batches of log-mels with keys and labels.
None shuffles, masks or crops. It stands alone because the peers want an environment of their
own: they disagree about versions with each other, and with us.
"""

import argparse
import importlib
import io
import json
import os
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

import numpy as np

LOGMEL, JSON = "logmel.npy", "json"
CHUNK_BYTES = 64 * 2**20  # about what LitData and MosaicML advise
CLIPS_PER_SHARD = 1_000  # of lhotse Shar, its own default

Batches = Iterable[Any]
Open = Callable[[Path, Path, int, int], Batches]
"""From the folder of tars, the work folder, the batch size and the number of workers to the
batches of one epoch, which can be run again and again."""


def read_clips(tar_path: str | Path) -> Iterator[dict[str, Any]]:
    """Yield ``key``, ``logmel`` and ``json`` (text) of each clip of a tar."""
    with tarfile.open(tar_path) as tar:
        clip: dict[str, Any] = {}
        for member in tar:
            key, _, field = member.name.partition(".")
            file = tar.extractfile(member)
            assert file is not None  # a tar of clips holds files only
            payload = file.read()
            if field == LOGMEL:
                array = np.lib.format.read_array(io.BytesIO(payload), allow_pickle=False)
                clip = {"key": key, "logmel": array}
            elif field == JSON:
                yield clip | {"json": payload.decode()}


def open_webdataset(folder: Path, work: Path, batch_size: int, n_workers: int) -> Batches:
    """Read the tars as they are."""
    wds = importlib.import_module("webdataset")
    stages = wds.WebDataset(_tars(folder), shardshuffle=False).decode()
    batches = stages.to_tuple("__key__", LOGMEL, JSON).batched(batch_size)
    if not n_workers:
        return batches
    return wds.WebLoader(batches, batch_size=None, num_workers=n_workers)


def open_lhotse(folder: Path, work: Path, batch_size: int, n_workers: int) -> Batches:
    """Read lhotse Shar with plain NumPy arrays; its default, lilcom, is slower to read."""
    lhotse, dataset = importlib.import_module("lhotse"), importlib.import_module("lhotse.dataset")
    torch_data = importlib.import_module("torch.utils.data")
    _once(work, lambda path: _write_shar(folder, path))
    collate = importlib.import_module("lhotse.dataset.collation").collate_features

    class Clips(torch_data.Dataset):
        def __getitem__(self, cuts: Any) -> tuple[Any, ...]:
            return *collate(cuts), [cut.id for cut in cuts], [cut.custom["json"] for cut in cuts]

    sampler = dataset.DynamicCutSampler(
        lhotse.CutSet.from_shar(in_dir=str(work)), max_cuts=batch_size
    )
    batches = dataset.IterableDatasetWrapper(Clips(), sampler)
    return torch_data.DataLoader(batches, batch_size=None, num_workers=n_workers)


def open_mosaicml(folder: Path, work: Path, batch_size: int, n_workers: int) -> Batches:
    """Read MDS with arrays of any shape."""
    streaming = importlib.import_module("streaming")
    torch_data = importlib.import_module("torch.utils.data")

    def write(path: Path) -> None:
        columns = {"key": "str", "logmel": "ndarray", "json": "str"}
        with streaming.MDSWriter(out=str(path), columns=columns) as writer:
            for clip in _all_clips(folder):
                writer.write(clip)

    _once(work, write)
    own = Path(tempfile.mkdtemp(dir=work.parent))  # two processes may not share a folder
    for path in work.iterdir():
        (own / path.name).symlink_to(path)
    clips = streaming.StreamingDataset(local=str(own), batch_size=batch_size, shuffle=False)
    return torch_data.DataLoader(clips, batch_size=batch_size, num_workers=n_workers)


def open_litdata(folder: Path, work: Path, batch_size: int, n_workers: int) -> Batches:
    """Read LitData's chunks."""
    litdata = importlib.import_module("litdata")
    _once(
        work,
        lambda path: litdata.optimize(
            fn=read_clips,
            inputs=_tars(folder),
            output_dir=str(path),
            chunk_bytes=CHUNK_BYTES,
            num_workers=1,
        ),
    )
    clips = litdata.StreamingDataset(str(work), shuffle=False)
    return litdata.StreamingDataLoader(clips, batch_size=batch_size, num_workers=n_workers)


def open_energon(folder: Path, work: Path, batch_size: int, n_workers: int) -> Batches:
    """Read the tars as they are, with Energon's own index beside them."""
    energon = importlib.import_module("megatron.energon")
    torch = importlib.import_module("torch")
    _once(work, lambda path: _prepare_energon(folder, path))

    @energon.edataclass
    class Clip(energon.Sample):
        logmel: Any  # a tensor
        json: dict[str, Any]

    @energon.stateless
    def cook(sample: dict[str, Any]) -> Clip:
        logmel = torch.as_tensor(sample[LOGMEL])
        return Clip(**energon.basic_sample_keys(sample), logmel=logmel, json=sample[JSON])

    class Encoder(energon.DefaultTaskEncoder):
        cookers = [energon.Cooker(cook)]  # noqa: RUF012

        def encode_batch(self, batch: Any) -> dict[str, Any]:
            # A `Clip` could not be sent by a worker: it is not importable.
            return {"logmel": batch.logmel, "json": batch.json, "key": batch.__key__}

    clips = energon.get_train_dataset(
        str(work),
        batch_size=batch_size,
        shuffle_buffer_size=None,
        max_samples_per_sequence=None,
        repeat=False,
        task_encoder=Encoder(),
        worker_config=energon.WorkerConfig(rank=0, world_size=1, num_workers=n_workers),
    )
    return energon.get_loader(clips)


PEERS: dict[str, tuple[str, Open]] = {
    "webdataset": ("webdataset", open_webdataset),
    "lhotse Shar": ("lhotse", open_lhotse),
    "MosaicML Streaming": ("mosaicml-streaming", open_mosaicml),
    "LitData": ("litdata", open_litdata),
    "Megatron-Energon": ("megatron-energon", open_energon),
}
"""What a peer is called -> the package it comes in, and how its batches are opened."""


def installed() -> dict[str, str]:
    """Return the version of each peer that this environment has, by its name in ``PEERS``."""
    found = {}
    for name, (package, _) in PEERS.items():
        try:
            found[name] = version(package)
        except PackageNotFoundError:
            continue
    return found


def take_stdout() -> TextIO:
    """Return standard output, for the answers alone: what a library prints goes to stderr."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return out


def answer(out: TextIO, epoch: Callable[[], int], **ready: Any) -> None:
    """Time epochs for whoever asks on standard input.

    Args:
        out: where the answers go.
        epoch: runs one, returns the clips it had.
        ready: what is said first, once an epoch was run.
    """
    epoch()  # compiles, opens, fills caches
    out.write(json.dumps(ready) + "\n")
    for line in sys.stdin:
        n_clips, start = 0, time.perf_counter()
        while time.perf_counter() - start < float(line):
            n_clips += epoch()
        seconds = time.perf_counter() - start
        out.write(json.dumps({"n_clips": n_clips, "seconds": seconds}) + "\n")


def pin(cores: str) -> None:
    """Let this process, and those it starts, run on some cores only; such as ``0,1``."""
    numbers = {int(core) for core in cores.split(",")}
    os.sched_setaffinity(0, numbers)
    importlib.import_module("torch").set_num_threads(len(numbers))


def main() -> None:
    """Be one peer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", choices=PEERS)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--cores", default="0")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args()
    if options.name is None:
        sys.stdout.write(json.dumps(installed()))
        return
    out = take_stdout()
    warnings.simplefilter("ignore")
    pin(options.cores)
    package, open_batches = PEERS[options.name]
    work = options.work / package
    batches = open_batches(options.folder, work, options.batch_size, options.workers)
    answer(out, lambda: sum(_n_clips(batch) for batch in batches), version=version(package))


def _tars(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.glob("*.tar"))]


def _all_clips(folder: Path) -> Iterator[dict[str, Any]]:
    for path in _tars(folder):
        yield from read_clips(path)


def _once(path: Path, write: Callable[[Path], None]) -> None:
    """Write a folder that appears whole; one that is there is left alone."""
    if not path.exists():
        partial = path.with_name(f"{path.name}.partial")
        partial.mkdir(parents=True)
        write(partial)
        partial.rename(path)


def _write_shar(folder: Path, path: Path) -> None:
    lhotse = importlib.import_module("lhotse")
    memory = importlib.import_module("lhotse.features.io").MemoryRawWriter()
    shar = importlib.import_module("lhotse.shar")
    fields = {"features": "numpy"}
    with shar.SharWriter(str(path), fields=fields, shard_size=CLIPS_PER_SHARD) as writer:
        for clip in _all_clips(folder):
            n_frames, n_mels = clip["logmel"].shape
            times = {"start": 0, "duration": n_frames / 100}
            features = lhotse.Features(
                type="logmel",
                num_frames=n_frames,
                num_features=n_mels,
                frame_shift=0.01,
                sampling_rate=16_000,
                storage_type=memory.name,
                storage_path="",
                storage_key=memory.write(clip["key"], clip["logmel"]),
                channels=0,
                **times,
            )
            custom = {"json": clip["json"]}
            writer.write(
                lhotse.MonoCut(id=clip["key"], channel=0, features=features, custom=custom, **times)
            )


def _prepare_energon(folder: Path, path: Path) -> None:
    """Link the tars and have Energon index them, as its command ``energon prepare`` does."""
    for tar in _tars(folder):
        (path / Path(tar).name).symlink_to(Path(tar).resolve())
    command = importlib.import_module("megatron.energon.cli.main").main
    options = ("--non-interactive", "--no-progress", "--split-ratio", "1,0,0")
    arguments = ["prepare", *options, "--sample-type", "CrudeWebdataset", str(path)]
    command.main(arguments, standalone_mode=False)


def _n_clips(batch: Any) -> int:
    """Count the clips of a batch by its log-mels, which must be one array."""
    if isinstance(batch, dict):
        logmel = batch["logmel"]
    elif isinstance(batch, list | tuple):
        logmel = next(field for field in batch if getattr(field, "ndim", 0) == 3)
    else:
        logmel = batch.logmel
    assert logmel.ndim == 3, logmel.shape
    return len(logmel)


if __name__ == "__main__":
    main()
