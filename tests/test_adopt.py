"""Tars made elsewhere become a data set as they are, or the error says what to change."""

import hashlib
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import SPEC, make_sample, read_with_webdataset
from foreign_tars import Members, clips, index_tars, logmel, npy, write_tar

from melstream.shards.dataset import Dataset, open_dataset
from melstream.shards.errors import DatasetError, ShardError
from melstream.shards.index import COLUMNS
from melstream.shards.keys import make_key
from melstream.shards.spec import FeatureSpec
from melstream.shards.verify import find_problems
from melstream.tools.feature_file import read_features


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """Seven samples in two tars."""
    folder = tmp_path / "foreign"
    write_tar(folder / "part-0.tar", clips(range(4)))
    write_tar(folder / "part-1.tar", clips(range(4, 7)), tarfile.PAX_FORMAT)
    return folder


def test_what_was_stored_is_served_and_the_tars_are_untouched(foreign: Path) -> None:
    before = {path: path.read_bytes() for path in foreign.glob("*.tar")}
    found = index_tars(foreign, label_field="cls")
    assert (found.logmel_field, found.n_unlabelled) == ("mel.npy", 0)
    assert {path: path.read_bytes() for path in foreign.glob("*.tar")} == before
    dataset = open_dataset(foreign)
    assert len(dataset) == 7
    assert dataset.manifest.label_names == ("cat", "dog")
    assert dataset.manifest.build.corpus == "index"
    for n in range(7):
        assert dataset.key(n) == f"clip{n}"
        np.testing.assert_array_equal(dataset.read_stored(n), logmel(n, 20 + n))
        assert dataset.index.labels(n).tolist() == ([0, 1] if n % 2 else [1])
    values = np.concatenate([logmel(n, 20 + n).astype(np.float64) for n in range(7)])
    np.testing.assert_allclose(dataset.manifest.band_mean, values.mean(0), rtol=1e-9)
    np.testing.assert_allclose(dataset.manifest.band_std, values.std(0), rtol=1e-9)
    for shard in dataset.manifest.shards:
        assert shard.sha256 == hashlib.sha256((foreign / shard.name).read_bytes()).hexdigest()


def test_what_the_tars_do_not_tell_is_unknown(foreign: Path) -> None:
    index_tars(foreign)
    index = open_dataset(foreign).index
    np.testing.assert_allclose(index.duration_s, index.n_frames / 100)
    for name in ("peak", "rms_dbfs", "clipped_share", "bandwidth_hz", "start_s"):
        assert np.isnan(index.column(name)).all()
    for name in ("sample_rate", "n_channels", "audio_hash", "flac_size"):
        assert not index.column(name).any()
    assert set(index.split.tolist()) == {-1}


def test_verify_reads_every_byte_and_says_where_a_tar_is_altered(foreign: Path) -> None:
    index_tars(foreign)
    assert list(find_problems(open_dataset(foreign), full=True)) == [None, None]
    path = foreign / "part-1.tar"
    data = bytearray(path.read_bytes())
    data[data.index(b"\xff" * 20)] = 0  # in the audio, which the index does not know
    path.write_bytes(data)
    problems = list(find_problems(open_dataset(foreign), full=True))
    assert problems[0] is None
    assert "part-1.tar is altered" in str(problems[1])


def test_samples_without_json_are_served(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [(f"x{n}.npy", npy(logmel(n))) for n in range(3)])
    found = index_tars(tmp_path)
    dataset = open_dataset(tmp_path)
    assert (found.logmel_field, found.n_unlabelled) == ("npy", 3)
    assert not dataset.index.json_size.any()
    assert list(find_problems(dataset, full=True)) == [None]
    np.testing.assert_array_equal(dataset.read_stored(2), logmel(2))
    card = (tmp_path / "README.md").read_text()
    assert 'dataset[0]["__key__"], dataset[0]["npy"]' in card
    assert "made elsewhere" in card


def test_a_lost_index_is_made_again_as_it_was(
    built: Callable[[str], Dataset], tmp_path: Path
) -> None:
    old = built("eval")
    for shard in old.manifest.shards:
        shutil.copy(old.folder / shard.name, tmp_path)
    index_tars(tmp_path)
    new = open_dataset(tmp_path)
    assert new.manifest.label_names == old.manifest.label_names
    assert new.manifest.ids_hash == old.manifest.ids_hash
    for name in COLUMNS:
        np.testing.assert_array_equal(new.index.column(name), old.index.column(name), name)
    np.testing.assert_allclose(new.manifest.band_mean, old.manifest.band_mean, rtol=1e-9)
    assert new.read_info(3) == old.read_info(3)


def test_an_adopted_set_reads_the_same_with_plain_webdataset(foreign: Path) -> None:
    index_tars(foreign)
    dataset = open_dataset(foreign)
    read = read_with_webdataset(dataset)
    for row, sample in enumerate(read):
        np.testing.assert_array_equal(sample["mel.npy"], dataset.read_stored(row))


def test_codes_are_served_where_the_spec_says_so(tmp_path: Path) -> None:
    spec = FeatureSpec(storage_dtype="uint8")
    assert spec.code is not None
    codes = spec.code.encode(logmel(0, dtype="float32"))
    write_tar(tmp_path / "a.tar", [("x.logmel.npy", npy(codes))])
    with pytest.raises(ShardError, match='state `storage_dtype = "uint8"` in a file'):
        index_tars(tmp_path)
    index_tars(tmp_path, spec)
    dataset = open_dataset(tmp_path)
    np.testing.assert_array_equal(dataset.read_stored(0), codes)
    np.testing.assert_allclose(
        dataset.manifest.band_mean, spec.code.decode(codes).mean(0), rtol=1e-5
    )


def test_names_that_are_no_keys_are_made_keys_on_request(tmp_path: Path) -> None:
    names = ["./plain", "dir.d/x", "ä b"]
    write_tar(tmp_path / "a.tar", [(f"{name}.logmel.npy", npy(logmel(0))) for name in names])
    with pytest.raises(ShardError, match=r"found 'dir\.d/x'.*add `--make-keys`") as caught:
        index_tars(tmp_path)
    assert caught.value.shard == "a.tar"
    index_tars(tmp_path, makes_keys=True)
    dataset = open_dataset(tmp_path)
    keys = [dataset.key(row) for row in range(3)]
    assert keys == ["plain", make_key("dir.d/x"), make_key("ä b")]
    assert list(find_problems(dataset, full=True)) == [None]


def test_members_that_no_reader_takes_are_counted(tmp_path: Path) -> None:
    extra = [("LICENSE", b"free"), ("._x.npy", b"mac"), ("__meta.json__", b"{}")]
    write_tar(tmp_path / "a.tar", [*extra, ("x.npy", npy(logmel(0)))])
    assert index_tars(tmp_path).manifest.n_ignored == {"no sample": 3}


def test_folders_in_a_tar_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.npy").write_bytes(npy(logmel(0)))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "in", ".")
    index_tars(tmp_path)
    assert open_dataset(tmp_path).key(0) == "x"


def test_a_readme_of_somebody_else_stays(foreign: Path) -> None:
    (foreign / "README.md").write_text("mine")
    index_tars(foreign)
    assert (foreign / "README.md").read_text() == "mine"


def test_an_index_that_was_interrupted_is_written_again(
    foreign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("melstream.tools.finish.write_manifest", killed)
        with pytest.raises(KeyboardInterrupt):
            index_tars(foreign)
    with pytest.raises(DatasetError, match="no data set"):
        open_dataset(foreign)
    index_tars(foreign)
    assert list(find_problems(open_dataset(foreign), full=True)) == [None, None]
    with pytest.raises(DatasetError, match=r"is a data set already; remove .*dataset\.json"):
        index_tars(foreign)


@pytest.mark.parametrize("n_left", [0, 300, 512 * 3, 512 * 5 + 17])
def test_a_tar_that_is_cut_is_an_error_wherever_it_is_cut(foreign: Path, n_left: int) -> None:
    path = foreign / "part-1.tar"
    path.write_bytes(path.read_bytes()[:n_left])
    with pytest.raises(ShardError, match=r"part-1\.tar") as caught:
        index_tars(foreign)
    assert caught.value.shard == "part-1.tar"


def test_every_cut_of_a_tar_before_its_end_mark_is_an_error(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "a.tar", clips(range(2))).read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        last = tar.getmembers()[-1]
    end = last.offset_data + -(-last.size // 512) * 512
    for n_left in range(0, end + 1, 256):
        (tmp_path / "a.tar").write_bytes(whole[:n_left])
        with pytest.raises(ShardError, match=r"is cut|must be a tar"):
            index_tars(tmp_path)


def test_every_flipped_byte_of_a_header_is_an_error(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "a.tar", clips(range(1))).read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        starts = [member.offset for member in tar]
    for start in starts:
        for place in (0, 3, 126, 150, 156, 400):
            data = bytearray(whole)
            data[start + place] ^= 1
            (tmp_path / "a.tar").write_bytes(data)
            with pytest.raises(ShardError, match=r"header after .* is damaged|must be a tar"):
                index_tars(tmp_path)


def test_joined_tars_are_not_read_in_part(foreign: Path) -> None:
    path = foreign / "part-0.tar"
    path.write_bytes(path.read_bytes() + (foreign / "part-1.tar").read_bytes())
    with pytest.raises(ShardError, match="joined tars are read up to the first end mark"):
        index_tars(foreign)


X = ("x.logmel.npy", npy(logmel(0)))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([X, ("y.npy", npy(logmel(1)))], r"a\.tar, y: .*`--logmel-field` must be one of npy"),
        ([("x.json", b"{}")], "found none among json"),
        ([("x.a.npy", b""), ("x.b.npy", b"")], r"found several \(a\.npy, b\.npy\); say which"),
        ([X, ("y.logmel.npy", X[1]), ("x.json", b"{}")], "a key must be unique, found it twice"),
        ([X, X], "found `logmel.npy` twice"),
        ([X, ("x.pyd", b"")], "a.tar, x: .*without unpickling, found `pyd`"),
        ([X, ("x.info.PKL", b"")], "without unpickling, found `info.PKL`"),
        ([("x.npy", b"no array")], "must be a .npy array"),
        ([("x.npy", npy(logmel(0, dtype="float32")))], "must be float16, found float32.*astype"),
        ([("x.npy", npy(logmel(0, dtype=">f2")))], "must be float16, found >f2"),
        ([("x.npy", npy(np.array([[{}]]), allow_pickle=True))], "found pickled Python objects"),
        ([("x.npy", npy(np.asfortranarray(logmel(0))))], "must be in C order"),
        ([("x.npy", npy(logmel(0).T.copy()))], r"found \(64, 20\); it stands on its side"),
        ([("x.npy", npy(logmel(0)[:, :40].copy()))], r"n_mels=64 .*found \(20, 40\); state"),
        ([("x.npy", npy(logmel(0)[None]))], "one array per clip"),
        ([("x.npy", npy(logmel(0)[:0]))], "at least one frame"),
        ([("x.npy", X[1][:-2])], "must have 2560 bytes after its header"),
        ([("x.npy", X[1] + b"..")], "must have 2560 bytes after its header"),
        ([("x.npy", npy(logmel(0) * np.float16(np.nan)))], "must be finite"),
        ([X, ("x.json", b"{")], "`json` must be JSON"),
        ([X, ("x.json", b"[" * 100_000)], "`json` must be JSON"),
        ([X, ("x.json", b'{"labels": [1]}')], r"name of a class or a list of names, found \[1\]"),
        ([], "must hold a sample|must be a tar"),
    ],
)
def test_a_sample_that_cannot_be_served_names_shard_key_and_remedy(
    tmp_path: Path, members: Members, message: str
) -> None:
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(ShardError, match=message) as caught:
        index_tars(tmp_path)
    assert caught.value.shard == "a.tar"
    assert not (tmp_path / "dataset.json").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_a_link_or_device_is_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        header = tarfile.TarInfo("x.npy")
        header.type, header.linkname = kind, "/etc/passwd"
        tar.addfile(header)
    with pytest.raises(ShardError, match=r"must be plain files, found 'x\.npy'"):
        index_tars(tmp_path)


def test_a_key_in_two_shards_is_refused(foreign: Path) -> None:
    write_tar(foreign / "part-2.tar", clips([5]))
    with pytest.raises(DatasetError, match=r"clip5; the first is in part-1\.tar and part-2\.tar"):
        index_tars(foreign)


def test_a_label_field_that_no_json_has_is_refused(foreign: Path) -> None:
    with pytest.raises(DatasetError, match="found 'class' in none; the first sample has cls, id"):
        index_tars(foreign, label_field="class")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.tar.gz", "must not be compressed"),
        ("a.b.tar", "a shard's name must be letters"),
        ("sub/a.tar", "index the folder of sub/a.tar itself"),
        ("a.txt", "found none; name the folder"),
    ],
)
def test_a_folder_without_tars_to_index_is_refused(tmp_path: Path, name: str, message: str) -> None:
    write_tar(tmp_path / name, [X])
    with pytest.raises(DatasetError, match=message):
        index_tars(tmp_path)


def test_features_are_stated_by_name_or_file(tmp_path: Path) -> None:
    assert read_features("conformer64") == SPEC
    (tmp_path / "f.toml").write_text('n_mels = 80\nwindow = "povey"\n')
    (tmp_path / "f.json").write_text('{"n_mels": 80, "window": "povey"}')
    expected = FeatureSpec(n_mels=80, window="povey")
    assert read_features(str(tmp_path / "f.toml")) == expected
    assert read_features(str(tmp_path / "f.json")) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("kaldi40", None, "must be one of conformer64, kaldi128 or a .json or .toml file"),
        ("f.json", "{", "must be JSON"),
        ("f.toml", "=", "must be TOML"),
        ("f.toml", "mels = 80", "`mels`: Extra inputs.*its fields are sample_rate"),
        ("f.json", '{"fmax": 9e9}', "half the sample rate"),
    ],
)
def test_features_that_cannot_be_are_refused(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
        name = str(tmp_path / name)
    with pytest.raises(ValueError, match=message):
        read_features(name)


def test_the_json_of_somebody_else_is_not_read_as_ours(foreign: Path) -> None:
    index_tars(foreign, label_field="cls")
    with pytest.raises(ShardError, match=r"must be melstream's own, found another.*read_member"):
        open_dataset(foreign).read_info(0)


@pytest.mark.parametrize(
    "figures",
    [
        {"audio_hash": "xyz"},
        {"audio_hash": "-000000000000001"},
        {"sample_rate": 2**40},
        {"n_channels": 70_000},
        {"clipped_share": 7.0},
        {"duration_s": -1.0},
    ],
)
def test_a_json_of_our_form_with_impossible_figures_is_somebody_elses(
    tmp_path: Path, figures: dict[str, object]
) -> None:
    info = make_sample(0).info.model_dump() | figures
    members = [("a.json", json.dumps(info).encode()), ("a.mel.npy", npy(logmel(0)))]
    write_tar(tmp_path / "a.tar", members)
    index_tars(tmp_path)
    index = open_dataset(tmp_path).index
    assert index.audio_hash.tolist() == [0]
    assert index.sample_rate.tolist() == [0]
    assert np.isnan(index.clipped_share).all()
