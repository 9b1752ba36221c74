"""Every corpus lists its clips by one contract, in the layouts that users bring."""

import inspect
import os
import typing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
from corpora_files import (
    CSV,
    ESC50,
    FSD50K,
    LHOTSE,
    SPEECHCOMMANDS,
    URBANSOUND8K,
    VGGSOUND,
    place,
    write_texts,
)
from typer.testing import CliRunner

from melstream.shards.keys import check_key
from melstream.tools.corpora import Clip, Listing, find_corpora

CORPORA = find_corpora()
CARD_FIELDS = ("Content", "Size", "Licence", "Origin", "Layout", "Papers")

AUDIOSET_SEGMENTS = """\
# Segments csv created Sun Mar  5 10:54:31 2017
# num_ytids=3, num_segs=3, num_unique_labels=2, num_positive_labels=3
# YTID, start_seconds, end_seconds, positive_labels
--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"
-0RWZT-miFs, 420.000, 430.000, "/t/dd00088"
Y0_kuYkO-eA, 0.000, 10.000, "/m/09x0r"
"""
AUDIOSET_CLASSES = """\
index,mid,display_name
0,/m/09x0r,"Speech"
1,/t/dd00088,"Gush"
"""


@pytest.fixture
def metadata(tmp_path: Path) -> dict[str, list[Path]]:
    """The options of ``audioset.scan``."""
    segments, classes = tmp_path / "segments.csv", tmp_path / "classes.csv"
    segments.write_text(AUDIOSET_SEGMENTS)
    classes.write_text(AUDIOSET_CLASSES)
    return {"segments": [segments], "class_labels": [classes]}


# What the contract test brings to each corpus: the files, the metadata beside them, and what it
# must say of a folder without any. A new corpus needs a line in each.
FILES = {
    "audioset": ["--PJHxphWEs.wav", "Gush/Y-0RWZT-miFs.webm", "Y0_kuYkO-eA_0_10.flac"],
    "csv": ["dog/1.wav", "dog/2.flac", "Car, vehicle/x.ogg"],
    "esc50": ["audio/1-100032-A-0.wav", "audio/2-104105-B-19.flac"],
    "folder": ["dog bark/1.wav", "dog bark/take 2/1.flac", "Car, vehicle/x.ogg", "chime/é.mp3"],
    "fsd50k": ["FSD50K.dev_audio/64760.wav", "FSD50K.eval_audio/175151.wav"],
    "lhotse": ["a/1.flac", "b/1.wav"],
    "speechcommands": ["bed/0c40e715_nohash_0.wav", "zero/026290a7_nohash_1.wav"],
    "urbansound8k": ["audio/fold5/100263-2-0-117.wav", "audio/fold10/100648-1-0-0.wav"],
    "vggsound": ["---g-f_I2yQ_000001.mp4", "people/FwVYUHKoLtQ_000120.wav"],
}
METADATA: dict[str, dict[str, str]] = {
    "csv": CSV,
    "esc50": ESC50,
    "fsd50k": FSD50K,
    "lhotse": LHOTSE,
    "speechcommands": SPEECHCOMMANDS,
    "urbansound8k": URBANSOUND8K,
    "vggsound": VGGSOUND,
}
NO_AUDIO = r"found no audio file under .*/empty; .* \.flac .* \.wav"
EMPTY = {
    "audioset": NO_AUDIO,
    "csv": "must be a table with a header, found a folder at .*/empty",
    "esc50": r"holds meta/esc50\.csv, found in .*/empty: class$",
    "folder": NO_AUDIO,
    "fsd50k": r"holds FSD50K\.ground_truth/vocabulary\.csv, found in .*/empty: class$",
    "lhotse": r"must hold a lhotse manifest, \*cuts\*\.jsonl .*; found in .*/empty: class",
    "speechcommands": r"holds validation_list\.txt, found in .*/empty: class$",
    "urbansound8k": r"holds metadata/UrbanSound8K\.csv, found in .*/empty: class$",
    "vggsound": r"holds vggsound\.csv, found in .*/empty: class$",
}
SOURCE_IS_FILE = {"csv": "clips.csv", "lhotse": "cuts.jsonl"}


@pytest.fixture
def options(metadata: dict[str, list[Path]], tmp_path: Path) -> dict[str, dict[str, Any]]:
    own = {"audioset": metadata, "csv": {"label_column": "label"}}
    own["lhotse"] = {"root": tmp_path / "audio"}
    return {name: own.get(name, {}) for name in CORPORA}


def set_up(name: str, tmp_path: Path) -> tuple[Path, Path]:
    """Make the files of a corpus; their folder and the source to name."""
    root = write_texts(place(tmp_path / "audio", *FILES[name]), METADATA.get(name, {}))
    return root, root / SOURCE_IS_FILE.get(name, "")


@pytest.fixture(params=CORPORA, name="corpus")
def _corpus(request: pytest.FixtureRequest) -> tuple[str, ModuleType]:
    return request.param, CORPORA[request.param]


def test_every_corpus_is_tried_here() -> None:
    hint = "give the new corpus its files, metadata and options in this test"
    assert set(FILES) == set(EMPTY) == set(CORPORA), hint


def test_every_corpus_has_a_card(corpus: tuple[str, ModuleType]) -> None:
    card = corpus[1].__doc__ or ""
    assert [field for field in CARD_FIELDS if f"\n{field}: " not in card] == []


def test_every_scan_can_become_a_command(corpus: tuple[str, ModuleType]) -> None:
    name, module = corpus
    source, *keywords = inspect.signature(module.scan).parameters.values()
    hints = typing.get_type_hints(module.scan)
    assert (source.name, hints["source"], hints["return"]) == ("source", Path, Listing)
    assert all(option.kind is inspect.Parameter.KEYWORD_ONLY for option in keywords)
    app = typer.Typer()
    app.command(name)(module.scan)
    result = CliRunner().invoke(app, ["--help"], env={"TERM": "dumb", "COLUMNS": "200"})
    assert result.exit_code == 0
    assert "SOURCE" in result.output
    for option in (source, *keywords):
        (info,) = typing.get_type_hints(module.scan, include_extras=True)[option.name].__metadata__
        assert info.help
        if option in keywords:
            assert f"--{option.name.replace('_', '-')}" in result.output


def test_every_scan_keeps_the_contract(
    corpus: tuple[str, ModuleType],
    tmp_path: Path,
    options: dict[str, dict[str, Any]],
) -> None:
    name, module = corpus
    root, source = set_up(name, tmp_path)
    listing = module.scan(source, **options[name])
    keys = [clip.key for clip in listing.clips]
    assert keys == sorted(set(keys))
    assert {clip.source for clip in listing.clips if clip.path} == set(FILES[name])
    assert listing.label_ids is None or len(listing.label_ids) == len(listing.label_names)
    for clip in listing.clips:
        check_key(clip.key)
        assert list(clip.labels) == sorted(set(clip.labels))
        assert all(0 <= label < len(listing.label_names) for label in clip.labels)
        assert listing.root == root
        assert clip.path is None or (root / clip.path).is_file()


def test_every_scan_gives_the_same_whatever_the_order_of_the_file_system(
    corpus: tuple[str, ModuleType],
    tmp_path: Path,
    options: dict[str, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name, module = corpus
    _, source = set_up(name, tmp_path)
    listing = module.scan(source, **options[name])
    scandir = os.scandir

    class Backwards:
        def __init__(self, path: str) -> None:
            with scandir(path) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.entries

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(os, "scandir", Backwards)
    assert module.scan(source, **options[name]) == listing


def test_every_scan_says_what_it_looked_for_in_a_folder_without_audio(
    corpus: tuple[str, ModuleType], tmp_path: Path, options: dict[str, dict[str, Any]]
) -> None:
    name, module = corpus
    root = tmp_path / "empty"
    (root / "class").mkdir(parents=True)
    (root / "class" / "notes.txt").touch()
    (root / "class" / ".hidden.wav").touch()
    (root / "class" / "wav").touch()
    with pytest.raises(ValueError, match=EMPTY[name]):
        module.scan(root, **options[name])
    with pytest.raises(ValueError, match=r"source must .*, found nothing at .*/no such folder"):
        module.scan(root / "no such folder", **options[name])
    if name not in SOURCE_IS_FILE:
        with pytest.raises(ValueError, match=r"source must be .*, found a file at .*notes\.txt"):
            module.scan(root / "class" / "notes.txt", **options[name])


def test_a_listing_refuses_two_clips_with_one_key() -> None:
    clips = tuple(Clip(key="same", path=None, labels=(), source=name) for name in ("a", "b"))
    with pytest.raises(ValueError, match="found 'same' for both 'a' and 'b'"):
        Listing(root=Path(), clips=clips)
