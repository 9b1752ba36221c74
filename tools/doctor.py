"""``melstream doctor``: what works here, what does not, and how to mend it."""

import importlib
import platform
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

REQUIRED = ("numpy", "numba", "scipy", "soundfile", "av", "soxr", "zarr", "torch", "torchaudio")
TORCH_PAIR = (
    'pip install --force-reinstall "torch>=2.11,<2.12" "torchaudio>=2.11,<2.12" '
    "(both from PyPI: they must be built for each other)"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check.

    Args:
        name: what was checked.
        is_ok: whether it works.
        detail: version or value found, or what went wrong.
        remedy: what to type, where it does not work.
        is_required: False where melstream works without it.
    """

    name: str
    is_ok: bool
    detail: str
    remedy: str = ""
    is_required: bool = True


def examine() -> list[Finding]:
    """Run every check."""
    findings = [
        Finding("melstream", True, metadata.version("melstream")),
        Finding("python", True, platform.python_version()),
    ]
    findings += [_check(name, _importer(name), _remedy(name)) for name in REQUIRED]
    findings += [
        _check("log-mel kernels (numba)", _kernels, "pip install --force-reinstall numba"),
        _check(
            "decode FLAC (soundfile)", _decode("flac"), "pip install --force-reinstall soundfile"
        ),
        _check("decode Opus in WebM (PyAV)", _decode("webm"), "pip install --force-reinstall av"),
        _check(
            "GPU", _gpu, "training runs on the CPU; for a GPU install its driver", required=False
        ),
    ]
    return findings


def _check(name: str, test: Callable[[], str], remedy: str, *, required: bool = True) -> Finding:
    try:
        return Finding(name, True, test())
    except Exception as error:  # whatever breaks is the finding
        first_line = (str(error).splitlines() or [""])[0]
        detail = f"{type(error).__name__}: {first_line}"
        return Finding(name, False, detail, remedy, required)


def _importer(name: str) -> Callable[[], str]:
    def load() -> str:
        importlib.import_module(name)
        return metadata.version(name)

    return load


def _remedy(name: str) -> str:
    return (
        TORCH_PAIR if name in ("torch", "torchaudio") else f"pip install --force-reinstall {name}"
    )


def _kernels() -> str:
    from ..pipeline.logmel import LogMel
    from ..shards.spec import PRESETS

    spec = PRESETS["conformer64"]
    logmel = LogMel(spec)(_tone(spec.sample_rate))
    return f"1 s of audio gives {len(logmel)} frames of {spec.n_mels} bands"


def _decode(kind: str) -> Callable[[], str]:
    def round_trip() -> str:
        from ..pipeline.decode import decode

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"tone.{kind}"
            (_write_flac if kind == "flac" else _write_webm)(path)
            decoded = decode(path)
        return f"{len(decoded.samples)} samples at {decoded.sample_rate} Hz by {decoded.decoder}"

    return round_trip


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("torch sees no CUDA device")
    return torch.cuda.get_device_name()


def _tone(sample_rate: int) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(sample_rate) / sample_rate)).astype(np.float32)


def _write_flac(path: Path) -> None:
    import soundfile

    soundfile.write(path, _tone(16_000), 16_000)


def _write_webm(path: Path) -> None:
    import av

    with av.open(str(path), "w", format="webm") as container:
        stream = container.add_stream("libopus", rate=48_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(_tone(48_000)[None], format="flt", layout="mono")
        frame.sample_rate = 48_000
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
