"""A finished model comes back with its card, or with an error that says what to do."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_checkpoint import assert_same

from melstream.model import CheckpointError, load_model_file, save_model


def test_a_model_comes_back_with_its_card(tmp_path: Path) -> None:
    state = {"a": torch.arange(6.0).view(2, 3).T, "b": torch.zeros(2, dtype=torch.float16)}
    folder = save_model(tmp_path / "models" / "mine", state, {"labels": ["Dog", "Öl"]})
    saved = load_model_file(folder)
    assert_same(saved.model_state, state)
    assert saved.card == {"labels": ["Dog", "Öl"]}
    save_model(folder, state, {"labels": []})
    assert load_model_file(folder).card == {"labels": []}
    assert [path.name for path in folder.parent.iterdir()] == ["mine"]


def test_a_model_can_be_read_by_whom_its_folder_can(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "mine", {"a": torch.zeros(2)}, {})
    (tmp_path / "file").touch()
    modes = {path.stat().st_mode for path in (tmp_path / "file", *folder.iterdir())}
    assert len(modes) == 1


def test_a_model_never_replaces_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="`folder` must be new, empty or a saved model"):
        save_model(tmp_path, {}, {})


def test_a_damaged_model_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "mine", {"a": torch.zeros(2)}, {})
    save_file({"a": torch.ones(2)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"damaged or altered; copy the model again"):
        load_model_file(folder)
    with pytest.raises(CheckpointError, match=r"model\.json.*No such file"):
        load_model_file(tmp_path / "other")
