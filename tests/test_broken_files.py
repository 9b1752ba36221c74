"""No file, however broken, gives anything but finite samples or a reason; nothing is printed."""

import collections
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from broken_files import N_FILES, write_broken_files

from melstream.pipeline.decode import Decoded, decode, decode_windows
from melstream.pipeline.waveform import prepare
from melstream.shards.errors import REASONS, SampleError
from melstream.shards.spec import PRESETS

MAX_BYTES = 600 * 2**20  # an hour of the silence bomb is 110 MiB; the rest is far less


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_broken_files(tmp_path_factory.mktemp("broken"))


def test_the_broken_files_are_the_same_each_time(broken: list[Path], tmp_path: Path) -> None:
    assert len(set(broken)) == N_FILES
    again = write_broken_files(tmp_path)
    assert [path.name for path in again] == [path.name for path in broken]
    assert [
        a.name for a, b in zip(again, broken, strict=True) if a.stat().st_size != b.stat().st_size
    ] == []


def test_each_gives_finite_samples_or_a_reason(
    broken: list[Path], capfd: pytest.CaptureFixture[str]
) -> None:
    reset_peak()
    before = memory_bytes("VmRSS")
    outcomes = {path.name: outcome(whole(path)) for path in broken}
    assert memory_bytes("VmHWM") - before < MAX_BYTES
    assert capfd.readouterr() == ("", "")
    assert set(outcomes.values()) <= {*REASONS, "audio"}
    counts = collections.Counter(outcomes.values())
    assert (
        min(counts[word] for word in ("audio", "truncated", "undecodable", "empty", "too_long")) > 0
    )
    for name, word in outcomes.items():
        if name.startswith("misnamed"):
            assert word == "audio", name
        if name.startswith(("zip", "gzip", "text", "page", "playlist", "session", "zero", "many")):
            assert word == "undecodable", name
        if name.startswith("silence-bomb"):
            assert word == "too_long"


def test_windows_and_segments_give_finite_samples_or_a_reason_too(
    broken: list[Path], capfd: pytest.CaptureFixture[str]
) -> None:
    for path in broken:
        if not path.name.startswith("silence-bomb"):
            outcome(decode_windows(path, 0.3))
            for start_s in (0.0, 0.7):
                outcome(segment(path, start_s))
    assert capfd.readouterr() == ("", "")


def segment(path: Path, start_s: float) -> Iterator[Decoded]:
    yield decode(path, start_s=start_s, duration_s=0.2)


def whole(path: Path) -> Iterator[Decoded]:
    decoded = decode(path)
    yield decoded
    assert np.isfinite(prepare(decoded, PRESETS["conformer64"]).waveform).all()


def outcome(parts: Iterator[Decoded]) -> str:
    """Return ``audio``, or the reason why not; anything else is an error."""
    try:
        for decoded in parts:
            assert len(decoded.samples)
            assert np.isfinite(decoded.samples).all()
    except SampleError as error:
        return error.reason
    return "audio"


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def memory_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise AssertionError(field)
