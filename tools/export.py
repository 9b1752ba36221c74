"""``melstream export``: a trained model in a folder of its own, to publish or to serve.

model.safetensors, model.json   what ``melstream.model.load`` reads
README.md                       its card, as the Hugging Face Hub shows it
model.onnx                      on request: waveform in, answer out, for onnxruntime
model.pt2                       on request: the same for ``torch.export.load``
"""

import importlib.util
from pathlib import Path

from ..model.atomic_folder import atomic_folder
from ..model.graph import write_onnx, write_program
from ..model.inference import load
from ..shards.errors import DatasetError
from .model_card import CARD_NAME, model_readme
from .model_folder import read_model, write_model
from .run_summary import read_evaluations

ONNX_NAME = "model.onnx"
PROGRAM_NAME = "model.pt2"

_ONNX_PACKAGES = ("onnx", "onnxscript")


def export(run: Path, out: Path, *, onnx: bool = False, program: bool = False) -> None:
    """Write a model to a new folder, whole or not at all.

    Args:
        run: folder of a run, a model or a checkpoint.
        out: the new folder.
        onnx: write a graph for onnxruntime, too.
        program: write a graph for PyTorch, too.

    Raises:
        DatasetError: no model there, or something stands at ``out``.
        CheckpointError: it is damaged.
        ValueError: a package that writes ONNX is missing.
    """
    if out.exists():
        raise DatasetError(f"{out} is there already; remove it, or choose another --out")
    missing = [name for name in _ONNX_PACKAGES if onnx and importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"`--onnx` needs {' and '.join(missing)}, not installed; pip install 'melstream[onnx]'"
        )
    state, card = read_model(run)
    evaluations = tuple(read_evaluations(run))
    with atomic_folder(out) as folder:
        write_model(folder, state, card)
        model = load(folder)
        readme = model_readme(
            out.resolve().name,
            card,
            n_parameters=sum(p.numel() for p in (model.tagger or model.encoder).parameters()),
            evaluations=evaluations,
            has_onnx=onnx,
            has_program=program,
        )
        (folder / CARD_NAME).write_text(readme, encoding="utf-8")
        if onnx:
            write_onnx(model, folder / ONNX_NAME)
        if program:
            write_program(model, folder / PROGRAM_NAME)
