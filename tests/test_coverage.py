"""Coverage: what became of each clip that a corpus lists."""

import hashlib
import io
import json
import random
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from melstream.tools.build_job import Reject
from melstream.tools.corpora import Clip, Listing
from melstream.tools.coverage import Counts, hash_ids, measure_coverage, print_coverage

NAMES = ("Speech", "Car, [red]alarm[/red]", "Silence", "Never listed")


def make_clip(key: str, labels: tuple[int, ...], split: int, *, is_present: bool = True) -> Clip:
    return Clip(key, f"{key}.wav" if is_present else None, labels, key, split=split)


def make_reject(key: str, reason: str = "silent") -> Reject:
    return Reject(key=key, source=key, reason=reason, message="")


@pytest.fixture
def listing() -> Listing:
    clips = (
        make_clip("-a", (0, 1), 0),
        make_clip("B", (0,), 0, is_present=False),
        make_clip("_c", (2,), 1),
        make_clip("b", (0, 2), 1),
        make_clip("c", (), -1, is_present=False),
    )
    return Listing(
        root=Path(),
        clips=clips,
        label_names=NAMES,
        label_ids=("/m/0", "/m/1", "/m/2", "/m/3"),
        splits=("train", "eval", "test"),
    )


@pytest.fixture
def rejects() -> list[Reject]:
    return [
        make_reject("B", "missing"),
        make_reject("_c"),
        make_reject("b-00010000"),  # a window of the clip, not the clip
        make_reject("c", "missing"),
    ]


def test_every_clip_is_counted_in_all_in_its_split_and_in_each_of_its_classes(
    listing: Listing, rejects: list[Reject]
) -> None:
    coverage = measure_coverage(listing, rejects)
    assert coverage.total == Counts(5, n_present=3, n_written=2, n_missing=2, n_rejected=1)
    assert coverage.splits == {
        "train": Counts(2, n_present=1, n_written=1, n_missing=1, n_rejected=0),
        "eval": Counts(2, n_present=2, n_written=1, n_missing=0, n_rejected=1),
    }
    assert coverage.classes == (
        Counts(3, n_present=2, n_written=2, n_missing=1, n_rejected=0),
        Counts(1, n_present=1, n_written=1, n_missing=0, n_rejected=0),
        Counts(2, n_present=2, n_written=1, n_missing=0, n_rejected=1),
        Counts(0, n_present=0, n_written=0, n_missing=0, n_rejected=0),
    )
    assert coverage.missing_ids == ("B", "c")
    assert coverage.missing_text() == "B\nc\n"
    assert coverage.listed_hash == hash_ids(["-a", "B", "_c", "b", "c"])
    assert coverage.written_hash == hash_ids(["-a", "b"])
    assert coverage.classes[3].share == 0


def test_counts_agree_with_a_plain_loop() -> None:
    rng = random.Random(5)
    clips = tuple(
        make_clip(
            f"{number:04d}",
            tuple(sorted(rng.sample(range(6), rng.randrange(4)))),
            rng.randrange(-1, 3),
            is_present=rng.random() < 0.8,
        )
        for number in range(500)
    )
    rejects = [make_reject(clip.key) for clip in clips if rng.random() < 0.3]
    rejected = {found.key for found in rejects}
    names = tuple("abcdef")
    coverage = measure_coverage(
        Listing(root=Path(), clips=clips, label_names=names, splits=("x", "y", "z")), rejects
    )
    states: Counter[tuple[str, int | str, str]] = Counter()
    for clip in clips:
        state = "missing" if clip.path is None else "written"
        if state == "written" and clip.key in rejected:
            state = "rejected"
        states["split", clip.split, state] += 1
        for label in clip.labels:
            states["class", label, state] += 1
    kinds = [("split", n, coverage.splits[name]) for n, name in enumerate("xyz")]
    kinds += [("class", n, counts) for n, counts in enumerate(coverage.classes)]
    for kind, number, counts in kinds:
        found = (counts.n_written, counts.n_rejected, counts.n_missing)
        assert found == tuple(
            states[kind, number, state] for state in ("written", "rejected", "missing")
        )
        assert counts.n_listed == sum(found)
        assert counts.n_present == counts.n_written + counts.n_rejected


def test_a_clip_whose_file_was_gone_when_it_was_to_be_read_is_missing(listing: Listing) -> None:
    coverage = measure_coverage(listing, [make_reject("_c", "missing"), make_reject("b")])
    assert coverage.total == Counts(5, n_present=2, n_written=1, n_missing=3, n_rejected=1)
    assert coverage.missing_ids == ("B", "_c", "c")


def test_a_listing_without_labels_and_splits_has_a_total_only() -> None:
    listing = Listing(root=Path(), clips=(Clip("a", "a.wav", (), "a.wav"),))
    coverage = measure_coverage(listing, ())
    assert coverage.total.share == 1
    assert (coverage.splits, coverage.classes) == ({}, ())
    assert coverage.as_json()["classes"] == []
    assert coverage.missing_text() == ""


def test_an_empty_listing_has_no_coverage() -> None:
    coverage = measure_coverage(Listing(root=Path(), clips=(), splits=("eval",)), ())
    assert (coverage.total.n_listed, coverage.total.share) == (0, 0)
    assert coverage.written_hash == hashlib.sha256(b"").hexdigest()[:16]


def test_json_holds_everything_but_the_missing_keys(
    listing: Listing, rejects: list[Reject]
) -> None:
    content = measure_coverage(listing, rejects).as_json()
    assert json.loads(json.dumps(content)) == content
    assert content["total"]["n_written"] == 2
    assert list(content["splits"]) == ["train", "eval"]
    assert content["classes"][1] == {
        "name": NAMES[1],
        "id": "/m/1",
        "n_listed": 1,
        "n_present": 1,
        "n_written": 1,
        "n_missing": 0,
        "n_rejected": 0,
    }
    assert set(content) == {"total", "splits", "classes", "listed_hash", "written_hash"}


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="needs coreutils")
def test_anyone_can_compute_the_hash(tmp_path: Path) -> None:
    keys = ["zz", "-0RWZT-miFs", "_dQw4w9WgXc", "aB_cD-eF_g8", "aB_cD-ef_g8", "Z", "0"]
    (tmp_path / "ids.txt").write_text("".join(f"{key}\n" for key in keys))
    command = "LC_ALL=C sort ids.txt | sha256sum | cut -c 1-16"
    output = subprocess.check_output(["sh", "-c", command], cwd=tmp_path, text=True)
    assert hash_ids(keys) == output.strip()
    assert hash_ids(reversed(keys)) == hash_ids(keys)
    assert hash_ids(keys[1:]) != hash_ids(keys)


def test_the_table_names_what_lost_most_and_escapes_names(
    listing: Listing, rejects: list[Reject]
) -> None:
    def text(top: int) -> str:
        console = Console(file=io.StringIO(), width=100)
        print_coverage(measure_coverage(listing, [*rejects, make_reject("-a")]), console, top=top)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()

    lines = text(10).splitlines()
    assert [line.split() for line in lines if line.startswith("all ")] == [
        ["all", "5", "3", "1", "2", "2", "20.0%"]
    ]
    assert any(line.startswith("train ") for line in lines)
    assert "classes with the lowest coverage (3 of 3)" in text(10)
    places = [text(10).index(name) for name in (NAMES[1], NAMES[0], NAMES[2])]
    assert places == sorted(places)
    assert "Never listed" not in text(10)
    assert "(1 of 3)" in text(1)
    assert NAMES[0] not in text(1)
    assert "(0 of" not in text(0)
