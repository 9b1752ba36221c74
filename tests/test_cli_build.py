"""`melstream build` as a user types it: its options, what it prints, what it refuses."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_cli import run

from melstream.shards.dataset import open_dataset
from melstream.tools.feature_file import read_features

CSV = "path,label,fold\nbell/a.flac,bell,one\ntom/b.flac,tom,two\ngone.flac,tom,two\n"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def melstream(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return lambda *arguments: run(*arguments, monkeypatch=monkeypatch, capsys=capsys)


@pytest.fixture
def corpus(recordings: Path, tmp_path: Path) -> Path:
    """A list of two recordings and one that is gone."""
    files = sorted((recordings / "eval").glob("*/*.flac"))
    for name, path in zip(("bell/a.flac", "tom/b.flac"), files, strict=False):
        target = tmp_path / name
        target.parent.mkdir()
        target.write_bytes(path.read_bytes())
    (tmp_path / "clips.csv").write_text(CSV)
    return tmp_path / "clips.csv"


def build_csv(melstream: Run, corpus: Path, out: Path, *options: str) -> tuple[int, str, str]:
    columns = ["--label-column", "label", "--split-column", "fold"]
    return melstream("build", "csv", corpus, *columns, "--out", out, "--jobs", "1", *options)


def test_a_dry_run_says_what_would_be_done_and_does_nothing(
    melstream: Run, corpus: Path, tmp_path: Path
) -> None:
    code, out, _ = build_csv(melstream, corpus, tmp_path / "out", "--dry-run", "--json")
    plan = json.loads(out)
    assert code == 0
    assert (plan["n_clips"], plan["n_missing"], plan["n_shards"]) == (2, 1, 1)
    assert plan["splits"] == {"one": 1, "two": 1}
    assert 0 < plan["estimated_bytes"] < 10**6
    assert not (tmp_path / "out").exists()
    _, out, _ = build_csv(melstream, corpus, tmp_path / "out", "--dry-run")
    assert "split two" in out


def test_a_build_reports_coverage_and_writes_it(
    melstream: Run, corpus: Path, tmp_path: Path
) -> None:
    code, out, _ = build_csv(melstream, corpus, tmp_path / "out")
    assert code == 0
    assert "coverage" in out
    assert "66.7%" in out
    coverage = json.loads((tmp_path / "out" / "coverage.json").read_text())
    assert coverage["total"] == {
        "n_listed": 3, "n_present": 2, "n_written": 2, "n_missing": 1, "n_rejected": 0
    }  # fmt: skip
    assert coverage["splits"]["two"]["n_missing"] == 1
    assert [row["n_written"] for row in coverage["classes"]] == [1, 1]
    missing = (tmp_path / "out" / "missing.txt").read_text().split()
    assert len(missing) == 1
    assert missing[0].startswith("gone")
    manifest = open_dataset(tmp_path / "out").manifest
    assert manifest.ids_hash == coverage["written_hash"]
    assert manifest.split_names == ("one", "two")


def test_a_missing_file_that_came_is_added(melstream: Run, corpus: Path, tmp_path: Path) -> None:
    build_csv(melstream, corpus, tmp_path / "out")
    (tmp_path / "gone.flac").write_bytes((tmp_path / "bell" / "a.flac").read_bytes())
    code, _, error = build_csv(melstream, corpus, tmp_path / "out")
    assert code == 2
    assert "with --retry-failed" in error
    code, out, _ = build_csv(melstream, corpus, tmp_path / "out", "--retry-failed")
    assert code == 0
    assert "of them new 1 of 1 clip tried this time" in " ".join(out.split())
    code, out, _ = build_csv(melstream, corpus, tmp_path / "out", "--retry-failed", "--json")
    assert code == 0
    assert json.loads(out)["n_samples"] == 3
    assert json.loads(out)["n_rejects"] == {}


def test_one_split_can_be_taken(melstream: Run, corpus: Path, tmp_path: Path) -> None:
    assert build_csv(melstream, corpus, tmp_path / "out", "--split", "one")[0] == 0
    assert len(open_dataset(tmp_path / "out")) == 1
    code, _, error = build_csv(melstream, corpus, tmp_path / "no", "--split", "three")
    assert code == 2
    assert "`--split` must be one of one, two; found 'three'" in error


def test_a_leak_between_sets_is_refused_with_the_ids(
    melstream: Run, corpus: Path, tmp_path: Path
) -> None:
    build_csv(melstream, corpus, tmp_path / "out")
    code, _, error = build_csv(
        melstream, corpus, tmp_path / "again", "--disjoint-from", str(tmp_path / "out")
    )
    assert code == 2
    assert open_dataset(tmp_path / "out").key(0) in error
    assert not (tmp_path / "again").exists()


def test_parts_say_what_is_left(melstream: Run, corpus: Path, tmp_path: Path) -> None:
    options = ("--shard-samples", "1", "--part")
    code, out, _ = build_csv(melstream, corpus, tmp_path / "out", *options, "1/2")
    assert code == 0
    assert "1 shard written; 1 left to the other parts" in " ".join(out.split())
    code, out, _ = build_csv(melstream, corpus, tmp_path / "out", *options, "2/2")
    assert code == 0
    assert len(open_dataset(tmp_path / "out")) == 2


def test_features_of_a_file_are_built_and_indexed(
    melstream: Run, corpus: Path, tmp_path: Path
) -> None:
    spec, out, tars = tmp_path / "spec.toml", tmp_path / "out", tmp_path / "tars"
    spec.write_text('n_mels = 40\nsample_rate = 8000\nfmax = 3800.0\nstorage_dtype = "uint8"\n')
    code, _, error = build_csv(melstream, corpus, out, "--features", str(spec))
    assert code == 0, error
    built = open_dataset(out)
    assert built.manifest.features == read_features(str(spec))
    tars.mkdir()
    shutil.copy(out / built.manifest.shards[0].name, tars)
    assert melstream("index", tars, "--features", spec)[0] == 0
    indexed = open_dataset(tars)
    assert indexed.manifest.features == built.manifest.features
    assert [indexed.key(row) for row in range(2)] == [built.key(row) for row in range(2)]
    np.testing.assert_array_equal(indexed.read_logmel(1), built.read_logmel(1))
    other = ("--features", str(spec), "--storage", "float16")
    build_csv(melstream, corpus, tmp_path / "other", *other)
    assert open_dataset(tmp_path / "other").manifest.features.storage_dtype == "float16"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--part", "3/2"), "`--part` must be i/n with i from 1 to n"),
        (("--features", "mfcc"), "`--features` must be one of conformer64, kaldi128"),
        (("--storage", "float64"), "'float64' is not one of 'float16', 'uint8'"),
        (("--window-seconds", "0"), "greater than or equal to 0.1"),
    ],
)
def test_wrong_options_are_refused_before_any_work(
    melstream: Run, corpus: Path, tmp_path: Path, options: tuple[str, str], message: str
) -> None:
    code, _, error = build_csv(melstream, corpus, tmp_path / "out", *options)
    assert code == 2
    assert message in error.replace("│ ", "").replace(" │", "")
    assert not (tmp_path / "out").exists()


def test_ray_that_is_not_there_is_an_error_with_the_remedy(
    melstream: Run, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    csv = ["build", "csv", corpus, "--label-column", "label", "--executor", "ray"]
    code, _, error = melstream(*csv, "--out", tmp_path / "out", "--jobs", "2")
    assert code == 2
    assert "`--jobs` goes with processes here" in error
    code, _, error = melstream(*csv, "--out", tmp_path / "out")
    assert code == 1
    assert "pip install 'melstream[ray]'" in error
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_a_data_set_becomes_cuts(melstream: Run, corpus: Path, tmp_path: Path) -> None:
    import lhotse

    build_csv(melstream, corpus, tmp_path / "out")
    code, out, _ = melstream("export-lhotse", tmp_path / "out", "--out", tmp_path / "cuts")
    assert code == 0
    assert "2 cuts: lhotse.CutSet.from_file(" in out
    cuts = lhotse.CutSet.from_file(tmp_path / "cuts" / "cuts.jsonl.gz")
    assert {cut.supervisions[0].text for cut in cuts} == {"bell", "tom"}
