"""Batches: memory that is used again, and only when nobody has it."""

import gc
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from test_loader import MASKED, assert_same, make_loader

from melstream.pipeline.batch import BatchMemory, on_device
from melstream.pipeline.loader import Loader, LoaderConfig
from melstream.pipeline.order import EvaluationOrder
from melstream.shards.dataset import Dataset
from melstream.shards.errors import ShardError


def test_memory_is_used_again_once_every_tensor_on_it_is_gone() -> None:
    memory = BatchMemory(pins=False, max_free_bytes=10_000)
    first = memory.empty((10, 7), torch.float16)
    address = first.data_ptr()
    kept = first[2:3].view(torch.int16)  # a view of a view keeps it, too
    del first
    second = memory.empty((10, 7), torch.float16)
    assert second.data_ptr() != address
    del kept
    gc.collect()
    assert memory.empty((10, 7), torch.float16).data_ptr() == address


def test_memory_kept_for_later_is_bounded() -> None:
    memory = BatchMemory(pins=False, max_free_bytes=3_000)
    held = [memory.empty((1_000,), torch.uint8) for _ in range(5)]
    del held
    gc.collect()
    assert 0 < memory._free_bytes <= 3_000


def test_batches_that_are_kept_stay_as_they_are(small_dataset: Dataset) -> None:
    loader = make_loader(small_dataset, MASKED)
    kept = list(loader.batches(0, 20))
    for step, batch in enumerate(kept):
        assert_same(batch, make_loader(small_dataset, MASKED).batch(step))


def test_on_a_cpu_a_batch_stays_where_it_is(small_dataset: Dataset) -> None:
    loader = make_loader(small_dataset, MASKED)
    for one, other in zip(
        on_device(loader.batches(0, 5), torch.device("cpu")), loader.batches(0, 5), strict=True
    ):
        assert_same(one, other)


def test_an_altered_local_shard_is_noticed_when_it_is_used_first(small_dataset: Dataset) -> None:
    row = 25
    shard = small_dataset.folder / small_dataset.shard_of(row).name
    altered = bytearray(shard.read_bytes())
    altered[int(small_dataset.index.logmel_offset[row]) + 200] ^= 1
    shard.write_bytes(altered)
    loader = Loader(
        small_dataset, EvaluationOrder(np.arange(len(small_dataset)), 8), LoaderConfig()
    )
    with pytest.raises(ShardError, match=rf"payload of {small_dataset.key(row)} is not the one"):
        list(loader.batches(0, 8))
    assert not small_dataset.is_checked[row]
    assert small_dataset.is_checked[:24].all()


def test_a_shard_that_is_cut_while_in_use_is_an_error(small_dataset: Dataset) -> None:
    shard = small_dataset.folder / small_dataset.shard_of(0).name
    loader = Loader(
        small_dataset, EvaluationOrder(np.arange(len(small_dataset)), 8), LoaderConfig()
    )
    next(loader.batches(0, 1))
    os.truncate(shard, 5_000)
    with pytest.raises(ShardError, match=rf"{shard.name} had \d+ bytes and was cut to 5000 while"):
        next(loader.batches(0, 1))


PROGRAM = """
import signal, sys, threading
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it
from contextlib import closing
from melstream.pipeline.loader import Loader, LoaderConfig
from melstream.pipeline.order import OrderConfig, TrainingOrder
from melstream.shards import open

dataset = open(sys.argv[1])
config = OrderConfig(global_batch_size=8)
order = TrainingOrder(dataset.index, dataset.manifest.fingerprint, config)
try:
    with closing(Loader(dataset, order, LoaderConfig(crop_frames=32)).batches(0, 10**9)) as batches:
        for batch in batches:
            print(batch.step, flush=True)
except KeyboardInterrupt:
    names = [thread.name for thread in threading.enumerate() if "melstream" in thread.name]
    print("left behind:", names, flush=True)
"""


@pytest.mark.slow
def test_ctrl_c_ends_cleanly(small_dataset: Dataset) -> None:
    arguments = [sys.executable, "-Ic", PROGRAM, str(small_dataset.folder)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) == 20:
                break
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out.splitlines()[-1] == b"left behind: []"
