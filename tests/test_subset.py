"""A subset is what was asked for, byte for byte; a selection that cannot be says why."""

import itertools
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_sample, replace_index, write_dataset
from foreign_tars import clips, index_tars, write_tar

from melstream.shards.dataset import Dataset, open_dataset
from melstream.shards.errors import DatasetError, ShardError
from melstream.shards.index import COLUMNS
from melstream.shards.storage import open_storage
from melstream.shards.verify import find_problems
from melstream.tools.selection import Bound, Selection
from melstream.tools.subset import AS_BEFORE, Limits, Subset, cut, subset


def run(
    dataset: Dataset, out: Path, limits: Limits = AS_BEFORE, **selection: Any
) -> tuple[Subset, Dataset]:
    if "bounds" in selection:
        selection["bounds"] = tuple(map(Bound.parse, selection["bounds"]))
    found = subset(
        dataset, open_storage(out), Selection(**selection), lambda done, note: None, limits
    )
    return found, open_dataset(out)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """60 samples of 20 to 79 frames in 3 shards; labels 0, 1, 2 in turn; only to read."""
    samples = [make_sample(n, n_frames=20 + n, label_ids=(n % 3,)) for n in range(60)]
    shards = [samples[:7], samples[7:50], samples[50:]]
    return write_dataset(tmp_path_factory.mktemp("set") / "small", shards, n_classes=3)


def test_labels_that_the_manifest_does_not_name_are_refused(small: Dataset, tmp_path: Path) -> None:
    shutil.copytree(small.folder, tmp_path / "small")
    columns = {name: np.array(small.index.column(name)) for name in COLUMNS}
    columns["label_ids"][7] = 3
    replace_index(open_dataset(tmp_path / "small"), columns)
    with pytest.raises(DatasetError, match="`label_ids` must be labels of the manifest, found 3"):
        run(open_dataset(tmp_path / "small"), tmp_path / "out", labels=("class 1",))
    assert not (tmp_path / "out").exists()


def rows_of(old: Dataset, new: Dataset) -> list[int]:
    """Rows of the samples of ``new`` in ``old``, after comparing all that both say of them."""
    keys = old.index.sample_keys().tolist()
    rows = [keys.index(key) for key in new.index.sample_keys().tolist()]
    places = [f"{member}_offset" for member in ("logmel", "json", "flac")]
    skipped = {"key", "shard", "label_indptr", "label_ids", *places}
    for name in set(COLUMNS) - skipped:
        np.testing.assert_array_equal(new.index.column(name), old.index.column(name)[rows], name)
    for place, row in enumerate(rows):
        assert new.index.labels(place).tolist() == old.index.labels(row).tolist()
        for member in ("logmel", "json"):
            assert new.read_member(place, member) == old.read_member(row, member)
    assert new.manifest.label_names == old.manifest.label_names
    assert set(find_problems(new, full=True)) == {None}
    return rows


def test_a_label_keeps_its_samples_and_every_class_its_number(
    small: Dataset, tmp_path: Path
) -> None:
    _, new = run(small, tmp_path / "out", labels=("class 2",))
    assert rows_of(small, new) == list(range(2, 60, 3))
    assert new.manifest.label_names == ("class 0", "class 1", "class 2")
    stored = np.concatenate([new.read_logmel(row).astype(np.float64) for row in range(len(new))])
    np.testing.assert_allclose(new.manifest.band_mean, stored.mean(0), rtol=1e-9)
    np.testing.assert_allclose(new.manifest.band_std, stored.std(0), atol=1e-6)
    assert new.manifest.duration_s == pytest.approx(len(stored) / 100)


def test_any_of_several_labels_is_enough(small: Dataset, tmp_path: Path) -> None:
    _, new = run(small, tmp_path / "out", labels=("class 2", "class 0"))
    assert rows_of(small, new) == [n for n in range(60) if n % 3 != 1]


def test_a_label_may_be_the_corpus_own_id(small: Dataset, tmp_path: Path) -> None:
    ids = {"label_ids": ("/m/a", "/m/b", "/m/c")}
    old = Dataset(small.storage, small.manifest.model_copy(update=ids))
    _, new = run(old, tmp_path / "out", labels=("/m/b",))
    assert rows_of(old, new) == list(range(1, 60, 3))
    assert new.manifest.label_ids == ids["label_ids"]


def test_a_split_keeps_its_samples(tmp_path: Path) -> None:
    samples = [replace(make_sample(n), split=n % 3 - 1) for n in range(9)]
    old = write_dataset(tmp_path / "old", [samples])
    split_names = {"split_names": ("fit", "test")}
    old = Dataset(old.storage, old.manifest.model_copy(update=split_names))
    _, new = run(old, tmp_path / "out", splits=("test",))
    assert rows_of(old, new) == [2, 5, 8]
    assert new.manifest.split_names == ("fit", "test")


def test_ids_are_kept_or_left_out(small: Dataset, tmp_path: Path) -> None:
    (tmp_path / "ids.csv").write_text("# a comment\nclip-0007,dog\nclip-0003\nelsewhere\nnaïve\n")
    ids = str(tmp_path / "ids.csv")
    found, new = run(small, tmp_path / "in", ids=ids)
    assert rows_of(small, new) == [3, 7]
    assert found.selected.steps == (("--ids (2 of its 4 ids are not here: elsewhere …)", 2),)
    _, new = run(small, tmp_path / "not-in", not_ids=ids)
    assert rows_of(small, new) == sorted({*range(60)} - {3, 7})


def test_bounds_on_figures_must_all_hold(small: Dataset, tmp_path: Path) -> None:
    found, new = run(
        small,
        tmp_path / "out",
        labels=("class 0",),
        bounds=("duration_s>=0.5", "n_frames < 70", "n_labels==1", "rms_dbfs > -3e1"),
    )
    assert rows_of(small, new) == list(range(30, 50, 3))
    assert [n for _, n in found.selected.steps] == [20, 10, 7, 7, 7]


def test_a_figure_that_is_unknown_is_within_no_bound(tmp_path: Path) -> None:
    samples = [make_sample(n) for n in range(4)]
    quiet = [replace(s, info=s.info.model_copy(update={"start_s": 5.0})) for s in samples[:2]]
    old = write_dataset(tmp_path / "old", [[*quiet, *samples[2:]]])
    _, new = run(old, tmp_path / "out", bounds=("start_s!=7",))
    assert rows_of(old, new) == [0, 1]


def test_of_samples_with_the_same_audio_the_first_is_kept(tmp_path: Path) -> None:
    hashes = ["aa", "bb", "aa", "cc", "bb", "aa", "00", "00"]
    samples = [
        replace(s, info=s.info.model_copy(update={"audio_hash": found.rjust(16, "0")}))
        for s, found in zip(map(make_sample, range(8)), hashes, strict=True)
    ]
    old = write_dataset(tmp_path / "old", [samples[:3], samples[3:]])
    found, new = run(old, tmp_path / "out", drops_duplicates=True)
    assert rows_of(old, new) == [0, 1, 3, 6, 7]  # 0 says that the hash is unknown
    assert found.selected.n_duplicates == 3
    (tmp_path / "ids").write_text("clip-0000\n")
    found, new = run(old, tmp_path / "rest", not_ids=str(tmp_path / "ids"), drops_duplicates=True)
    assert rows_of(old, new) == [1, 2, 3, 6, 7]


def test_the_same_command_gives_the_same_bytes(small: Dataset, tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(small, tmp_path / name / "set", labels=("class 1",))
    a, b = (
        {path.relative_to(top): path.read_bytes() for path in top.rglob("*") if path.is_file()}
        for top in (tmp_path / "a", tmp_path / "b")
    )
    assert a == b


def test_shards_are_cut_by_the_limits(small: Dataset, tmp_path: Path) -> None:
    _, new = run(small, tmp_path / "samples", Limits(max_samples=7))
    assert [s.n_samples for s in new.manifest.shards] == [7, 7, 6, 7, 7, 6, 7, 7, 6]
    assert rows_of(small, new) == list(range(60))
    _, new = run(small, tmp_path / "bytes", Limits(max_bytes=50_000))
    assert all(s.size_bytes <= 50_000 + 10_240 for s in new.manifest.shards)
    assert [s.name for s in new.manifest.shards][:2] == ["bytes-000000.tar", "bytes-000001.tar"]


@pytest.mark.parametrize("seed", range(20))
def test_cut_shards_hold_every_sample_within_the_limits(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 100, rng.integers(1, 400))
    max_samples, max_bytes = int(rng.integers(1, 50)), int(rng.integers(100, 2_000))
    bounds = cut(sizes, max_samples, max_bytes)
    assert (bounds[0], bounds[-1]) == (0, len(sizes))
    for first, end in itertools.pairwise(bounds):
        assert 0 < end - first <= max_samples
        assert sizes[first:end].sum() <= max_bytes


def test_an_adopted_set_has_subsets_under_the_usual_names(tmp_path: Path) -> None:
    write_tar(tmp_path / "foreign" / "a.tar", clips(range(6)))
    index_tars(tmp_path / "foreign", label_field="cls")
    old = open_dataset(tmp_path / "foreign")
    _, new = run(old, tmp_path / "out", labels=("cat",))
    assert rows_of(old, new) == [1, 3, 5]
    with pytest.raises(ValueError, match="`--drop-duplicates` needs hashes of the audio"):
        run(old, tmp_path / "no", drops_duplicates=True)
    with pytest.raises(ValueError, match="`peak`, which is unknown for every sample"):
        run(old, tmp_path / "no", bounds=("peak<1",))


def test_a_built_set_has_subsets_of_subsets(
    built: Callable[[str], Dataset], tmp_path: Path
) -> None:
    old = built("eval")
    name = old.manifest.label_names[0]
    _, some = run(old, tmp_path / "some", bounds=("duration_s>0",))
    _, new = run(some, tmp_path / "fewer", labels=(name,))
    rows = rows_of(old, new)
    assert rows == [r for r in range(len(old)) if 0 in old.index.labels(r)]
    assert new.manifest.build.corpus == "subset of subset of folder"
    card = (tmp_path / "fewer" / "README.md").read_text()
    assert re.search(rf"A subset of some .*--label {name}", card)
    assert "Every clip of the corpus" not in card


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"labels": ("clas 1",)}, r"`--label` must be a name .*class 1.*found 'clas 1'"),
        ({"splits": ("test",)}, r"`--split` must be a name in the data set \(none"),
        ({"ids": "{tmp}/nothing"}, "`--ids` must be a text file with an id a line, found none at"),
        ({"not_ids": "{tmp}/others"}, r"`--not-ids` must name keys .*clip-0000, found none of"),
        ({"ids": "{tmp}/empty"}, "must hold an id a line, found none"),
        (
            {"bounds": ("n_frames>1000",)},
            r"60: 0 after --where n_frames>1000; loosen",
        ),
    ],
)
def test_a_selection_that_cannot_be_is_refused_before_anything_is_written(
    small: Dataset, tmp_path: Path, selection: dict[str, Any], message: str
) -> None:
    (tmp_path / "others").write_text("x\ny\n")
    (tmp_path / "empty").write_text("\n")
    filled = json.loads(json.dumps(selection).replace("{tmp}", str(tmp_path)))
    filled = {k: v if isinstance(v, str) else tuple(v) for k, v in filled.items()}
    with pytest.raises(ValueError, match=message):
        run(small, tmp_path / "out", **filled)
    assert not (tmp_path / "out").exists()


def test_a_name_that_is_not_there_is_told_how_many_there_are(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "set", [[make_sample(0)]], n_classes=14)
    message = r"must be a name .*\(class 0, .*, class 9 and 4 more\), found 'xyz'"
    with pytest.raises(ValueError, match=message):
        run(dataset, tmp_path / "out", labels=("xyz",))


@pytest.mark.parametrize(
    "text",
    ["", "peak", "peak>", "peak=1", "peak=>1", "loudness>1", "audio_hash==1", "peak>nan",
     "peak>1 or 1", "__class__>1", "peak>1.2.3", "peak > 1e"],
)  # fmt: skip
def test_a_bound_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="`--where` must"):
        Bound.parse(text)


def test_a_place_that_is_not_empty_is_refused(small: Dataset, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("mine")
    for place in (tmp_path / "out", small.folder):
        with pytest.raises(DatasetError, match=r"must be new or empty, found .*another --out"):
            run(small, place)
    assert (tmp_path / "out" / "precious.txt").read_text() == "mine"


def test_an_altered_shard_leaves_nothing(small_dataset: Dataset, tmp_path: Path) -> None:
    shard = small_dataset.folder / small_dataset.manifest.shards[3].name
    data = bytearray(shard.read_bytes())
    data[1_200] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ShardError, match="hash differs"):
        run(small_dataset, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    run(small_dataset, tmp_path / "out", bounds=("n_frames<40",))  # of the shards before


def test_an_interrupt_leaves_no_data_set(
    small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("melstream.tools.finish.write_manifest", killed)
        with pytest.raises(KeyboardInterrupt):
            run(small, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    run(small, tmp_path / "out")
