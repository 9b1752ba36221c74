"""``README.md`` of an exported model: the card that the Hugging Face Hub shows, and people read."""

from collections.abc import Sequence
from importlib.metadata import version

from .data_card import MAX_CLASSES, plain
from .model_folder import ModelCard
from .run_summary import Evaluation

CARD_NAME = "README.md"


def model_readme(
    name: str,
    card: ModelCard,
    *,
    n_parameters: int,
    evaluations: Sequence[Evaluation] = (),
    has_onnx: bool = False,
    has_program: bool = False,
) -> str:
    """Return the card as Markdown, with the Hub's header.

    Args:
        name: the model's title.
        card: what it is.
        n_parameters: how many numbers it has learnt.
        evaluations: of the model, as they lie in its run.
        has_onnx, has_program: which graphs lie beside it.
    """
    parts = [_header(card), f"# {plain(name)}", _summary(card, n_parameters), _use(card)]
    if has_onnx:
        parts.append(_onnx_use(card))
    if has_program:
        parts.append(_program_use(card))
    if evaluations:
        parts.append(_results(evaluations))
    if card.label_names:
        parts.append(_classes(card))
    return "\n\n".join(parts) + "\n"


def _header(card: ModelCard) -> str:
    task = "audio-classification" if card.kind == "tagger" else "feature-extraction"
    return "\n".join(
        (
            "---",
            "library_name: melstream",
            f"pipeline_tag: {task}",
            "tags: [audio, self-supervised, conformer, wav2vec2, log-mel, melstream]",
            "---",
        )
    )


def _summary(card: ModelCard, n_parameters: int) -> str:
    encoder, features = card.encoder, card.features
    what = f"a conformer of {encoder.n_layers} blocks, {encoder.dim} wide"
    rate_hz = features.frame_rate_hz / encoder.stride
    gives = f"an embedding of {encoder.dim} numbers {rate_hz:g} times a second"
    if card.kind == "tagger":
        gives += f", and scores of {len(card.label_names)} classes"
    trained_on = ", ".join(f"`{fingerprint}`" for fingerprint in dict.fromkeys(card.trained_on))
    return (
        f"{what[0].upper()}{what[1:]}, {n_parameters:,} parameters. It takes mono audio at "
        f"{features.sample_rate:,} Hz, makes log-mels of it ({features.n_mels} bands from "
        f"{features.fmin:g} to {features.fmax:g} Hz every "
        f"{1_000 * features.hop_length / features.sample_rate:g} ms) and gives {gives}.\n\n"
        f"Trained on the data sets with the fingerprints {trained_on}, in its last training for "
        f"{card.steps:,} steps on crops of {card.crop_s:g} s. Written by melstream "
        f"{version('melstream')}."
    )


def _use(card: ModelCard) -> str:
    call = 'model.embed("dog.wav").clips  # float32, shape (1, ' + f"{card.encoder.dim})"
    lines = ["import melstream.model", "", 'model = melstream.model.load(".")', call]
    if card.kind == "tagger":
        lines.append('model.tag("dog.wav").top(5)  # classes with their scores')
    return _python(lines)


def _onnx_use(card: ModelCard) -> str:
    outputs = "frames, scores" if card.kind == "tagger" else "(frames,)"
    features = card.features
    step_s = card.encoder.stride / features.frame_rate_hz
    shortest_s = max(step_s, features.win_length / features.sample_rate)
    return (
        f"Without PyTorch; any number of sounds of one length, {shortest_s:g} s or more, mono, at "
        f"{features.sample_rate:,} Hz (names of classes: `session.get_modelmeta()`):\n\n"
    ) + _python(
        [
            "import onnxruntime",
            "",
            'session = onnxruntime.InferenceSession("model.onnx")',
            f'{outputs} = session.run(None, {{"waveform": waveform}})  # float32, shape (B, N)',
        ]
    )


def _program_use(card: ModelCard) -> str:
    outputs = "frames, scores" if card.kind == "tagger" else "(frames,)"
    shortest_s = 2 * card.encoder.stride / card.features.frame_rate_hz
    return f"With PyTorch alone, one sound of {shortest_s:g} s or more at a time:\n\n" + _python(
        [
            "import torch",
            "",
            'program = torch.export.load("model.pt2").module()',
            f"{outputs} = program(waveform)  # float32, shape (1, N)",
        ]
    )


def _python(lines: Sequence[str]) -> str:
    return "\n".join(("```python", *lines, "```"))


def _results(evaluations: Sequence[Evaluation]) -> str:
    figures = ("mAP", "mAUC", "accuracy")
    rows = [
        f"| {plain(each.name)} | {each.n_clips:,} | "
        + " | ".join(_figure(getattr(each, name)) for name in figures)
        + " |"
        for each in evaluations
    ]
    return "\n".join(
        (f"| evaluation | clips | {' | '.join(figures)} |", "|---|---|---|---|---|", *rows)
    )


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _classes(card: ModelCard) -> str:
    names = [plain(name) for name in card.label_names[:MAX_CLASSES]]
    more = len(card.label_names) - len(names)
    rest = f" and {more} more, in `model.json`" if more else ""
    return f"{len(card.label_names)} classes: {', '.join(names)}{rest}."
