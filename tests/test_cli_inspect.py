"""``melstream inspect`` and ``show`` as a user types them."""

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import pytest
import soundfile
from conftest import SPEC, make_sample, plan_of, silent, write_dataset
from rich.console import Console
from typer.testing import CliRunner, Result

from melstream.shards.dataset import Dataset, open_dataset
from melstream.shards.mel import mel_edges_hz
from melstream.shards.storage import open_storage
from melstream.tools.build import build
from melstream.tools.build_workers import run_here
from melstream.tools.cli import app
from melstream.tools.clips import describe_clip, pick_rows
from melstream.tools.inspect import inspect_dataset
from melstream.tools.inspect_page import print_inspection
from melstream.tools.inspection import Clip, Inspection
from melstream.tools.spectrogram import terminal_spectrogram, write_png


def melstream(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def with_audio(corpus: Path, tmp_path: Path) -> Dataset:
    """Twelve shipped recordings, with their waveforms."""
    build(plan_of(corpus, keep_audio=True), open_storage(tmp_path / "set"), run_here, silent)
    return open_dataset(tmp_path / "set")


@pytest.mark.parametrize("width", [80, 140])
def test_the_page_fits_the_terminal_and_says_what_matters(
    built: Callable[[str], Dataset], width: int
) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    print_inspection(inspect_dataset(built("train")), console)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    assert "60 samples, " in lines[1]
    assert "no warnings" in text
    for word in ("tabla", "duration, s", "bandwidth, Hz", "44,100 Hz", "log-mel per band"):
        assert word in text


def test_json_is_the_record(built: Callable[[str], Dataset]) -> None:
    result = melstream("inspect", built("eval").url, "--json", "--sample", 3)
    assert result.exit_code == 0
    found = Inspection.model_validate_json(result.output)
    assert found.totals.n_samples == 24
    assert found.sample_check is not None
    assert len(found.sample_check.keys) == 3
    assert found.sample_check.problems == ()


def test_one_key_is_told_as_the_index_has_it(built: Callable[[str], Dataset]) -> None:
    dataset = built("eval")
    result = melstream("inspect", dataset.url, "--key", dataset.key(5), "--json")
    clip = Clip.model_validate_json(result.output)
    assert clip == describe_clip(dataset, 5)
    info = dataset.read_info(5)
    assert (clip.labels, clip.sample_rate, clip.audio_hash) == (
        info.labels,
        info.sample_rate,
        info.audio_hash,
    )
    assert clip.rms_dbfs == pytest.approx(info.rms_dbfs, rel=1e-6)
    result = melstream("inspect", dataset.url, "--key", dataset.key(5))
    assert info.labels[0] in result.output
    assert clip.audio_hash is not None
    assert clip.audio_hash in result.output


def test_wrong_calls_say_what_to_type(built: Callable[[str], Dataset]) -> None:
    url = built("eval").url
    result = melstream("inspect", url, "--key", "nobody")
    assert "`KEY` must be a key of" in str(result.exception)
    key = built("eval").key(9)
    for typed in (key[:-1], key[1:].upper(), key[3:-3]):
        assert key in str(melstream("show", url, typed).exception)
    result = melstream("inspect", url, "--label", "bell", "--against", url)
    assert "give only one of `--against`, `--label` and `--key`, found 2" in str(result.exception)
    result = melstream("show", url, built("eval").key(0), "--audio", "a.flac")
    assert "build it with 'melstream build … --keep-audio'" in str(result.exception)


def test_splits_are_told_apart_from_their_counts(tmp_path: Path) -> None:
    samples = [replace(make_sample(n), split=(0, 0, 1, 1, 1, -1)[n]) for n in range(6)]
    samples[4] = replace(samples[4], info=samples[1].info)
    dataset = write_dataset(tmp_path / "set", [samples], split_names=("1", "3"))
    page = " ".join(melstream("inspect", dataset.url).output.split())
    assert "splits 1: 2, 3: 3, none: 1" in page
    assert "1 clip of split 1 has the same audio as one of split 3, such as clip-0001" in page


def test_against_prints_verdicts_and_leaks(built: Callable[[str], Dataset]) -> None:
    result = melstream("inspect", built("train").url, "--against", built("eval").url)
    assert result.exit_code == 0
    for word in ("class shares", "bandwidth", "bands", "no key and no audio stands in both"):
        assert word in " ".join(result.output.split())


def test_a_sample_that_is_not_as_indexed_is_a_problem(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "set", [[make_sample(n) for n in range(6)]])
    path = dataset.folder / dataset.manifest.shards[0].name
    payload = bytearray(path.read_bytes())
    payload[int(dataset.index.logmel_offset[2]) + 300] ^= 1
    path.write_bytes(bytes(payload))
    result = melstream("inspect", dataset.url, "--sample", 6)
    assert result.exit_code == 1
    assert "6 samples read, 1 problem" in result.output
    assert "the payload of clip-0002 is not the one" in " ".join(result.output.split())


def test_samples_are_drawn_class_by_class(small_dataset: Dataset, tmp_path: Path) -> None:
    labels = [(0,)] * 50 + [(0, 1)] * 5 + [(2,)] * 3 + [()] * 2
    samples = [make_sample(n, label_ids=ids) for n, ids in enumerate(labels)]
    dataset = write_dataset(tmp_path / "uneven", [samples], n_classes=4)
    rows = pick_rows(dataset, 8)
    groups = [max(dataset.index.labels(int(row)).tolist(), default=3) for row in rows]
    assert np.bincount(groups).tolist() == [2, 2, 2, 2]
    assert (np.diff(rows) > 0).all()
    assert rows.tolist() == pick_rows(dataset, 8).tolist()
    assert rows.tolist() != pick_rows(dataset, 8, seed=1).tolist()
    assert pick_rows(dataset, 99).tolist() == list(range(60))
    assert len(pick_rows(small_dataset, 7)) == 7


def test_show_prints_row_and_writes_picture_and_audio(with_audio: Dataset, tmp_path: Path) -> None:
    key = with_audio.key(3)
    png, audio = tmp_path / "a.png", tmp_path / "a.flac"
    result = melstream("show", with_audio.url, key, "--png", png, "--audio", audio)
    assert result.exit_code == 0, result.output
    assert with_audio.read_info(3).source in result.output
    assert png.read_bytes().startswith(b"\x89PNG")
    waveform, rate = soundfile.read(audio, dtype="float32")
    assert rate == SPEC.sample_rate
    assert SPEC.n_frames(len(waveform)) == with_audio.index.n_frames[3]


def tone(hz: float, n_frames: int = 200) -> np.ndarray:
    """A log-mel with one loud band."""
    logmel = np.full((n_frames, SPEC.n_mels), -15, np.float32)
    centres = mel_edges_hz(SPEC)[1:-1]
    logmel[:, np.argmin(np.abs(centres - hz))] = 5
    return logmel


@pytest.mark.parametrize("hz", [250, 1_000, 4_000])
def test_a_tone_is_bright_beside_its_frequency(hz: int) -> None:
    picture = terminal_spectrogram(tone(hz), SPEC, width=80, height=32)
    lines = picture.split("\n")
    brightness = []
    for line in lines[:32]:
        reds = re.findall("#(..)....", " ".join(str(span.style) for span in line.spans))
        brightness.append(max(int(red, 16) for red in reds))
    row = int(np.argmax(brightness))
    assert lines[row].plain.strip().startswith(f"{hz:,}")
    assert max(len(line.plain) for line in lines) <= 80
    assert lines[-2].plain.startswith("   Hz ┬")
    assert lines[-1].plain.split()[:3] == ["s", "0", "0.5"]


def test_the_picture_has_axes_in_seconds_and_hz(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    class Figure(matplotlib.figure.Figure):
        def savefig(self, *arguments: object, **options: object) -> None:
            axes = self.axes[0]
            seen["x"], seen["y"] = axes.get_xlabel(), axes.get_ylabel()
            names = [label.get_text() for label in axes.get_yticklabels()]
            seen["ticks"] = dict(zip(names, axes.get_yticks(), strict=True))
            seen["extent"] = axes.images[0].get_extent()
            seen["loudest"] = int(np.argmax(axes.images[0].get_array().mean(axis=1)))
            super().savefig(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure", Figure)
        write_png(tmp_path / "a.png", tone(1_000), SPEC, title="$not maths")
    assert "(s)" in seen["x"]
    assert "Hz" in seen["y"]
    assert seen["extent"][:2] == [0, 2.0]
    assert abs(seen["ticks"]["1,000"] - seen["loudest"]) <= 0.5


def test_names_with_terminal_codes_are_shown_as_text(tmp_path: Path) -> None:
    samples = [make_sample(n, label_ids=(0,)) for n in range(4)]
    name = "[red]dog\x1b[2J\x07"
    dataset = write_dataset(tmp_path / "set", [samples], label_names=(name,))
    result = melstream("inspect", dataset.url)
    assert "[red]dog\\x1b[2J\\x07" in result.output
    assert "\x1b[2J" not in result.output


def test_json_of_two_sets_holds_both(built: Callable[[str], Dataset]) -> None:
    result = melstream("inspect", built("train").url, "--against", built("eval").url, "--json")
    found = json.loads(result.output)
    assert found["comparison"]["other"]["totals"]["n_samples"] == 24
    edges = [
        [h["edges"] for h in side["histograms"]] for side in (found, found["comparison"]["other"])
    ]
    assert edges[0] == edges[1]
