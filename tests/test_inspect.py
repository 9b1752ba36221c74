"""What inspect says of a data set equals what numpy finds in its tars."""

import json
from collections import Counter
from collections.abc import Callable
from importlib import resources

import numpy as np
import pytest
from conftest import make_sample, read_with_webdataset, replace_index, write_dataset

from melstream.shards.dataset import Dataset, open_dataset
from melstream.shards.errors import DatasetError
from melstream.shards.index import COLUMNS
from melstream.shards.mel import mel_edges_hz
from melstream.tools.inspect import inspect_dataset
from melstream.tools.inspect_figures import histogram_edges
from melstream.tools.inspection import Inspection

FIGURES = ("duration_s", "rms_dbfs", "peak", "clipped_share", "silence_share", "bandwidth_hz")


@pytest.fixture(scope="module")
def tars(built: Callable[[str], Dataset]) -> list[dict]:
    """Every sample of the shipped recordings, read by plain webdataset."""
    return read_with_webdataset(built("train"))


@pytest.fixture(scope="module")
def found(built: Callable[[str], Dataset]) -> Inspection:
    return inspect_dataset(built("train"))


def test_totals_and_shards_are_those_of_the_tars(
    found: Inspection, tars: list[dict], built: Callable[[str], Dataset]
) -> None:
    folder = built("train").folder
    assert found.totals.n_samples == len(tars)
    assert found.totals.n_frames == sum(len(sample["logmel.npy"]) for sample in tars)
    seconds = sum(sample["json"]["duration_s"] for sample in tars)
    assert found.totals.duration_s == pytest.approx(seconds, rel=1e-6)
    sizes = {path.name: path.stat().st_size for path in folder.glob("*.tar")}
    assert {shard.name: shard.size_bytes for shard in found.shards} == sizes
    assert found.totals.size_bytes == sum(sizes.values())
    assert sum(shard.n_samples for shard in found.shards) == len(tars)
    assert found.totals.n_shards == len(sizes)


def test_classes_are_those_of_the_json(found: Inspection, tars: list[dict]) -> None:
    counts = Counter(name for sample in tars for name in sample["json"]["labels"])
    seconds = {
        name: sum(s["json"]["duration_s"] for s in tars if name in s["json"]["labels"])
        for name in counts
    }
    assert {figures.name: figures.n_samples for figures in found.classes} == counts
    assert {f.name: f.duration_s for f in found.classes} == pytest.approx(seconds, rel=1e-6)
    assert found.n_unlabelled == 0
    assert [(count.value, count.n_samples) for count in found.labels_per_sample] == [(1, len(tars))]
    rates = Counter(sample["json"]["sample_rate"] for sample in tars)
    assert {count.value: count.n_samples for count in found.sample_rates} == rates
    channels = Counter(sample["json"]["n_channels"] for sample in tars)
    assert {count.value: count.n_samples for count in found.n_channels} == channels


@pytest.mark.parametrize("name", FIGURES)
def test_histograms_are_those_of_numpy(found: Inspection, tars: list[dict], name: str) -> None:
    values = np.float32([sample["json"][name] for sample in tars])
    shown = found.histogram(name)
    counts, edges = np.histogram(values.astype(np.float64), np.array(shown.edges))
    assert shown.counts == tuple(counts.tolist())
    assert (shown.n_below, shown.n_above) == ((values < edges[0]).sum(), (values > edges[-1]).sum())
    assert shown.n_unknown == 0
    np.testing.assert_allclose(
        shown.quantiles, np.quantile(values, [0, 0.25, 0.5, 0.75, 1]), rtol=1e-6
    )


def test_bands_are_those_of_the_tars(found: Inspection, tars: list[dict]) -> None:
    frames = np.concatenate([sample["logmel.npy"] for sample in tars]).astype(np.float64)
    bands = found.bands
    assert bands is not None
    np.testing.assert_allclose(bands.mean, frames.mean(0), rtol=1e-9)
    np.testing.assert_allclose(bands.std, frames.std(0), rtol=1e-9)
    assert bands.value_counts is not None
    shown, edges = np.array(bands.value_counts), np.array(bands.value_edges)
    assert (shown.sum(1) == len(frames)).all()
    inner = np.clip(frames, edges[0] + 1e-6, edges[-1] - 1e-6)
    for band in (0, 31, 63):
        np.testing.assert_array_equal(shown[band], np.histogram(inner[:, band], edges)[0])


def test_flags_duplicates_and_rejects(found: Inspection, tars: list[dict]) -> None:
    infos = [sample["json"] for sample in tars]
    spec_fmax = 8_000
    expected = {
        "silent": sum(info["silence_share"] >= 0.95 for info in infos),
        "narrow_band": sum(info["bandwidth_hz"] <= 0.75 * spec_fmax for info in infos),
        "clipped": sum(info["clipped_share"] >= 0.001 for info in infos),
        "dc_offset": sum(abs(info["dc_offset"]) >= 0.01 for info in infos),
    }
    assert {flag.name: flag.n_samples for flag in found.flags} == expected
    hashes = Counter(info["audio_hash"] for info in infos)
    assert found.duplicates is not None
    assert found.duplicates.n_redundant == sum(n - 1 for n in hashes.values())
    assert found.duplicates.n_groups == sum(n > 1 for n in hashes.values())
    assert found.rejects == found.ignored == found.leaks == ()


def test_shipped_recordings_give_no_warning(built: Callable[[str], Dataset]) -> None:
    assert [inspect_dataset(built(split)).warnings for split in ("train", "eval")] == [(), ()]


@pytest.fixture
def many_labels(tmp_path) -> Dataset:
    rng = np.random.default_rng(0)
    labels = [tuple(np.flatnonzero(rng.random(6) < 0.4).tolist()) for _ in range(80)]
    samples = [make_sample(n, label_ids=ids) for n, ids in enumerate(labels)]
    return write_dataset(tmp_path / "many", [samples[:50], samples[50:]], n_classes=7)


def test_co_occurrence_is_that_of_a_naive_loop(many_labels: Dataset) -> None:
    found = inspect_dataset(many_labels)
    sets = [{int(i) for i in many_labels.index.labels(row)} for row in range(80)]
    assert found.co_occurrence is not None
    names = [many_labels.manifest.label_names.index(n) for n in found.co_occurrence.classes]
    expected = [[sum({a, b} <= labels for labels in sets) for b in names] for a in names]
    assert found.co_occurrence.counts == tuple(map(tuple, expected))
    diagonal = [expected[i][i] for i in range(len(names))]
    assert diagonal == sorted(diagonal, reverse=True)
    assert sorted(names) == list(range(6))
    assert found.n_unlabelled == sum(not labels for labels in sets)
    counts = Counter(len(labels) for labels in sets)
    assert {c.value: c.n_samples for c in found.labels_per_sample} == counts


def test_one_class_is_looked_at_by_itself(many_labels: Dataset) -> None:
    found = inspect_dataset(many_labels, label="class 2")
    rows = [row for row in range(80) if 2 in many_labels.index.labels(row)]
    assert found.label == "class 2"
    assert found.totals.n_samples == len(rows)
    assert found.totals.n_frames == int(many_labels.index.n_frames[rows].sum())
    assert found.totals.duration_s == pytest.approx(many_labels.index.duration_s[rows].sum())
    counts = Counter(int(i) for row in rows for i in many_labels.index.labels(row))
    assert [figures.n_samples for figures in found.classes] == [counts[i] for i in range(7)]
    assert sum(found.histogram("peak").counts) == len(rows)
    assert found.bands is None
    with pytest.raises(ValueError, match=r"must be a name in the data set .*found 'class 9'"):
        inspect_dataset(many_labels, label="class 9")


def columns_of(dataset: Dataset) -> dict[str, np.ndarray]:
    return {name: dataset.index.column(name) for name in COLUMNS}


def test_unknown_figures_are_counted_as_unknown(small_dataset: Dataset) -> None:
    columns = columns_of(small_dataset)
    columns["rms_dbfs"] = np.where(np.arange(60) < 10, np.nan, -20.0).astype(np.float32)
    columns["silence_share"] = np.full(60, np.nan, np.float32)
    columns["audio_hash"] = np.zeros(60, np.uint64)
    replace_index(small_dataset, columns)
    found = inspect_dataset(open_dataset(small_dataset.folder))
    assert found.histogram("rms_dbfs").n_unknown == 10
    assert sum(found.histogram("rms_dbfs").counts) == 50
    assert found.histogram("silence_share").quantiles is None
    assert found.flag("silent").n_known == 0
    assert found.duplicates is None
    assert found.bands is not None
    assert found.bands.value_counts is None


def test_a_bandwidth_has_a_bin_of_its_own(built: Callable[[str], Dataset]) -> None:
    spec = built("train").manifest.features
    edges = histogram_edges("bandwidth_hz", spec)
    values = mel_edges_hz(spec)[2:].astype(np.float32)
    assert np.histogram(values, edges)[0].tolist() == [0] + [1] * spec.n_mels


def test_an_index_that_cannot_be_is_an_error(small_dataset: Dataset) -> None:
    columns = columns_of(small_dataset)
    columns["split"] = np.full(60, 4, np.int16)
    replace_index(small_dataset, columns)
    with pytest.raises(DatasetError, match=r"`split` must be -1 or a split of the manifest; copy"):
        inspect_dataset(open_dataset(small_dataset.folder))


def test_the_schema_that_ships_is_that_of_the_record(found: Inspection) -> None:
    shipped = resources.files("melstream.tools") / "inspection.schema.json"
    assert json.loads(shipped.read_text()) == Inspection.model_json_schema()
    assert Inspection.model_validate_json(found.model_dump_json()) == found
