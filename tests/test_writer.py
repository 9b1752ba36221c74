"""Shards are plain WebDataset, the same bytes for the same samples."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import webdataset
from conftest import make_sample, read_with_webdataset, write_dataset

from melstream.shards.storage import open_storage
from melstream.shards.writer import MODE, OWNER, Sample, write_shard

GOLDEN_SHA256 = "3602882761c8df8adf245f81d4d9245815b03f8878c116fe5aacae8e2157bd0a"


def write_three(path: Path) -> Path:
    with write_shard(open_storage(path.parent), path.name) as writer:
        for number in range(3):
            writer.write(make_sample(number, n_frames=5 + number, label_ids=(number,)))
    return path


def test_the_same_samples_give_the_bytes_of_the_golden_shard(tmp_path: Path) -> None:
    written = write_three(tmp_path / "train-000000.tar").read_bytes()
    assert hashlib.sha256(written).hexdigest() == GOLDEN_SHA256
    golden = Path(__file__).parent / "data" / "golden-000000.tar"
    assert written == golden.read_bytes()


def test_the_bytes_are_those_of_webdatasets_own_writer(tmp_path: Path) -> None:
    ours = write_three(tmp_path / "train-000000.tar").read_bytes()
    stream = io.BytesIO()
    writer = webdataset.TarWriter(
        stream, user=OWNER, group=OWNER, mode=MODE, mtime=0, encoder=False
    )
    with tarfile.open(fileobj=io.BytesIO(ours)) as tar:
        for member in tar:
            payload = tar.extractfile(member)
            assert payload is not None
            key, _, field = member.name.partition(".")
            writer.write({"__key__": key, field: payload.read()})
    writer.close()
    assert stream.getvalue() == ours


def test_plain_webdataset_reads_the_same_keys_labels_and_arrays(tmp_path: Path) -> None:
    samples = [make_sample(n, n_frames=5 + n, label_ids=(n % 2,)) for n in range(6)]
    dataset = write_dataset(tmp_path / "set", [samples[:4], samples[4:]], n_classes=2)
    read = read_with_webdataset(dataset)
    assert [sample["__key__"] for sample in read] == [sample.key for sample in samples]
    for row, (sample, seen) in enumerate(zip(samples, read, strict=True)):
        np.testing.assert_array_equal(seen["logmel.npy"], sample.logmel)
        np.testing.assert_array_equal(seen["logmel.npy"], dataset.read_logmel(row))
        assert seen["json"] == json.loads(sample.info.model_dump_json())


def test_an_error_leaves_no_shard(tmp_path: Path) -> None:
    def samples() -> Iterator[Sample]:
        yield make_sample(0)
        raise RuntimeError("half way")

    storage = open_storage(tmp_path)
    with pytest.raises(RuntimeError, match="half way"), write_shard(storage, "a.tar") as writer:
        list(map(writer.write, samples()))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_no_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_three(tmp_path / "a.tar")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "ä"])
def test_a_key_that_webdataset_would_cut_is_refused(tmp_path: Path, key: str) -> None:
    sample = make_sample(0)
    bad = type(sample)(key, sample.logmel, sample.label_ids, sample.info)
    storage = open_storage(tmp_path)
    with pytest.raises(ValueError, match="key"), write_shard(storage, "a.tar") as writer:
        writer.write(bad)


def test_a_logmel_that_is_not_float16_is_refused(tmp_path: Path) -> None:
    sample = make_sample(0)
    bad = type(sample)(sample.key, sample.logmel.astype(np.float32), (), sample.info)
    with (
        pytest.raises(ValueError, match="`logmel` must be float16"),
        write_shard(open_storage(tmp_path), "a.tar") as writer,
    ):
        writer.write(bad)
