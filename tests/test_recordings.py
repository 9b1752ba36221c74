"""The recordings that ship are the ones in the table: whole, free, and split without overlap."""

import csv
import hashlib
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import soundfile

MAX_BYTES = 5_000_000


@pytest.fixture(scope="module")
def table(recordings: Path) -> list[dict[str, str]]:
    with (recordings / "recordings.tsv").open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def path_of(row: dict[str, str]) -> str:
    return f"{row['split']}/{row['class']}/{row['file']}"


def test_the_table_names_the_files_and_no_others(
    recordings: Path, table: list[dict[str, str]]
) -> None:
    files = {str(path.relative_to(recordings)) for path in recordings.rglob("*.flac")}
    assert files == {path_of(row) for row in table}
    assert len(files) == len(table) == 84
    beside = {path.name for path in recordings.rglob("*") if path.is_file()} - {
        row["file"] for row in table
    }
    assert beside == {"RECORDINGS.md", "recordings.tsv"}


def test_every_file_is_the_original(recordings: Path, table: list[dict[str, str]]) -> None:
    for row in table:
        path = recordings / path_of(row)
        assert hashlib.sha256(path.read_bytes()).hexdigest() == row["sha256"], path
        info = soundfile.info(path)
        assert (f"{info.duration:.3f}", str(info.samplerate)) == (
            row["seconds"],
            row["sample_rate"],
        )


def test_every_file_is_cc0_and_says_who_made_it(table: list[dict[str, str]]) -> None:
    for row in table:
        assert row["licence"] == "CC0-1.0"
        assert row["author"]
        assert row["source"].startswith(
            ("http://freesound.org/people/", "http://www.freesound.org/people/")
        )


def test_together_they_stay_small(recordings: Path) -> None:
    sizes = [path.stat().st_size for path in recordings.rglob("*") if path.is_file()]
    assert sum(sizes) <= MAX_BYTES


def test_every_class_is_on_both_sides(table: list[dict[str, str]]) -> None:
    splits = {
        split: Counter(row["class"] for row in table if row["split"] == split)
        for split in ("train", "eval")
    }
    assert len(splits["train"]) == 9
    assert splits["train"].keys() == splits["eval"].keys()
    assert min(splits["train"].values()) >= 4
    assert min(splits["eval"].values()) >= 2


def test_nothing_stands_on_both_sides(table: list[dict[str, str]]) -> None:
    assert len({row["sha256"] for row in table}) == len(table)
    sides = defaultdict(set)
    for row in table:
        sides[row["class"], row["group"]].add(row["split"])
    assert [group for group, splits in sides.items() if len(splits) > 1] == []


def test_the_split_follows_its_rule(table: list[dict[str, str]]) -> None:
    """The rule that ``RECORDINGS.md`` states, and no choice by hand."""
    for name, n_files in Counter(row["class"] for row in table).items():
        sizes = Counter(row["group"] for row in table if row["class"] == name)
        evaluation: set[str] = set()
        n_eval = 0
        for group in sorted(sizes, key=lambda g: hashlib.sha256(f"{name}/{g}".encode()).digest()):
            if n_eval < n_files / 4 and n_eval + sizes[group] <= max(n_files / 3, 2):
                evaluation.add(group)
                n_eval += sizes[group]
        found = {row["group"] for row in table if (row["class"], row["split"]) == (name, "eval")}
        assert found == evaluation
