"""The verbs that measure speed run, and say what they measured; how fast is not tested."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from typer.testing import CliRunner

from melstream.tools.bench_floor import read_and_resample
from melstream.tools.cli import app

RATE = 22_050
STAGES = {"decode", "resample", "features", "write and hash", "statistics"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for number in range(3):
        samples = rng.uniform(-0.5, 0.5, (int(1.5 * RATE), 2)).astype(np.float32)
        sf.write(tmp_path / f"{number}.wav", samples, RATE)
    return tmp_path


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["bench", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_a_build_is_timed_stage_by_stage(folder: Path) -> None:
    options = ("build", folder, "--window-seconds", 1, "--jobs", 1)
    found = json.loads(run(*options, "--json"))
    assert (found["n_files"], found["n_samples"], found["duration_s"]) == (3, 6, 4.5)
    assert set(found["stages_s"]) > STAGES
    assert found["peak_bytes"] > 0
    assert found["build_over_floor"] > 0
    assert "x_lhotse" not in found
    assert sorted(path.name for path in folder.iterdir()) == ["0.wav", "1.wav", "2.wav"]


def test_the_table_names_stages_and_ratios(folder: Path) -> None:
    text = run("build", folder, "--window-seconds", 1, "--jobs", 1, "--limit", 1)
    for words in ("decode", "x real time", "peak memory", "alone"):
        assert words in text


def test_the_floor_reads_every_sample(folder: Path) -> None:
    assert read_and_resample(folder / "0.wav", 1.0, RATE) == int(1.5 * RATE)
    assert read_and_resample(folder / "0.wav", 1.0, 16_000) == pytest.approx(24_000, abs=2)


@pytest.mark.filterwarnings("ignore")  # of the peers
@pytest.mark.slow
def test_lhotse_makes_features_of_the_same_windows(folder: Path) -> None:
    found = json.loads(run("build", folder, "--window-seconds", 1, "--jobs", 1, "--json", "--vs"))
    assert found["x_lhotse"] > 0


@pytest.mark.filterwarnings("ignore")  # of the peers
@pytest.mark.slow
def test_features_are_timed_beside_their_peers() -> None:
    found = json.loads(run("features", "--rounds", 2, "--json"))
    assert [times["x_ours"] for times in found if "melstream" in times["name"]] == [1.0, 1.0]
    assert len(found) == 5
