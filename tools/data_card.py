"""``README.md`` of a data set: the card that the Hugging Face Hub shows, and people read."""

import json

from ..shards.manifest import Manifest
from ..shards.storage import Storage
from .inspect import hours

CARD_NAME = "README.md"
MAX_CLASSES = 50  # named on the card; `dataset.json` has all

SIZE_LIMITS = ("1K", "10K", "100K", "1M", "10M", "100M", "1B")


def write_card(storage: Storage, manifest: Manifest) -> None:
    """Write the card of a data set that is about to be finished."""
    storage.write(CARD_NAME, card(storage.name, manifest).encode())


def card(name: str, manifest: Manifest) -> str:
    """Return the card as Markdown, with the Hub's header.

    Args:
        name: the data set's title.
        manifest: what it holds.
    """
    parts = [_header(manifest), f"# {_plain(name)}", _summary(manifest), _use(manifest)]
    if manifest.label_names:
        parts.append(_classes(manifest))
    return "\n\n".join([*parts, _left_out(manifest)]) + "\n"


def _header(manifest: Manifest) -> str:
    task = "audio-classification" if manifest.label_names else "feature-extraction"
    return "\n".join(
        (
            "---",
            f"task_categories: [{task}]",
            "tags: [audio, log-mel, webdataset, melstream]",
            f"size_categories: [{json.dumps(_size_category(manifest.n_samples))}]",
            "configs:",
            "- config_name: default",
            "  data_files:",
            '  - {split: train, path: "*.tar"}',
            "---",
        )
    )


def _size_category(n_samples: int) -> str:
    """Name the Hub's class of sizes.

    >>> _size_category(999), _size_category(1_000), _size_category(2_000_000)
    ('n<1K', '1K<n<10K', '1M<n<10M')
    """
    power = len(str(n_samples)) - 1
    if power < 3:
        return "n<1K"
    if power - 3 >= len(SIZE_LIMITS) - 1:
        return "n>1B"
    return f"{SIZE_LIMITS[power - 3]}<n<{SIZE_LIMITS[power - 2]}"


def _summary(manifest: Manifest) -> str:
    features = manifest.features
    return (
        f"{manifest.n_samples:,} clips, {hours(manifest.duration_s)} of audio, as log-mels: "
        f"{features.n_mels} bands from {features.fmin:g} to {features.fmax:g} Hz every "
        f"{1_000 * features.hop_length / features.sample_rate:g} ms, {features.storage_dtype}"
        f"{', with the waveforms as FLAC' if manifest.has_audio else ''}. "
        f"{len(manifest.shards):,} WebDataset shards, built from the corpus "
        f"`{manifest.build.corpus}` by melstream {manifest.melstream_version}.\n\n"
        f"Fingerprint `{manifest.fingerprint}`, ids `{manifest.ids_hash}`, features "
        f"`{manifest.feature_hash}`. Who has the same ids has the same clips."
    )


def _use(manifest: Manifest) -> str:
    code = manifest.code
    decode = "" if code is None else f" * {code.scale} + {code.offset}  # uint8 code to log-mel"
    return "\n".join(
        (
            "```python",
            "import datasets, webdataset",
            "",
            'dataset = datasets.load_dataset("webdataset", data_files="*.tar", split="train")',
            f'dataset[0]["__key__"], dataset[0]["json"], dataset[0]["logmel.npy"]{decode}',
            "",
            f'webdataset.WebDataset("{manifest.shards[0].name}", shardshuffle=False).decode()',
            "```",
            "",
            "`melstream inspect` says more, `melstream verify --full` checks every byte.",
        )
    )


def _classes(manifest: Manifest) -> str:
    names = [_plain(name) for name in manifest.label_names[:MAX_CLASSES]]
    more = len(manifest.label_names) - len(names)
    rest = f" and {more} more, in `dataset.json`" if more else ""
    return f"{len(manifest.label_names)} classes: {', '.join(names)}{rest}."


def _left_out(manifest: Manifest) -> str:
    if not manifest.n_rejects:
        return "Every clip of the corpus is in the set."
    counts = ", ".join(f"{count:,} {reason}" for reason, count in manifest.n_rejects.items())
    return f"Not in the set: {counts}; `rejects.jsonl` names each."


def _plain(text: str) -> str:
    """Keep a name from being read as Markdown or HTML.

    >>> _plain("<b>*dog*</b>")
    '\\\\<b\\\\>\\\\*dog\\\\*\\\\</b\\\\>'
    """
    return "".join(f"\\{char}" if char in "\\`*_{}[]<>#|!" else char for char in text)
