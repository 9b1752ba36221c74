"""Checkpoints come back bit by bit, or with an error that says what to do."""

import json
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from melstream.model import (
    CheckpointError,
    DamagedCheckpointError,
    OptimConfig,
    build_optimizer,
    latest_checkpoint,
    load_checkpoint,
    parameter_groups,
    prune_checkpoints,
    save_checkpoint,
    set_aside,
)

META = {"position": 12_800, "config": {"lr": 5e-4, "names": ["Dog", "Öl"]}, "best": None}


def trained() -> tuple[nn.Linear, torch.optim.Optimizer]:
    torch.manual_seed(0)
    module = nn.Linear(3, 4)
    optimizer = build_optimizer(parameter_groups(module, 1e-2, 0.1), OptimConfig())
    module(torch.randn(5, 3)).square().mean().backward()
    optimizer.step()
    return module, optimizer


def save(root: Path, step: int, **changes: Any) -> Path:
    module, optimizer = trained()
    parts: dict[str, Any] = {
        "model_state": module.state_dict(),
        "optimizer_state": optimizer.state_dict(),
        "meta": META,
    }
    return save_checkpoint(root, step, **{**parts, **changes})


def reseal(path: Path) -> None:
    """Make the sums right again, as someone who alters a checkpoint on purpose would."""
    from melstream.model import checked_files as module

    document = json.loads((path / "checkpoint.json").read_text())
    document["sha256"] = {name: module._sha256(path / name) for name in document["sha256"]}
    (path / "checkpoint.json").write_text(json.dumps(document))


def assert_same(found: object, required: object) -> None:
    if isinstance(required, Tensor):
        assert isinstance(found, Tensor)
        assert torch.equal(found, required)
    elif isinstance(required, dict):
        assert isinstance(found, dict)
        assert found.keys() == required.keys()
        for key, value in required.items():
            assert_same(found[key], value)
    elif isinstance(required, list):
        assert isinstance(found, list)
        for left, right in zip(found, required, strict=True):
            assert_same(left, right)
    else:
        assert found == required


def test_a_checkpoint_comes_back_bit_by_bit(tmp_path: Path) -> None:
    module, optimizer = trained()
    path = save(tmp_path / "new" / "run", 200)
    checkpoint = load_checkpoint(path)
    assert path == tmp_path / "new" / "run" / "step-000200"
    assert (checkpoint.path, checkpoint.step, checkpoint.meta) == (path, 200, META)
    assert_same(checkpoint.model_state, dict(module.state_dict()))
    assert_same(checkpoint.optimizer_state, optimizer.state_dict())
    assert checkpoint.average_state is None


def test_an_optimizer_resumes_with_the_same_next_step(tmp_path: Path) -> None:
    module, optimizer = trained()
    checkpoint = load_checkpoint(save(tmp_path, 1))
    resumed = nn.Linear(3, 4)
    resumed.load_state_dict(checkpoint.model_state)
    fresh = build_optimizer(parameter_groups(resumed, 1.0, 0.5), OptimConfig(lr=1.0))
    fresh.load_state_dict(checkpoint.optimizer_state)
    for each, step in ((module, optimizer.step), (resumed, fresh.step)):
        each.zero_grad()
        each(torch.ones(2, 3)).sum().backward()
        step()
    assert_same(dict(resumed.state_dict()), dict(module.state_dict()))


def test_the_same_input_gives_the_same_weights_and_card(tmp_path: Path) -> None:
    first, second = save(tmp_path / "a", 5), save(tmp_path / "b", 5)
    for name in ("model.safetensors", "checkpoint.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_the_latest_checkpoint_has_the_most_steps(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "nothing") is None
    assert latest_checkpoint(tmp_path) is None
    for step in (999_999, 1_000_000, 5):
        save(tmp_path, step)
    (tmp_path / ".writing-step-2000000").mkdir()
    (tmp_path / "step-best").mkdir()
    assert latest_checkpoint(tmp_path) == tmp_path / "step-1000000"


def test_the_next_save_removes_what_a_crash_left(tmp_path: Path) -> None:
    (tmp_path / ".writing-step-000100").mkdir()
    (tmp_path / ".writing-step-000100" / "model.safetensors").write_bytes(b"half")
    save(tmp_path, 200)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000200"]


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 200)
    path = save(tmp_path, 200, meta={"position": 7})
    assert load_checkpoint(path).meta == {"position": 7}


def test_a_save_that_fails_leaves_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        save(tmp_path, 200, meta={"path": tmp_path})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (np.float64(1.0), r"state\['optimizer'\]\['lr'\]"),
        ([1, Path("x")], r"state\['optimizer'\]\['lr'\]\[1\]"),
        (namedtuple("Pair", "a b")(1, 2), r"state\['optimizer'\]\['lr'\]"),
    ],
)
def test_what_would_need_unpickling_is_not_saved(tmp_path: Path, value: object, place: str) -> None:
    with pytest.raises(TypeError, match=place + " must be a tensor, number"):
        save(tmp_path, 1, optimizer_state={"lr": value})


@pytest.mark.parametrize("name", ["model.safetensors", "average.safetensors", "optimizer.pt"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_names_the_file_and_the_checkpoint_before(
    tmp_path: Path, name: str, damage: str
) -> None:
    save(tmp_path, 100)
    save(tmp_path, 150)
    file = save(tmp_path, 200, average_state={"weight": torch.ones(3)}) / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data if damage == "flip" else data[:-7])
    if damage == "remove":
        file.unlink()
    with pytest.raises(DamagedCheckpointError, match=f"{name} must have the sha256") as caught:
        load_checkpoint(tmp_path / "step-000200")
    assert str(caught.value).endswith(
        f"the one before it is {tmp_path / 'step-000150'}; "
        f"to go on from there: rm -r {tmp_path / 'step-000200'}"
    )
    assert caught.value.path == tmp_path / "step-000200"


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"{", "cannot read"),
        (b"[" * 100_000, "cannot read"),
        (b"[]", "format version must be 1, found None"),
        (b'{"format_version": 2}', "format version must be 1, found 2; if it is newer"),
        (b'{"format_version": 1, "step": 3}', "meta"),
        (b'{"format_version": 1, "step": 3, "meta": {}, "sha256": 4}', "valid dictionary"),
        (b'{"format_version": 1, "step": 3, "meta": {}, "sha256": {}}', "sha256 None"),
    ],
)
def test_a_broken_card_is_an_error_with_a_remedy(
    tmp_path: Path, content: bytes, match: str
) -> None:
    path = save(tmp_path, 3)
    (path / "checkpoint.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=match) as caught:
        load_checkpoint(path)
    assert str(caught.value).endswith(
        f"no earlier checkpoint is in {tmp_path}: start the run again"
    )


def test_a_missing_checkpoint_names_the_latest(tmp_path: Path) -> None:
    save(tmp_path, 100)
    with pytest.raises(CheckpointError, match=r"No such file.*before it is .*step-000100"):
        load_checkpoint(tmp_path / "best")


class Payload:
    """Unpickling one writes a file."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.place,)


def test_a_pickled_class_is_refused_even_with_the_right_sums(tmp_path: Path) -> None:
    path, proof = save(tmp_path, 1), tmp_path / "unpickled"
    torch.save({"optimizer": {}, "evil": Payload(proof)}, path / "optimizer.pt")
    reseal(path)
    with pytest.raises(CheckpointError, match=r"optimizer\.pt must hold .* and was refused"):
        load_checkpoint(path)
    assert not proof.exists()


def test_weights_that_are_not_safetensors_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    torch.save({}, path / "model.safetensors")
    reseal(path)
    with pytest.raises(CheckpointError, match=r"cannot read .*model\.safetensors"):
        load_checkpoint(path)


def test_pruning_keeps_the_last_and_the_chosen(tmp_path: Path) -> None:
    paths = [save(tmp_path, step) for step in (100, 200, 300, 400, 500)]
    prune_checkpoints(tmp_path, keep_last=2, keep={paths[1]})
    assert sorted(tmp_path.iterdir()) == [paths[1], paths[3], paths[4]]
    prune_checkpoints(tmp_path, keep_last=9)
    assert sorted(tmp_path.iterdir()) == [paths[1], paths[3], paths[4]]


def test_pruning_everything_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`keep_last` must be 1 or more, found 0"):
        prune_checkpoints(tmp_path, keep_last=0)


def test_a_negative_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`step` must be 0 or more, found -1"):
        save(tmp_path, -1)


def test_the_average_comes_back_beside_the_weights(tmp_path: Path) -> None:
    average = {"weight": torch.arange(6.0)}
    found = load_checkpoint(save(tmp_path, 1, average_state=average)).average_state
    assert found is not None
    assert_same(found, average)


def test_a_checkpoint_set_aside_is_found_no_more(tmp_path: Path) -> None:
    first, second = save(tmp_path, 1), save(tmp_path, 2)
    assert set_aside(second) == tmp_path / "refused-step-000002"
    assert latest_checkpoint(tmp_path) == first
    set_aside(save(tmp_path, 2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["refused-step-000002", first.name]


FULL_DISK = """
import resource, sys
from pathlib import Path
import torch
from melstream.model import CheckpointError, save_checkpoint
root = Path(sys.argv[1])
for n_bytes, n_numbers in ((1_000, 10_000), (40_500, 10_000), (200_000, 100_000)):
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, resource.RLIM_INFINITY))
    weights, moment = torch.zeros(10_000), torch.zeros(n_numbers)
    try:
        save_checkpoint(
            root, 2, model_state={"w": weights}, optimizer_state={"m": moment}, meta={}
        )
    except CheckpointError as error:
        print(error, sorted(path.name for path in root.iterdir()))
"""


@pytest.mark.slow
def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    """The bound on a file's size hits the weights, the optimiser by a little, and by a lot."""
    before = save(tmp_path, 1)
    command = [sys.executable, "-Ic", FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 3
    for line in done.stdout.splitlines():
        assert line.startswith(f"cannot write {tmp_path / 'step-000002'}: ")
        assert line.endswith(
            f"{before} is whole; make room and go on with --resume ['step-000001']"
        )
    load_checkpoint(before)
