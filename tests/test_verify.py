"""Whatever byte of a data set is altered, `verify --full` finds it and says where."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from melstream.shards.dataset import Dataset, open_dataset
from melstream.shards.errors import DatasetError, ShardError
from melstream.shards.manifest import write_manifest
from melstream.shards.verify import find_problems
from melstream.tools.cli import app
from melstream.tools.progress import Report

N_PER_FILE = 1


def test_a_manifest_of_a_version_that_knew_less_is_whole(small_dataset: Dataset) -> None:
    assert b"made_of" not in (small_dataset.folder / "dataset.json").read_bytes()
    assert problems(small_dataset.folder) == []


def problems(folder: Path) -> list[ShardError | DatasetError]:
    try:
        found = list(find_problems(open_dataset(folder), full=True))
    except DatasetError as error:
        return [error]
    return [problem for problem in found if problem is not None]


def places(path: Path, rng: np.random.Generator) -> list[int]:
    """The first and last byte of a file, and some others."""
    size = path.stat().st_size
    return sorted({0, size - 1, *rng.integers(size, size=N_PER_FILE).tolist()})


def flip(path: Path, place: int, bit: int) -> None:
    payload = bytearray(path.read_bytes())
    payload[place] ^= 1 << bit
    path.write_bytes(bytes(payload))


def test_any_altered_byte_of_manifest_or_index_is_found(small_dataset: Dataset) -> None:
    rng = np.random.default_rng(0)
    index = small_dataset.folder / "index.zarr"
    files = [path for path in sorted(index.rglob("*")) if path.is_file()]
    assert len(files) > 40
    for path in [small_dataset.folder / "dataset.json", *files]:
        for place in places(path, rng):
            bit = int(rng.integers(8))
            flip(path, place, bit)
            found = problems(small_dataset.folder)
            assert found, f"{path.name}, byte {place}, bit {bit}"
            name = "dataset.json" if path.name == "dataset.json" else "index"
            assert name in str(found[0])
            flip(path, place, bit)
    assert not problems(small_dataset.folder)


def test_any_altered_byte_of_a_shard_is_found_with_shard_and_key(small_dataset: Dataset) -> None:
    rng = np.random.default_rng(1)
    index, keys = small_dataset.index, [small_dataset.key(row) for row in range(60)]
    starts = {
        number: sorted(
            (int(index.logmel_offset[row]) - 512, keys[row])
            for row in range(60)
            if index.shard[row] == number
        )
        for number in range(5)
    }
    for number, shard in enumerate(small_dataset.manifest.shards):
        path = small_dataset.folder / shard.name
        whole = path.read_bytes()
        for place in [*places(path, rng), *rng.integers(shard.size_bytes, size=6).tolist()]:
            flip(path, place, int(rng.integers(8)))
            (problem,) = problems(small_dataset.folder)
            assert isinstance(problem, ShardError)
            assert problem.shard == shard.name
            assert shard.name in str(problem)
            owner = [key for start, key in starts[number] if start <= place][-1]
            is_after_all = problem.key is None and owner == starts[number][-1][1]
            assert problem.key == owner or is_after_all
            path.write_bytes(whole)


def test_a_tar_that_a_retry_is_to_add_is_not_to_be_removed(small_dataset: Dataset) -> None:
    (small_dataset.folder / "train-000005.tar").write_bytes(b"")
    (problem,) = problems(small_dataset.folder)
    assert str(problem).endswith("would take it for one; remove it")
    (small_dataset.folder / ".build").mkdir()
    (small_dataset.folder / ".build" / "retry").write_text("which one")
    (problem,) = problems(small_dataset.folder)
    assert "'melstream build --retry-failed' that runs or was interrupted" in str(problem)
    assert "run it again to complete it" in str(problem)
    assert "remove" not in str(problem)


def test_a_fault_of_index_or_manifest_is_of_the_data_set_by_its_name(
    small_dataset: Dataset,
) -> None:
    folder = small_dataset.folder
    (folder / "index.zarr").rename(folder / "index-1.zarr")
    manifest = small_dataset.manifest.model_copy(update={"index_name": "index-1.zarr"})
    write_manifest(small_dataset.storage, manifest)
    assert not problems(folder)
    shutil.rmtree(folder / "index-1.zarr" / "n_frames")
    (folder / "dataset.json").write_text((folder / "dataset.json").read_text() + "\n")
    found = list(find_problems(open_dataset(folder), full=True))
    assert [type(problem) for problem in found] == [DatasetError, DatasetError, *[type(None)] * 5]
    assert "dataset.json is not as it was written" in str(found[0])
    assert str(found[1]).startswith(f"{folder}/index-1.zarr lacks the columns n_frames")


def test_only_shards_count_as_progress(
    small_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []

    @contextlib.contextmanager
    def recorded(_title: str, total: int, _console: object) -> Iterator[Report]:
        assert total == 5
        yield lambda n, _note: done.append(n)

    monkeypatch.setattr("melstream.tools.progress.progress", recorded)
    (small_dataset.folder / "other.tar").write_bytes(b"")
    result = CliRunner().invoke(app, ["verify", small_dataset.url])
    assert result.exit_code == 1
    assert "other.tar is no shard of this data set" in result.output
    assert done[-1] == 5


@pytest.mark.parametrize("n_bytes", [1, 512, 10_000])
def test_a_shard_that_lost_its_end_is_found(small_dataset: Dataset, n_bytes: int) -> None:
    path = small_dataset.folder / small_dataset.manifest.shards[2].name
    path.write_bytes(path.read_bytes()[:-n_bytes])
    (problem,) = problems(small_dataset.folder)
    assert f"must have {small_dataset.manifest.shards[2].size_bytes} bytes" in str(problem)
