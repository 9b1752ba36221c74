"""An exported model is the model: as weights, as ONNX, as a program of torch.export."""

import json
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from melstream.model import AudioEncoder, EncoderConfig, Tagger, TaggerConfig, load
from melstream.model.graph import FACTS
from melstream.shards.errors import DatasetError
from melstream.shards.spec import PRESETS
from melstream.tools import export as export_module
from melstream.tools.export import export
from melstream.tools.model_folder import ModelCard, write_model

LABELS = ("dog", "cat_", "bird")
SHORTEST = 640 + 400  # samples: a latent step of four frames, and a window


def make_model(folder: Path, *, features: str, is_tagger: bool) -> Path:
    """Write a small model of random weights in the folder of a run."""
    torch.manual_seed(0)
    spec = PRESETS[features]
    config = EncoderConfig(
        n_mels=spec.n_mels, latent_dim=16, dim=16, n_layers=2, n_heads=2, ffn_dim=32, kernel_size=3
    )
    encoder = AudioEncoder(config)
    encoder.normalizer.set_statistics(
        torch.full((spec.n_mels,), -9.0), torch.full((spec.n_mels,), 4.0)
    )
    card = ModelCard(
        kind="tagger" if is_tagger else "encoder",
        encoder=config,
        features=spec,
        crop_s=1.0,
        tagger=TaggerConfig() if is_tagger else None,
        label_names=LABELS if is_tagger else (),
        trained_on=("abc", "abc"),
        steps=7,
    )
    module = Tagger(encoder, TaggerConfig(), len(LABELS)) if is_tagger else encoder
    write_model(folder / "model", module.state_dict(), card)
    return folder


def waveforms(n_sounds: int, n_samples: int) -> np.ndarray:
    noise = np.random.default_rng(n_samples).normal(0, 0.1, (n_sounds, n_samples))
    return noise.astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("features", PRESETS)
@pytest.mark.parametrize("is_tagger", [True, False])
def test_graphs_give_what_the_model_gives(tmp_path: Path, features: str, is_tagger: bool) -> None:
    run = make_model(tmp_path / "run", features=features, is_tagger=is_tagger)
    out = tmp_path / "out"
    export(run, out, onnx=True, program=True)
    model = load(out)
    session = onnxruntime.InferenceSession(str(out / "model.onnx"))
    extra = {FACTS: ""}
    with warnings.catch_warnings():  # torch's reader warns, once, of a buffer of its own
        warnings.simplefilter("ignore")
        program = torch.export.load(out / "model.pt2", extra_files=extra).module()
    for n_sounds, n_samples in ((1, 16_000), (3, 50_001), (2, 160_000), (4, SHORTEST)):
        sounds = waveforms(n_sounds, n_samples)
        required = model.embed(list(sounds), model.features.sample_rate)
        found = session.run(None, {"waveform": sounds})
        np.testing.assert_allclose(found[0], torch.stack(required.frames), atol=1e-4)
        assert len(found) == (2 if is_tagger else 1)
        if required.tags is not None:
            np.testing.assert_allclose(found[1], required.tags.scores, atol=1e-5)
    of_program = program(torch.from_numpy(waveforms(1, 50_001)))
    required = model.embed(waveforms(1, 50_001)[0], model.features.sample_rate)
    torch.testing.assert_close(of_program[0][0], required.frames[0], atol=1e-5, rtol=1e-5)
    facts = session.get_modelmeta().custom_metadata_map
    assert facts == json.loads(extra[FACTS])
    assert facts["sample_rate"] == "16000"
    assert json.loads(facts["label_names"]) == (list(LABELS) if is_tagger else [])
    assert [axis.shape[0] for axis in session.get_inputs()] == ["sounds"]


def test_a_card_says_what_the_model_is(tmp_path: Path) -> None:
    run = make_model(tmp_path / "run", features="conformer64", is_tagger=True)
    report = {"n_clips": 12, "mAP": 0.5, "mAUC": None, "accuracy": 0.25, "classes": []}
    (run / "evaluation-valid.json").write_text(json.dumps(report))
    export(run, tmp_path / "my_tagger")
    card = (tmp_path / "my_tagger" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: melstream\npipeline_tag: audio-classification\n")
    n_parameters = sum(p.numel() for p in load(run).tagger.parameters())  # type: ignore[union-attr]
    assert f"2 blocks, 16 wide, {n_parameters:,} parameters" in card
    assert "fingerprints `abc`, in its last training for 7 steps" in card
    assert "| evaluation-valid.json | 12 | 0.500 | - | 0.250 |" in card
    assert r"3 classes: dog, cat\_, bird." in card
    assert "onnxruntime" not in card
    assert {path.name for path in (tmp_path / "my_tagger").iterdir()} == {
        "README.md", "model.json", "model.safetensors",
    }  # fmt: skip


def test_an_export_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_model(tmp_path / "run", features="conformer64", is_tagger=False)

    def fail(*arguments: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr(export_module, "write_program", fail)
    with pytest.raises(OSError, match="no room"):
        export(run, tmp_path / "out", program=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    export(run, tmp_path / "out")
    with pytest.raises(DatasetError, match="out is there already"):
        export(run, tmp_path / "out")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_model(tmp_path / "run", features="conformer64", is_tagger=False)
    monkeypatch.setattr(export_module, "_ONNX_PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(ValueError, match=r"needs no_such_package, .*'melstream\[onnx\]'"):
        export(run, tmp_path / "out", onnx=True)
    assert not (tmp_path / "out").exists()
