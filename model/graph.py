"""A trained model as one graph, waveform in and answer out, for programs without melstream.

ONNX for onnxruntime and what reads its files, and ``torch.export`` for PyTorch, C++ included.

Legend: B sounds, N waveform samples, S latent steps, D model width, C classes.
"""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Float32
from torch import Tensor, nn

from .inference import AudioModel
from .logmel import TorchLogMel

INPUT = "waveform"
OUTPUTS = ("frames", "scores")  # the second of a tagger only
FACTS = "melstream.json"  # beside the graph in a file of torch.export

_EXAMPLE_S = 2.0


class WaveformModel(nn.Module):
    """Log-mel, encoder and tagger behind one ``forward`` that a compiler can trace.

    Args:
        model: a loaded model; its weights are shared.
    """

    def __init__(self, model: AudioModel) -> None:
        super().__init__()
        self.logmel = TorchLogMel(model.features).to(model.device)
        self.encoder = model.encoder
        self.tagger = model.tagger
        self.eval()

    def forward(self, waveform: Float32[Tensor, "B N"]) -> tuple[Tensor, ...]:
        """Compute what ``AudioModel`` does of sounds of one length, none longer than its window.

        Args:
            waveform: float32, shape (B, N), mono, in [-1, 1], at the rate of the features, at
                least a latent step and a frame's window long.

        Returns:
            frames: float32, shape (B, S, D).
            scores: float32, shape (B, C), of a tagger only.
        """
        context, _ = self.encoder(self.logmel(waveform))
        if self.tagger is None:
            return (context,)
        return context, self.tagger.scores(self.tagger.head(context, None))


def facts(model: AudioModel) -> dict[str, str]:
    """Return what a user of the graph must know, as text by name."""
    return {
        "sample_rate": str(model.features.sample_rate),
        "frame_rate_hz": str(model.frame_rate_hz),
        "label_names": json.dumps(model.label_names),
    }


def write_onnx(model: AudioModel, path: Path) -> None:
    """Write an ONNX file; any number of sounds of one length go in.

    Args:
        model: on the CPU.
        path: a new file; the facts stand in its metadata.

    Raises:
        ImportError: the packages ``onnx`` and ``onnxscript`` are not installed.
    """
    graph = WaveformModel(model)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            graph,
            _example(model, n_sounds=2),
            input_names=[INPUT],
            output_names=OUTPUTS[: 1 if model.tagger is None else 2],
            dynamic_shapes={INPUT: {0: "sounds", 1: "samples"}},
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(facts(model))
    program.save(path)


def write_program(model: AudioModel, path: Path) -> None:
    """Write a file that ``torch.export.load`` reads; one sound of two latent steps or more goes in.

    Args:
        model: on the CPU.
        path: a new file that ends in ``.pt2``; the facts stand in its extra file ``FACTS``.
    """
    graph = WaveformModel(model)
    with torch.no_grad():
        program = torch.export.export(
            graph,
            _example(model, n_sounds=1),
            dynamic_shapes={INPUT: {1: torch.export.Dim.DYNAMIC}},
        )
    torch.export.save(program, path, extra_files={FACTS: json.dumps(facts(model))})


def _example(model: AudioModel, *, n_sounds: int) -> tuple[Float32[Tensor, "B N"]]:
    return (torch.zeros(n_sounds, round(_EXAMPLE_S * model.features.sample_rate)),)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter from telling of packages that are of no use here."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
