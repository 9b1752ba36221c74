"""Leaks: clips that stand in two data sets are found, whatever the other one is given as."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import make_sample, write_dataset

from melstream.shards.errors import DatasetError
from melstream.shards.manifest import write_manifest
from melstream.tools.corpora import audioset
from melstream.tools.leaks import read_ids, require_disjoint

SEGMENTS = """\
# Segments csv created Sun Mar  5 10:54:25 2017
# num_ytids=2, num_segs=2, num_unique_labels=527, num_positive_labels=51804
# YTID, start_seconds, end_seconds, positive_labels
--4gqARaEJE, 0.000, 10.000, "/m/068hy,/m/07q6cd_"
#BfvyPmVMo_, 20.000, 30.000, "/m/03l9g"
"""
STRONG = (
    "segment_id\tstart_time_seconds\tend_time_seconds\tlabel\n"
    "--4gqARaEJE_30000\t0.000\t1.000\t/m/053hz1\n"
)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], str]:
    def write_text(text: str) -> str:
        path = tmp_path / "other.csv"
        path.write_text(text)
        return str(path)

    return write_text


@pytest.fixture
def dataset_place(tmp_path: Path) -> str:
    samples = [make_sample(number) for number in range(5)]
    write_dataset(tmp_path / "set", [samples[:3], samples[3:]])
    return str(tmp_path / "set")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SEGMENTS, ["--4gqARaEJE", "#BfvyPmVMo_"]),
        ("\ufeffa\r\n\r\n b \r\n", ["a", "b"]),
        ('"a",1\n"b",2', ["a", "b"]),
        (STRONG, ["segment_id", "--4gqARaEJE_30000"]),
    ],
    ids=["segments", "one a line", "quoted", "strong"],
)
def test_ids_are_read_from_the_start_of_each_line(
    text: str, expected: list[str], write: Callable[[str], str]
) -> None:
    assert read_ids(write(text)) == expected


def test_the_keys_of_a_data_set_are_read(dataset_place: str) -> None:
    assert read_ids(dataset_place) == [f"clip-{number:04d}" for number in range(5)]


def test_shared_clips_are_refused_with_their_number_and_the_first(
    dataset_place: str, write: Callable[[str], str]
) -> None:
    keys = [f"clip-{number:04d}" for number in range(9, 2, -1)]
    message = r"/set holds too, found 2: clip-0003, clip-0004; .*--disjoint-from"
    with pytest.raises(ValueError, match=message):
        require_disjoint(keys, [write("clip-9999\n"), dataset_place])
    require_disjoint(keys[:5], [dataset_place, write("clip-9999\n")])
    require_disjoint(keys, [])
    with pytest.raises(ValueError, match=r"other.csv .* found 7: clip-0003, .*-0007 and 2 more;"):
        require_disjoint(keys, [write("\n".join(keys))])


def test_clips_of_one_recording_are_a_leak_where_the_corpus_can_tell(
    write: Callable[[str], str],
) -> None:
    other = write(STRONG)
    require_disjoint(["--4gqARaEJE"], [other])
    for key in ("--4gqARaEJE", "--4gqARaEJE_0"):
        with pytest.raises(ValueError, match=rf"found 1: {key};"):
            require_disjoint([key], [other], recording_of=audioset.recording_of)
    require_disjoint(["--4gqARaEJf"], [other], recording_of=audioset.recording_of)


def test_windows_are_of_their_clip(tmp_path: Path) -> None:
    samples = [replace(make_sample(1), key=f"song-1-{ms:08d}") for ms in (0, 10_000)]
    dataset = write_dataset(tmp_path / "set", [samples])
    require_disjoint(["song-1"], [dataset.url])
    settings = dataset.manifest.build.model_copy(update={"window_s": 10.0})
    manifest = dataset.manifest.model_copy(update={"build": settings})
    write_manifest(dataset.storage, manifest)
    with pytest.raises(ValueError, match="found 1: song-1;"):
        require_disjoint(["song-1", "song"], [dataset.url])


def test_keys_that_differ_by_case_are_no_leak(write: Callable[[str], str]) -> None:
    require_disjoint(["aB_cD-eF_g8"], [write("aB_cD-ef_g8\n")])


def test_places_that_hold_no_ids_are_errors(tmp_path: Path, write: Callable[[str], str]) -> None:
    with pytest.raises(ValueError, match=r"must be a data set or a text file .* nothing at .*gone"):
        require_disjoint(["a"], [str(tmp_path / "gone")])
    with pytest.raises(ValueError, match=r"other.csv must hold an id a line, found none"):
        require_disjoint(["a"], [write("# only a comment\n")])
    with pytest.raises(DatasetError, match=r"dataset\.json"):
        require_disjoint(["a"], [str(tmp_path)])


def test_many_keys_are_compared_in_linear_time(write: Callable[[str], str]) -> None:
    keys = [f"{number:011d}" for number in range(200_000)]
    other = write("\n".join(f"{number:011d}" for number in range(199_999, 400_000)))
    with pytest.raises(ValueError, match="found 1: 00000199999;"):
        require_disjoint(keys, [other])
