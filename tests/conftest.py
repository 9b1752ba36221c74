"""Fixtures that several test files share: the recordings that ship, and data sets of them."""

import gc
import io
import itertools
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import webdataset
from hypothesis import settings
from rich.console import Console

from melstream.pipeline.logmel_counts import count_values
from melstream.shards.dataset import Dataset, open_dataset
from melstream.shards.index import Index, concatenate, hash_index, write_index
from melstream.shards.manifest import BuildSettings, Manifest, write_manifest
from melstream.shards.spec import PRESETS
from melstream.shards.storage import open_storage
from melstream.shards.writer import Sample, SampleInfo, write_shard
from melstream.tools.build import build
from melstream.tools.build_plan import Plan, PlanSettings, make_plan
from melstream.tools.build_workers import run_here
from melstream.tools.corpora import folder

if TYPE_CHECKING:
    from playwright.sync_api import Browser

SPEC = PRESETS["conformer64"]
CHROMIUM_FLAGS = [
    "--headless",
    "--no-sandbox",  # it has none inside a container; the pages are our own
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]

# The same examples in each run, and no time limit per example: the machine may be shared.
settings.register_profile("melstream", deadline=None, derandomize=True)
settings.load_profile("melstream")


@pytest.fixture(scope="session")
def recordings() -> Path:
    """The folder of recordings that ship: train/<class>/*.flac, eval/<class>/*.flac."""
    return Path(str(resources.files("melstream.tools") / "recordings"))


@pytest.fixture
def quiet() -> Console:
    """A console that nobody sees."""
    return Console(file=io.StringIO())


def make_sample(
    number: int, *, n_frames: int = 40, label_ids: tuple[int, ...] = (), n_mels: int = SPEC.n_mels
) -> Sample:
    """A sample whose values say which sample and frame they are from."""
    logmel = np.full((n_frames, n_mels), number, np.float16)
    logmel[:, 0] = np.arange(n_frames)
    info = SampleInfo(
        labels=tuple(f"class {i}" for i in label_ids),
        source=f"somewhere/{number}.flac",
        start_s=None,
        duration_s=n_frames / 100,
        sample_rate=44_100,
        n_channels=1,
        peak=0.5,
        rms_dbfs=-20.0,
        clipped_share=0.0,
        silence_share=0.0,
        dc_offset=0.0,
        bandwidth_hz=8_000.0,
        audio_hash=f"{number:016x}",
    )
    return Sample(key=f"clip-{number:04d}", logmel=logmel, label_ids=label_ids, info=info)


def write_dataset(
    path: Path,
    shards: Sequence[Sequence[Sample]],
    n_classes: int = 0,
    split_names: tuple[str, ...] = (),
    **fields: Any,
) -> Dataset:
    """Write samples as a data set, shard by shard; further fields are the manifest's."""
    storage = open_storage(path)
    entries, indexes = [], []
    for number, samples in enumerate(shards):
        with write_shard(storage, f"train-{number:06d}.tar") as writer:
            for sample in samples:
                writer.write(sample)
        entries.append(writer.entry)
        indexes.append(writer.index)
    index = concatenate(indexes)
    logmels = [sample.logmel for samples in shards for sample in samples]
    counts = sum(count_values(logmel, SPEC) for logmel in logmels)
    index_files_hash = write_index(storage, index, counts=counts)  # pyright: ignore[reportArgumentType]
    values = np.concatenate(logmels).astype(np.float64)
    told: dict[str, Any] = {
        "features": SPEC,
        "feature_hash": SPEC.hash,
        "label_names": tuple(f"class {i}" for i in range(n_classes)),
        "label_ids": None,
        "split_names": split_names,
        "shards": tuple(entries),
        "n_samples": len(index),
        "duration_s": float(index.duration_s.sum()),
        "n_rejects": {},
        "band_mean": tuple(values.mean(0)),
        "band_std": tuple(values.std(0) + 1e-3),
        "ids_hash": "0" * 16,
        "index_hash": hash_index(index),
        "index_files_hash": index_files_hash,
        "build": BuildSettings(
            corpus="test",
            plan_hash="0" * 16,
            min_duration_s=0.0,
            max_shard_samples=1_000,
            max_shard_bytes=10**9,
        ),
    }
    manifest = Manifest(**(told | fields))
    write_manifest(storage, manifest)
    return open_dataset(path)


def replace_index(
    dataset: Dataset, columns: dict[str, np.ndarray], counts: np.ndarray | None = None
) -> None:
    """Put another index in place of a data set's, as if it had been built so."""
    dataset.storage.delete_all("index.zarr/")
    index = Index(columns)
    files_hash = write_index(dataset.storage, index, counts=counts)
    told = {"index_files_hash": files_hash, "index_hash": hash_index(index)}
    write_manifest(dataset.storage, dataset.manifest.model_copy(update=told))


def read_with_webdataset(dataset: Dataset) -> list[dict[str, Any]]:
    """Read every sample with plain webdataset, as any user of it would."""
    urls = [str(dataset.folder / shard.name) for shard in dataset.manifest.shards]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its files to the collector
        samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
        gc.collect()
    return samples


@pytest.fixture
def small_dataset(tmp_path: Path) -> Dataset:
    """60 samples of 20 to 79 frames in 5 shards of unequal size; labels 0, 1, 2 in turn."""
    samples = [make_sample(n, n_frames=20 + n, label_ids=(n % 3,)) for n in range(60)]
    cuts = [0, 7, 20, 32, 51, 60]
    shards = [samples[a:b] for a, b in itertools.pairwise(cuts)]
    return write_dataset(tmp_path / "small", shards, n_classes=3)


@pytest.fixture(scope="session")
def built(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Dataset]:
    """``built("train")``: the data set made of the recordings that ship, built once."""
    root = tmp_path_factory.mktemp("built")

    def of(split: str) -> Dataset:
        plan = make_plan(
            folder.scan(recordings / split), PlanSettings(corpus="folder", features=SPEC)
        )
        build(plan, open_storage(root / split), run_here, lambda done, note: None)
        return open_dataset(root / split)

    return of


def silent(done: int, note: str) -> None:
    """Report nothing."""


def plan_of(source: Path, **settings: object) -> Plan:
    """Plan a build of a folder of class folders."""
    chosen = {"corpus": "folder", "features": SPEC} | settings
    return make_plan(folder.scan(source), PlanSettings.model_validate(chosen))


def content(path: Path) -> dict[str, bytes]:
    """Every file below a folder, by relative path."""
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.fixture(scope="session")
def browser() -> Iterator["Browser"]:
    """Chromium, without a window; tests that want it are skipped where there is none."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("needs a browser; type: apt-get install chromium fonts-dejavu")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def corpus(recordings: Path, tmp_path: Path) -> Path:
    """Twelve shipped recordings in their class folders."""
    for number, path in enumerate(sorted((recordings / "eval").glob("*/*.flac"))[:12]):
        target = tmp_path / "corpus" / path.parent.name / f"{number}.flac"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return tmp_path / "corpus"
