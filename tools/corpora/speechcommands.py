"""Speech Commands: one-second recordings of single English words.

Content: utterances of about 1 s, 16 kHz, mono, of one word each, by volunteers; ``_background_
    noise_`` holds six longer recordings of noise, which are no utterances and are not listed.
Size: v0.02: 105,829 utterances of 35 words; v0.01: 64,727 of 30.
Licence: CC-BY-4.0.
Origin: http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz
Layout: ``SOURCE/<word>/<speaker>_nohash_<n>.wav``; ``validation_list.txt`` and
    ``testing_list.txt`` name the files of two splits, all others are for training.
Papers: Warden 2018, Speech Commands: A Dataset for Limited-Vocabulary Speech Recognition
    (arXiv:1804.03209).

All words are classes. The task with ten words, "unknown" and "silence" is another one.
"""

import re
from pathlib import Path
from typing import Annotated

import typer

from ...shards.keys import make_key
from .corpus import Clip, Listing
from .files import find_audio
from .names import stem_of
from .published import list_published, require_file
from .tables import at_line, require_new

EXAMPLE = "melstream build speechcommands speech_commands_v0.02 --out shards/speechcommands"

SPLITS = ("train", "validation", "test")
LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}

# A folder that starts with `_` is no word: `_background_noise_`.
_NAME = re.compile(r"(?P<word>[^/_][^/]*)/(?P<utterance>[^/]+_nohash_\d+)\.[^./]+")


def scan(
    source: Annotated[
        Path, typer.Argument(help="Folder that holds one folder per word.", metavar="SOURCE")
    ],
) -> Listing:
    """List the utterances of Speech Commands, version 0.01 or 0.02.

    A key is ``<word>_<speaker>_nohash_<n>``.

    Args:
        source: the folder that holds the folders of the words and both lists.

    Returns:
        listing: one clip per utterance on disk or in a list; classes are the words, sorted;
        splits train, validation, test.

    Raises:
        ValueError: a list is not there or broken, or there is no utterance.
    """
    splits: dict[str, str] = {}
    for split, name in LISTS.items():
        splits |= dict.fromkeys(_read_list(require_file(source, name), splits), split)
    files = list(find_audio(source))
    found = (f"{stem_of(name)}.wav" for name, _ in files if _NAME.fullmatch(name))
    utterances = sorted({*splits, *found})
    words = sorted({name.partition("/")[0] for name in utterances})
    index = {word: number for number, word in enumerate(words)}
    clips = {name: _make_clip(name, index, splits.get(name, "train")) for name in utterances}
    return list_published(source, clips, files, label_names=tuple(words), splits=SPLITS)


def _make_clip(name: str, index: dict[str, int], split: str) -> Clip:
    word, _, file = name.partition("/")
    key = make_key(f"{word}_{stem_of(file)}")
    return Clip(key=key, path=None, labels=(index[word],), source=key, split=SPLITS.index(split))


def _read_list(path: Path, earlier: dict[str, str]) -> list[str]:
    """Read the files of one split.

    Args:
        path: one file a line.
        earlier: the files of the splits before.
    """
    lines: dict[str, int] = {}
    with path.open(encoding="utf-8", errors="backslashreplace") as file:
        for line, text in enumerate(file, start=1):
            name = text.strip()
            if not name:
                continue
            with at_line(path, line):
                require_new(name, line, lines)
                if not _NAME.fullmatch(name):
                    raise ValueError(f"expected <word>/<speaker>_nohash_<n>.wav, found {name!r}")
                if name in earlier:
                    raise ValueError(f"{name!r} is in {LISTS[earlier[name]]} too")
    return list(lines)
