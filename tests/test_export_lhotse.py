"""What lhotse loads from an export is what the data set holds."""

import dataclasses
import gc
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import lhotse
import numpy as np
import pytest
from conftest import make_sample, write_dataset
from foreign_tars import clips, index_tars, write_tar
from lhotse import CutSet

from melstream.shards.dataset import Dataset, open_dataset
from melstream.shards.errors import ShardError
from melstream.tools.export_lhotse import export_cuts


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Three samples: with two labels, with an event, without any."""
    samples = [
        make_sample(n, n_frames=30 + n, label_ids=ids) for n, ids in enumerate([(0, 2), (1,), ()])
    ]
    info = samples[1].info.model_copy(
        update={"start_s": 7.5, "split": "fold-2", "events": ((0.05, 0.2, "class 1"),)}
    )
    samples[1] = dataclasses.replace(samples[1], info=info)
    return write_dataset(tmp_path / "data", [samples[:2], samples[2:]], n_classes=3)


def test_lhotse_loads_every_frame(built: Callable[[str], Dataset], tmp_path: Path) -> None:
    dataset = built("eval")
    done: list[int] = []
    path = export_cuts(dataset, tmp_path / "cuts", done.append)
    assert done == list(range(1, len(dataset) + 1))
    cuts = list(CutSet.from_file(path))
    assert [cut.id for cut in cuts] == [dataset.key(row) for row in range(len(dataset))]
    for row, cut in enumerate(cuts):
        lhotse.validate(cut, read_data=True)
        features = cut.load_features()
        assert features.dtype == np.float32
        assert features.shape == (cut.num_frames, cut.num_features)
        np.testing.assert_array_equal(features, dataset.read_logmel(row))


@pytest.mark.parametrize("has_json", [True, False])
def test_tars_from_elsewhere_are_described_by_the_index(tmp_path: Path, has_json: bool) -> None:
    members = [member for member in clips([1, 2]) if has_json or member[0].endswith(".npy")]
    write_tar(tmp_path / "tars" / "a.tar", members)
    settings = {"label_field": "cls"} if has_json else {}
    adopted = open_dataset(index_tars(tmp_path / "tars", **settings).url)
    one, two = CutSet.from_file(export_cuts(adopted, tmp_path / "cuts"))
    assert [s.text for s in one.supervisions] == (["cat", "dog"] if has_json else [])
    assert [s.text for s in two.supervisions] == (["dog"] if has_json else [])
    np.testing.assert_array_equal(one.load_features(), adopted.read_logmel(0))
    with pytest.raises(ShardError, match=r"must be melstream's own, found (none|another)"):
        adopted.read_info(0)


def test_labels_times_and_origin_are_kept(dataset: Dataset, tmp_path: Path) -> None:
    one, other, bare = CutSet.from_file(export_cuts(dataset, tmp_path / "cuts"))
    assert [(s.text, s.start, s.duration) for s in one.supervisions] == [
        ("class 0", 0.0, 0.3),
        ("class 2", 0.0, 0.3),
    ]
    assert [(s.text, s.start, s.duration) for s in other.supervisions] == [("class 1", 0.05, 0.15)]
    assert (other.start_s, other.split_name, other.source) == (7.5, "fold-2", "somewhere/1.flac")
    assert bare.supervisions == []
    features = other.features
    assert (features.frame_shift, features.sampling_rate) == (0.01, 16_000)
    assert features.type == "melstream-logmel"


def test_features_load_without_melstream_and_from_any_folder(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = export_cuts(dataset, Path("cuts")).resolve()
    code = (
        "import sys, lhotse; cuts = lhotse.CutSet.from_file(sys.argv[1]); "
        "print(*[cut.load_features().shape for cut in cuts], 'melstream' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-Ic", code, str(path)],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    assert result.stdout == "(30, 64) (31, 64) (32, 64) False\n"


def test_cuts_go_on_into_shar(dataset: Dataset, tmp_path: Path) -> None:
    cuts = CutSet.from_file(export_cuts(dataset, tmp_path / "cuts"))
    (tmp_path / "shar").mkdir()
    cuts.to_shar(tmp_path / "shar", fields={"features": "numpy"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its tars to the collector
        loaded = [cut.load_features() for cut in CutSet.from_shar(in_dir=tmp_path / "shar")]
        gc.collect()
    for row, features in enumerate(loaded):
        np.testing.assert_array_equal(features, dataset.read_logmel(row))


def test_the_same_data_give_the_same_bytes(dataset: Dataset, tmp_path: Path) -> None:
    first = export_cuts(dataset, tmp_path / "cuts").read_bytes()
    (tmp_path / "cuts" / "cuts.jsonl.gz").unlink()
    assert export_cuts(dataset, tmp_path / "cuts").read_bytes() == first
    assert sorted(os.listdir(tmp_path / "cuts")) == ["cuts.jsonl.gz", "features", "features.json"]


def test_cuts_that_are_there_are_kept(dataset: Dataset, tmp_path: Path) -> None:
    export_cuts(dataset, tmp_path / "cuts")
    with pytest.raises(ValueError, match=r"must hold no cuts\.jsonl\.gz; remove it, or choose"):
        export_cuts(dataset, tmp_path / "cuts")
