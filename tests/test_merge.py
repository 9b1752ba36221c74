"""Data sets that agree become one whose tars are the same bytes; those that do not say where."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SPEC, make_sample, read_with_webdataset, write_dataset
from foreign_tars import clips, index_tars, write_tar
from object_store import Bucket

from melstream.shards.dataset import Dataset, open_dataset
from melstream.shards.errors import DatasetError, ShardError
from melstream.shards.manifest import write_manifest
from melstream.shards.spec import FeatureSpec
from melstream.shards.storage import open_storage
from melstream.shards.verify import find_problems
from melstream.shards.writer import Sample
from melstream.tools import cli
from melstream.tools.merge import Merged, merge

pytest_plugins = ["object_store"]


def run(datasets: Sequence[Dataset], out: Path) -> tuple[Merged, Dataset]:
    found = merge(datasets, open_storage(out), lambda done, note: None)
    return found, open_dataset(out)


def make_set(path: Path, shards: Sequence[Sequence[Sample]], **changes: Any) -> Dataset:
    """A data set whose manifest says something else than ``write_dataset`` does."""
    dataset = write_dataset(path, shards)
    write_manifest(dataset.storage, dataset.manifest.model_copy(update=changes))
    return open_dataset(path)


def told(dataset: Dataset, **changes: Any) -> Dataset:
    """The same files with another manifest."""
    return Dataset(dataset.storage, dataset.manifest.model_copy(update=changes))


def labelled(number: int, *label_ids: int, split: int = -1) -> Sample:
    return replace(make_sample(number, n_frames=10 + number), label_ids=label_ids, split=split)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[Dataset]:
    """Two data sets with classes and splits in common, under other numbers; only to read."""
    tmp_path = tmp_path_factory.mktemp("pair")
    return [
        make_set(
            tmp_path / "one",
            [[labelled(0, 0, split=0), labelled(1, 1, 2)], [labelled(2, 2, split=1)]],
            label_names=("dog", "cat", "owl"),
            split_names=("fit", "test"),
        ),
        make_set(
            tmp_path / "two",
            [[labelled(3, 0, 1, split=0), labelled(4), labelled(5, 2, split=1)]],
            label_names=("owl", "dog", "bee"),
            split_names=("test", "fit"),
        ),
    ]


def test_classes_and_splits_are_joined_by_name(pair: list[Dataset], tmp_path: Path) -> None:
    found, new = run(pair, tmp_path / "both")
    assert new.manifest.label_names == ("dog", "cat", "owl", "bee")
    assert new.manifest.split_names == ("fit", "test")
    assert [new.index.labels(r).tolist() for r in range(6)] == [[0], [1, 2], [2], [0, 2], [], [3]]
    assert new.index.split.tolist() == [0, -1, 1, 1, -1, 0]
    assert new.index.shard.tolist() == [0, 0, 1, 2, 2, 2]
    assert set(find_problems(new, full=True)) == {None}
    assert found.manifest == new.manifest


def test_tars_are_the_same_bytes_under_new_numbers(pair: list[Dataset], tmp_path: Path) -> None:
    _, new = run(pair, tmp_path / "both")
    old = [dataset.folder / s.name for dataset in pair for s in dataset.manifest.shards]
    names = [shard.name for shard in new.manifest.shards]
    assert names == [f"both-00000{number}.tar" for number in range(3)]
    for name, path in zip(names, old, strict=True):
        assert (tmp_path / "both" / name).read_bytes() == path.read_bytes()
    keys = [sample["__key__"] for sample in read_with_webdataset(new)]
    assert keys == [f"clip-{number:04d}" for number in range(6)]


def test_statistics_are_those_of_all_samples(tmp_path: Path) -> None:
    pair = [
        make_set(tmp_path / name, [[make_sample(n, n_frames=30)]], band_mean=mean, band_std=std)
        for name, n, mean, std in (
            ("a", 0, (1.0,) * 64, (2.0,) * 64),
            ("b", 1, (3.0,) * 64, (4.0,) * 64),
        )
    ]
    _, new = run(pair, tmp_path / "both")
    np.testing.assert_allclose(new.manifest.band_mean, 2.0)
    np.testing.assert_allclose(new.manifest.band_std, np.sqrt((4 + 1 + 16 + 9) / 2 - 4))
    assert new.manifest.duration_s == pytest.approx(0.6)


def test_what_is_built_merges_with_what_is_adopted(
    built: Callable[[str], Dataset], tmp_path: Path
) -> None:
    write_tar(tmp_path / "foreign" / "a.tar", clips(range(5)))
    index_tars(tmp_path / "foreign", label_field="cls")
    old = built("eval")
    found, new = run([old, open_dataset(tmp_path / "foreign")], tmp_path / "both")
    assert new.manifest.label_names[: len(old.manifest.label_names)] == old.manifest.label_names
    assert set(find_problems(new, full=True)) == {None}
    assert new.manifest.build.corpus == "merge of folder, index"
    assert found.n_equal_audio == 0
    card = (tmp_path / "both" / "README.md").read_text()
    assert f"Merged from eval (fingerprint {old.manifest.fingerprint}), foreign" in card


def test_equal_audio_under_other_keys_is_counted(tmp_path: Path) -> None:
    again = replace(make_sample(3), key="again")
    sets = [
        write_dataset(tmp_path / "a", [[make_sample(3), make_sample(4)]]),
        write_dataset(tmp_path / "b", [[again]]),
    ]
    found, _ = run(sets, tmp_path / "both")
    assert found.n_equal_audio == 1


def test_ids_of_classes_are_joined(pair: list[Dataset], tmp_path: Path) -> None:
    one, two = told(pair[0], label_ids=("d", "c", "o")), told(pair[1], label_ids=("o", "d", "b"))
    _, new = run([one, two], tmp_path / "x")
    assert new.manifest.label_ids == ("d", "c", "o", "b")
    _, new = run([one, pair[1]], tmp_path / "y")
    assert new.manifest.label_ids is None  # one of them has none
    with pytest.raises(DatasetError, match=r"class 'owl' must have one id, found o and, in .*, x"):
        run([one, told(two, label_ids=("x", "d", "b"))], tmp_path / "z")


def test_shared_keys_are_refused_and_named(pair: list[Dataset], tmp_path: Path) -> None:
    other = write_dataset(tmp_path / "other", [[make_sample(2), make_sample(99), make_sample(1)]])
    with pytest.raises(DatasetError, match=r"found 2 in both .*: clip-0001, clip-0002; take"):
        run([*pair, other], tmp_path / "out")
    many = write_dataset(tmp_path / "many", [[make_sample(n) for n in range(9)]])
    with pytest.raises(DatasetError, match=r"found 9 in both .*clip-0004 and 4 more"):
        run([many, many], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_sets_that_do_not_agree_are_refused(pair: list[Dataset], tmp_path: Path) -> None:
    def other(spec: FeatureSpec = SPEC, **changes: Any) -> Dataset:
        features = {"features": spec, "feature_hash": spec.hash, "code": spec.code}
        return told(pair[1], **features, **changes)

    out = tmp_path / "out"
    with pytest.raises(DatasetError, match=r"features differ: .* has hop_length=200"):
        run([pair[0], other(SPEC.model_copy(update={"hop_length": 200}))], out)
    with pytest.raises(DatasetError, match=r"stored alike, found float16 in .* and uint8 in"):
        run([pair[0], other(SPEC.model_copy(update={"storage_dtype": "uint8"}))], out)
    with pytest.raises(DatasetError, match=r"waveforms, found them in .*/two and not in .*/one"):
        run([pair[0], other(has_audio=True)], out)
    with pytest.raises(ValueError, match="`merge` needs two or more data sets, found 1"):
        run(pair[:1], out)
    assert not out.exists()


def test_an_altered_tar_is_not_copied(pair: list[Dataset], tmp_path: Path) -> None:
    shutil.copytree(pair[1].folder, tmp_path / "two")
    path = tmp_path / "two" / pair[1].manifest.shards[0].name
    data = bytearray(path.read_bytes())
    data[1_000] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShardError, match=r"two/train-000000\.tar is altered"):
        run([pair[0], open_dataset(tmp_path / "two")], tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_place_that_is_not_empty_is_refused(pair: list[Dataset]) -> None:
    with pytest.raises(DatasetError, match="must be new or empty"):
        run(pair, pair[0].folder)


def test_all_three_verbs_work_in_an_object_store(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def melstream(*words: str) -> dict[str, Any]:
        monkeypatch.setattr("sys.argv", ["melstream", *words, "--json"])
        with pytest.raises(SystemExit, match="0"):
            cli.main()
        return json.loads(capsys.readouterr().out)

    for name, numbers in (("one", range(4)), ("two", range(4, 9))):
        path = write_tar(tmp_path / f"{name}.tar", clips(numbers))
        open_storage(f"{bucket.url}/{name}").write(path.name, path.read_bytes())
        found = melstream(
            "index", f"{bucket.url}/{name}", "--features", "conformer64", "--label-field", "cls"
        )
        assert (found["n_samples"], found["logmel_field"]) == (len(numbers), "mel.npy")
    both = f"{bucket.url}/both"
    found = melstream("merge", f"{bucket.url}/one", f"{bucket.url}/two", "--out", both)
    assert found["n_shards"] == 2
    found = melstream("subset", both, "--out", f"{bucket.url}/cats", "--label", "cat")
    assert (found["n_samples"], found["n_from"]) == (4, 9)
    dataset = open_dataset(f"{bucket.url}/cats")
    assert [dataset.key(row) for row in range(4)] == ["clip1", "clip3", "clip5", "clip7"]
    assert set(find_problems(dataset, full=True)) == {None}


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("index", "{tmp}/none", "--features", "conformer64"), 2, "must hold the tars to index"),
        (("index", "{tmp}/cut", "--features", "conformer64"), 1, "is cut"),
        (("index", "{tmp}/cut"), 2, "Missing option '--features'"),
        (("subset", "{pair}/one", "--out", "{tmp}/x", "--label", "fox"), 2, "found 'fox'"),
        (("subset", "{pair}/one"), 2, "Missing option '--out'"),
        (("merge", "{pair}/one", "--out", "{tmp}/x"), 2, "needs two or more data sets"),
        (("merge", "{pair}/one", "{pair}/one", "--out", "{tmp}/x"), 2, "keys must be unique"),
    ],
)
def test_a_refusal_has_the_right_exit_code(
    pair: list[Dataset],
    tmp_path: Path,
    words: tuple[str, ...],
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "cut").mkdir()
    shutil.copy(pair[0].folder / "train-000000.tar", tmp_path / "cut")
    with (tmp_path / "cut" / "train-000000.tar").open("r+b") as file:
        file.truncate(2_000)
    place = str(pair[0].folder.parent)
    filled = [word.replace("{tmp}", str(tmp_path)).replace("{pair}", place) for word in words]
    monkeypatch.setattr("sys.argv", ["melstream", *filled])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == code
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_the_three_verbs_say_what_they_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def melstream(*words: object) -> str:
        monkeypatch.setattr("sys.argv", ["melstream", *map(str, words)])
        with pytest.raises(SystemExit, match="0"):
            cli.main()
        return capsys.readouterr().out

    for name, numbers in (("one", range(4)), ("two", range(4, 9))):
        write_tar(tmp_path / name / "a.tar", [("LICENSE", b""), *clips(numbers)])
        out = melstream("index", tmp_path / name, "--features", "conformer64")
        assert "log-mels from `mel.npy`\nlabels from `labels`: 0 classes" in out
        assert "1 members ignored: no sample" in out
    out = melstream("merge", tmp_path / "one", tmp_path / "two", "--out", tmp_path / "both")
    assert "both: 9 samples in 2 shards" in out
    out = melstream("subset", tmp_path / "both", "--out", tmp_path / "x", "--where", "n_frames>22")
    assert "6 samples left after --where n_frames>22" in out
