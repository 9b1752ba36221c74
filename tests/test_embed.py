"""Embeddings of data sets and of files are the model's, row by row, and whole or not there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from conftest import SPEC, content
from rich.console import Console

from melstream.model import AudioEncoder, EncoderConfig, Tagger, TaggerConfig, load
from melstream.shards.dataset import Dataset
from melstream.shards.errors import DatasetError
from melstream.shards.spec import PRESETS
from melstream.tools import embeddings
from melstream.tools.embed import embed
from melstream.tools.evaluate import predict
from melstream.tools.model_folder import ModelCard, load_tagger, write_model

CPU = torch.device("cpu")
CONFIG = EncoderConfig(latent_dim=16, dim=16, n_layers=2, n_heads=2, ffn_dim=32, kernel_size=3)
CLOSE = {"atol": 2e-3, "rtol": 2e-3}  # float16 log-mels on the shards' side


@pytest.fixture(scope="module")
def data(built: Callable[[str], Dataset]) -> Dataset:
    return built("eval")


@pytest.fixture(scope="module")
def tagger(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    encoder = AudioEncoder(CONFIG)
    encoder.normalizer.set_statistics(torch.full((64,), -9.0), torch.full((64,), 4.0))
    names = data.manifest.label_names
    card = ModelCard(
        kind="tagger", encoder=CONFIG, features=SPEC, crop_s=1.0, tagger=TaggerConfig(),
        label_names=names, trained_on=(), steps=1,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("run") / "tagger"
    write_model(folder, Tagger(encoder, TaggerConfig(), len(names)).state_dict(), card)
    return folder


@pytest.fixture
def write(tagger: Path, tmp_path: Path, quiet: Console) -> Callable[..., Any]:
    """Embed something and open what was written."""

    def call(*places: object, name: str = "out.zarr", **options: Any) -> tuple[Any, Any]:
        out = tmp_path / name
        report = embed(tagger, [str(p) for p in places], out, device=CPU, console=quiet, **options)
        return zarr.open_group(str(out), mode="r"), report

    return call


def test_a_data_sets_embeddings_are_the_models_of_its_logmels(
    data: Dataset, tagger: Path, write: Callable[..., Any]
) -> None:
    group, report = write(data.folder, has_frames=True)
    assert report.n_clips == len(data)
    keys = [key.decode() for key in data.index.sample_keys()]
    assert group["key"][:].tolist() == keys
    model = load(tagger)
    starts = group["frame_indptr"][:]
    assert starts[0] == 0
    assert starts[-1] == group["frames"].shape[0]
    for row in range(len(data)):
        logmel = torch.from_numpy(data.read_logmel(row))[None]
        encoded = model.encode(logmel, torch.tensor([logmel.shape[1]]))
        (frames,) = encoded.frames()
        np.testing.assert_allclose(group["clips"][row], frames.mean(0), atol=1e-4)
        kept = group["frames"][starts[row] : starts[row + 1]]
        np.testing.assert_allclose(kept, frames, atol=1e-2)
        assert np.flatnonzero(group["labels"][row]).tolist() == data.index.labels(row).tolist()
    scored = predict(*load_tagger(tagger), data)
    np.testing.assert_allclose(group["scores"][:], scored.scores, atol=1e-6)
    assert group["scores"].attrs["label_names"] == list(data.manifest.label_names)
    assert group["labels"].attrs["label_names"] == list(data.manifest.label_names)


def test_files_and_their_shards_have_the_same_embeddings(
    data: Dataset, recordings: Path, write: Callable[..., Any]
) -> None:
    of_shards, _ = write(data.folder)
    of_files, report = write(recordings / "eval", name="files.zarr")
    assert report.rejects == []
    assert "labels" not in of_files
    assert "frames" not in of_files
    rows = {
        f"{Path(key).parent.name}_{Path(key).stem}": i for i, key in enumerate(of_files["key"][:])
    }
    same = [rows[key.rsplit("-", 1)[0]] for key in of_shards["key"][:]]
    assert sorted(same) == list(range(len(data)))
    for name in ("clips", "scores"):
        np.testing.assert_allclose(of_files[name][:][same], of_shards[name][:], **CLOSE)


def test_a_layer_is_what_its_block_gives(
    data: Dataset, tagger: Path, write: Callable[..., Any]
) -> None:
    group, _ = write(data.folder, layer=1)
    assert group.attrs["layer"] == 1
    assert "scores" not in group
    seen: list[torch.Tensor] = []
    model = load(tagger)
    model.encoder.context_encoder.blocks[0].register_forward_hook(
        lambda block, inputs, output: seen.append(output)
    )
    logmel = torch.from_numpy(data.read_logmel(0))[None]
    model.encode(logmel, torch.tensor([logmel.shape[1]]))
    np.testing.assert_allclose(group["clips"][0], seen[0][0].mean(0), atol=1e-4)
    with pytest.raises(ValueError, match="`layer` must be one of the encoder's 1 to 2, found 3"):
        write(data.folder, name="other.zarr", layer=3)


def test_chunks_are_filled_one_after_the_other(
    data: Dataset, write: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = write(data.folder, has_frames=True)
    monkeypatch.setattr(embeddings, "CHUNK_BYTES", 500)
    parted, _ = write(data.folder, name="parted.zarr", has_frames=True)
    assert parted["clips"].chunks == (7, 16)
    for name in ("key", "clips", "frames", "frame_indptr", "scores", "labels"):
        assert np.array_equal(parted[name][:], whole[name][:]), name


def test_files_that_cannot_be_decoded_are_counted_and_the_rest_is_there(
    recordings: Path, tmp_path: Path, write: Callable[..., Any]
) -> None:
    (tmp_path / "é bad.wav").write_bytes(b"not audio")
    good = sorted((recordings / "eval").glob("*/*.flac"))[:2]
    group, report = write(good[0], tmp_path / "é bad.wav", good[1])
    assert group["key"][:].tolist() == [str(path) for path in good]
    assert len(report.rejects) == 1
    assert "é bad.wav: audio is required" in report.rejects[0]


def test_what_fails_leaves_nothing_and_what_is_there_stays(
    data: Dataset, tmp_path: Path, write: Callable[..., Any]
) -> None:
    write(data.folder)
    before = content(tmp_path / "out.zarr")
    with pytest.raises(DatasetError, match=r"out\.zarr is there already; remove it"):
        write(data.folder)
    assert content(tmp_path / "out.zarr") == before
    (tmp_path / "bad.wav").write_bytes(b"not audio")
    with pytest.raises(DatasetError, match=r"none of 1 files could be embedded; the first: .*bad"):
        write(tmp_path / "bad.wav", name="other.zarr")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.wav", "out.zarr"]


def test_sources_that_do_not_go_together_are_refused(
    data: Dataset, recordings: Path, tmp_path: Path, write: Callable[..., Any]
) -> None:
    with pytest.raises(ValueError, match="must be one data set, or audio files and folders"):
        write(data.folder, recordings)
    with pytest.raises(ValueError, match="must be a folder of audio files, found nothing"):
        write(tmp_path / "nothing")


def test_other_features_are_refused(tmp_path: Path, data: Dataset, quiet: Console) -> None:
    config = CONFIG.model_copy(update={"n_mels": 128})
    card = ModelCard(
        kind="encoder", encoder=config, features=PRESETS["kaldi128"], crop_s=1.0, trained_on=(),
        steps=1,
    )  # fmt: skip
    write_model(tmp_path / "model", AudioEncoder(config).state_dict(), card)
    with pytest.raises(DatasetError, match=r"features differ: .* has .*n_mels=64"):
        embed(tmp_path / "model", [str(data.folder)], tmp_path / "out", device=CPU, console=quiet)
    assert not (tmp_path / "out").exists()
