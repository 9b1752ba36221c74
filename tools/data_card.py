"""``README.md`` of a data set: the card that the Hugging Face Hub shows, and people read."""

import json
from collections.abc import Sequence
from typing import Any

from ..shards.manifest import Manifest
from ..shards.storage import Storage
from .hours import hours

CARD_NAME = "README.md"
MAX_CLASSES = 50  # named on the card; `dataset.json` has all

SIZE_LIMITS = ("1K", "10K", "100K", "1M", "10M", "100M", "1B")


MARK = "tags: [audio, log-mel, webdataset, melstream]"  # says that a card is one of ours
FIELDS = ("json", "logmel.npy")


def write_card(storage: Storage, manifest: Manifest, **how: Any) -> None:
    """Write the card of a data set that is about to be finished.

    A ``README.md`` that melstream did not write is left alone.

    Args:
        storage: where the data set lies.
        manifest: what it holds.
        how: keywords of ``card``.
    """
    if storage.size(CARD_NAME) is not None and MARK.encode() not in storage.read(CARD_NAME):
        return
    text = card(storage.name, manifest, **how)
    storage.write(CARD_NAME, text.encode("utf-8", "backslashreplace"))


def card(
    name: str,
    manifest: Manifest,
    *,
    origin: str | None = None,
    fields: Sequence[str] = FIELDS,
) -> str:
    """Return the card as Markdown, with the Hub's header.

    Args:
        name: the data set's title.
        manifest: what it holds.
        origin: where the clips are from, as a sentence; None for a build, which the
            manifest tells.
        fields: what follows the key in the names of the members to show.
    """
    parts = [
        _header(manifest),
        f"# {plain(name)}",
        _summary(manifest, origin),
        _use(manifest, fields),
    ]
    if manifest.label_names:
        parts.append(_classes(manifest))
    if origin is None:
        parts.append(_left_out(manifest))
    return "\n\n".join(parts) + "\n"


def _header(manifest: Manifest) -> str:
    task = "audio-classification" if manifest.label_names else "feature-extraction"
    return "\n".join(
        (
            "---",
            f"task_categories: [{task}]",
            MARK,
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


def _summary(manifest: Manifest, origin: str | None) -> str:
    features = manifest.features
    corpus = plain(manifest.build.corpus)
    made = plain(origin) if origin else f"Built from the corpus {corpus}."
    return (
        f"{manifest.n_samples:,} clips, {hours(manifest.duration_s)} of audio, as log-mels: "
        f"{features.n_mels} bands from {features.fmin:g} to {features.fmax:g} Hz every "
        f"{1_000 * features.hop_length / features.sample_rate:g} ms, {features.storage_dtype}"
        f"{', with the waveforms as FLAC' if manifest.has_audio else ''}. "
        f"{len(manifest.shards):,} WebDataset shards. {made} Written by melstream "
        f"{manifest.melstream_version}.\n\n"
        f"Fingerprint `{manifest.fingerprint}`, ids `{manifest.ids_hash}`, features "
        f"`{manifest.feature_hash}`. Who has the same ids has the same clips."
    )


def _use(manifest: Manifest, fields: Sequence[str]) -> str:
    code = manifest.code
    decode = "" if code is None else f" * {code.scale} + {code.offset}  # uint8 code to log-mel"
    shown = ", ".join(f"dataset[0][{json.dumps(field)}]" for field in ("__key__", *fields))
    return "\n".join(
        (
            "```python",
            "import datasets, webdataset",
            "",
            'dataset = datasets.load_dataset("webdataset", data_files="*.tar", split="train")',
            f"{shown}{decode}",
            "",
            f'webdataset.WebDataset("{manifest.shards[0].name}", shardshuffle=False).decode()',
            "```",
            "",
            "`melstream inspect` says more, `melstream verify --full` checks every byte.",
        )
    )


def _classes(manifest: Manifest) -> str:
    names = [plain(name) for name in manifest.label_names[:MAX_CLASSES]]
    more = len(manifest.label_names) - len(names)
    rest = f" and {more} more, in `dataset.json`" if more else ""
    return f"{len(manifest.label_names)} classes: {', '.join(names)}{rest}."


def _left_out(manifest: Manifest) -> str:
    if not manifest.n_rejects:
        return "Every clip of the corpus is in the set."
    counts = ", ".join(f"{count:,} {reason}" for reason, count in manifest.n_rejects.items())
    return f"Not in the set: {counts}; `rejects.jsonl` names each."


def plain(text: str) -> str:
    """Keep a name from being read as Markdown or HTML.

    >>> plain("<b>*dog*</b>")
    '\\\\<b\\\\>\\\\*dog\\\\*\\\\</b\\\\>'
    """
    return "".join(f"\\{char}" if char in "\\`*_{}[]<>#|!" else char for char in text)
