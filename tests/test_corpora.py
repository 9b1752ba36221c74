"""Every corpus lists its clips by one contract, in the layouts that users bring."""

import inspect
import os
import re
import shutil
import typing
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import typer
from typer.testing import CliRunner

from melstream.shards.keys import check_key
from melstream.tools.corpora import Clip, Listing, audioset, find_corpora, folder

CORPORA = find_corpora()
CARD_FIELDS = ("Content", "Size", "Licence", "Origin", "Layout", "Papers")

ROWS = {  # id: start, end, labels
    "--PJHxphWEs": (30.0, 40.0, "/m/09x0r,/t/dd00088"),
    "-0RWZT-miFs": (420.0, 430.0, "/m/03v3yw,/m/0k4j"),
    "Y0_kuYkO-eA": (0.0, 10.0, "/m/09x0r"),
    "_dQw4w9WgXc": (7.6, 17.6, "/t/dd00088"),
    "aB_cD-eF_g8": (10.0, 20.0, "/m/0k4j"),
    "aB_cD-ef_g8": (10.0, 20.0, "/m/03v3yw,/m/09x0r"),
    "zzzzzzzzzzI": (0.0, 4.0, "/m/0k4j,/m/0k4j"),
}
HEADER = """\
# Segments csv created Sun Mar  5 10:54:31 2017
# num_ytids=7, num_segs=7, num_unique_labels=4, num_positive_labels=10
# YTID, start_seconds, end_seconds, positive_labels
"""
SEGMENTS = HEADER + "".join(
    f'{ytid}, {start:.3f}, {end:.3f}, "{mids}"\n' for ytid, (start, end, mids) in ROWS.items()
)
IDS = list(ROWS)
CLASS_LABELS = """\
index,mid,display_name
0,/m/09x0r,"Speech"
1,/t/dd00088,"Gush"
2,/m/03v3yw,"Keys jangling"
3,/m/0k4j,"Car, ""vehicle"" (motor)"
"""


@pytest.fixture
def recording(recordings: Path) -> Path:
    """A short recording that stands for any clip."""
    return recordings / "eval" / "tom" / "drum_tom_lo_soft.flac"


@pytest.fixture
def place(tmp_path: Path, recording: Path) -> Callable[..., Path]:
    """``place("a/b.wav", ...)``: put a clip at each path under one folder; the folder."""

    def place_all(*names: str) -> Path:
        root = tmp_path / "audio"
        root.mkdir(exist_ok=True)
        for name in names:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(recording, path)
        return root

    return place_all


@pytest.fixture
def metadata(tmp_path: Path) -> dict[str, Path]:
    """The options of ``audioset.scan``."""
    paths = {"segments": tmp_path / "segments.csv", "class_labels": tmp_path / "classes.csv"}
    paths["segments"].write_text(SEGMENTS)
    paths["class_labels"].write_text(CLASS_LABELS)
    return paths


def by_key(listing: Listing) -> dict[str, Clip]:
    return {clip.key: clip for clip in listing.clips}


# What the contract test brings to each corpus: the files, and the options that go with them.
# A new corpus needs a line here.
FILES = {
    "folder": ["dog bark/1.wav", "dog bark/take 2/1.flac", "Car, vehicle/x.ogg", "chime/é.mp3"],
    "audioset": [f"{IDS[0]}.wav", f"Gush/Y{IDS[1]}.webm", f"{IDS[2]}_0_10.flac"],
}


@pytest.fixture
def options(request: pytest.FixtureRequest) -> dict[str, dict[str, Path]]:
    return {"folder": {}, "audioset": request.getfixturevalue("metadata")}


@pytest.fixture(params=CORPORA, name="corpus")
def _corpus(request: pytest.FixtureRequest) -> tuple[str, ModuleType]:
    return request.param, CORPORA[request.param]


def test_every_corpus_is_tried_here() -> None:
    assert set(FILES) == set(CORPORA), "give the new corpus its files and options in this test"


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
    place: Callable[..., Path],
    options: dict[str, dict[str, Path]],
) -> None:
    name, module = corpus
    root = place(*FILES[name])
    listing = module.scan(root, **options[name])
    keys = [clip.key for clip in listing.clips]
    assert keys == sorted(set(keys))
    assert {clip.source for clip in listing.clips if clip.path} == set(FILES[name])
    assert listing.label_ids is None or len(listing.label_ids) == len(listing.label_names)
    for clip in listing.clips:
        check_key(clip.key)
        assert list(clip.labels) == sorted(set(clip.labels))
        assert all(0 <= label < len(listing.label_names) for label in clip.labels)
        assert clip.path is None or (clip.path.is_file() and clip.path == root / clip.source)


def test_every_scan_gives_the_same_whatever_the_order_of_the_file_system(
    corpus: tuple[str, ModuleType],
    place: Callable[..., Path],
    options: dict[str, dict[str, Path]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name, module = corpus
    root = place(*FILES[name])
    listing = module.scan(root, **options[name])
    scandir = os.scandir

    class Backwards:
        def __init__(self, path: str) -> None:
            with scandir(path) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.entries

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(os, "scandir", Backwards)
    assert module.scan(root, **options[name]) == listing


def test_every_scan_says_what_it_looked_for_in_a_folder_without_audio(
    corpus: tuple[str, ModuleType], tmp_path: Path, options: dict[str, dict[str, Path]]
) -> None:
    name, module = corpus
    root = tmp_path / "empty"
    (root / "class").mkdir(parents=True)
    (root / "class" / "notes.txt").touch()
    (root / "class" / ".hidden.wav").touch()
    (root / "class" / "wav").touch()
    with pytest.raises(ValueError, match=r"found no audio file under .*/empty; .* \.flac .* \.wav"):
        module.scan(root, **options[name])
    with pytest.raises(ValueError, match=r"must be a folder of audio files, found nothing at"):
        module.scan(root / "no such folder", **options[name])
    with pytest.raises(ValueError, match=r"must be a folder of audio files, found a file at"):
        module.scan(root / "class" / "notes.txt", **options[name])


def test_a_listing_refuses_two_clips_with_one_key() -> None:
    clips = tuple(Clip(key="same", path=None, labels=(), source=name) for name in ("a", "b"))
    with pytest.raises(ValueError, match="found 'same' for both 'a' and 'b'"):
        Listing(clips=clips, label_names=(), label_ids=None, n_unlisted=0)


# --- folder


def test_the_recordings_that_ship_share_their_classes(recordings: Path) -> None:
    train, evaluation = (folder.scan(recordings / split) for split in ("train", "eval"))
    assert train.label_names == evaluation.label_names
    clip = next(clip for clip in evaluation.clips if clip.source == "tom/drum_tom_lo_soft.flac")
    assert clip.key.startswith("tom_drum_tom_lo_soft-")
    assert clip.labels == (train.label_names.index("tom"),)


def test_the_first_folder_level_is_the_class(place: Callable[..., Path]) -> None:
    root = place("dog/2024/may/1.wav", "dog/1.wav", "Cat & co, indoors/1.wav")
    listing = folder.scan(root)
    assert listing.label_names == ("Cat & co, indoors", "dog")
    assert {clip.source: clip.labels for clip in listing.clips} == {
        "dog/2024/may/1.wav": (1,),
        "dog/1.wav": (1,),
        "Cat & co, indoors/1.wav": (0,),
    }


def test_names_that_differ_by_suffix_or_case_or_dots_stay_apart(
    place: Callable[..., Path],
) -> None:
    names = ["a/x.wav", "a/x.flac", "a/X.wav", "a/x.1.wav", "a/x.2.wav", "a/x_1.wav", "b/x.wav"]
    assert len(by_key(folder.scan(place(*names)))) == len(names)


def test_a_key_does_not_depend_on_the_suffix(place: Callable[..., Path], tmp_path: Path) -> None:
    (before,) = folder.scan(place("a/take 1.wav")).clips
    (tmp_path / "audio/a/take 1.wav").rename(tmp_path / "audio/a/take 1.flac")
    (after,) = folder.scan(tmp_path / "audio").clips
    assert before.key == after.key


def test_files_without_any_class_folder_have_no_labels(place: Callable[..., Path]) -> None:
    listing = folder.scan(place("one.wav", "two.OGG", "three.txt"))
    assert listing.label_names == ()
    assert {key: clip.labels for key, clip in by_key(listing).items()} == {"one": (), "two": ()}


def test_files_beside_class_folders_are_an_error_unless_unlabelled(
    place: Callable[..., Path],
) -> None:
    root = place("dog/1.wav", "stray.wav")
    with pytest.raises(ValueError, match=r"found 1 of 2 directly in .*'stray.wav'.*--unlabelled"):
        folder.scan(root)
    listing = folder.scan(root, unlabelled=True)
    assert listing.label_names == ()
    assert [clip.labels for clip in listing.clips] == [(), ()]


def test_a_list_of_labels_gives_the_order_and_may_name_more(
    place: Callable[..., Path], tmp_path: Path
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("siren\n\ndog\ncat\n")
    listing = folder.scan(place("dog/1.wav"), labels=labels)
    assert listing.label_names == ("siren", "dog", "cat")
    assert listing.clips[0].labels == (1,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "bass\nsnare\n",
            r"must be named in .*labels.txt \(2 names\), found 'basss' \(close: 'bass'\)",
        ),
        ("snare\n", r"found 'basss'; rename the folder or add a line"),
        ("bass\nsnare\nbass\n", r"labels.txt, line 3: .* found 'bass' on line 1 too"),
        ("\n", r"labels.txt must hold one class name a line, found none"),
    ],
)
def test_a_wrong_list_of_labels_is_an_error(
    text: str, message: str, place: Callable[..., Path], tmp_path: Path
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text(text)
    with pytest.raises(ValueError, match=message):
        folder.scan(place("basss/1.wav"), labels=labels)


def test_wrong_options_are_errors(place: Callable[..., Path], tmp_path: Path) -> None:
    root = place("dog/1.wav")
    with pytest.raises(ValueError, match="exclude each other"):
        folder.scan(root, labels=tmp_path, unlabelled=True)
    with pytest.raises(ValueError, match=r"found no .*nowhere\.txt"):
        folder.scan(root, labels=tmp_path / "nowhere.txt")


def test_names_that_are_not_utf_8_are_kept_apart_and_can_be_stored(
    place: Callable[..., Path], recording: Path
) -> None:
    root = place("plain/1.wav")
    for name in (b"t\xe9st/k\xfcl.wav", b"t\xe9st/k\xf6l.wav"):
        path = Path(os.fsdecode(os.fsencode(root) + b"/" + name))
        path.parent.mkdir(exist_ok=True)
        shutil.copyfile(recording, path)
    listing = folder.scan(root)
    assert listing.label_names == ("plain", r"t\xe9st")
    assert len(by_key(listing)) == 3
    for clip in listing.clips:
        clip.source.encode()  # would raise on a surrogate
        assert clip.path
        assert clip.path.is_file()


def test_links_are_followed_and_a_loop_ends(place: Callable[..., Path], tmp_path: Path) -> None:
    root = place("dog/1.wav")
    (root / "dog" / "loop").symlink_to(root)
    (root / "dog" / "2.wav").symlink_to(root / "dog" / "1.wav")
    elsewhere = tmp_path / "elsewhere"
    shutil.move(root / "dog" / "1.wav", tmp_path / "1.wav")
    elsewhere.mkdir()
    shutil.move(tmp_path / "1.wav", elsewhere / "1.wav")
    (root / "cat").symlink_to(elsewhere)
    listing = folder.scan(root)
    assert [(c.source, c.path is None) for c in sorted(listing.clips, key=lambda c: c.source)] == [
        ("cat/1.wav", False),
        ("dog/2.wav", True),  # its target moved: listed, so that the build counts it as missing
    ]


# --- audioset


@pytest.mark.parametrize(
    "name",
    [
        "{id}.wav",
        "Y{id}.wav",
        "{id}_{start}_{end}.flac",
        "{id}_{start:.1f}-{end:.1f}.ogg",
        "{id}_{start:.3f}.flac",
        "Y{id}_{start:.3f}_{end:.3f}.m4a",
        "{id}_{start:.0f}.wav",
        "{id}_{ms}_{ms_end}.webm",
        "unbalanced_train_segments_part07/Y{id}.wav",
        "Gush, splash & co/deep er/{id}_{start:.1f}-{end:.1f}.OPUS",
    ],
)
def test_every_layout_finds_every_clip(
    name: str, place: Callable[..., Path], metadata: dict[str, Path]
) -> None:
    names = [
        name.format(id=ytid, start=start, end=end, ms=int(start * 1000), ms_end=int(end * 1000))
        for ytid, (start, end, _) in ROWS.items()
    ]
    listing = audioset.scan(place(*names), **metadata)
    assert {clip.key: clip.source for clip in listing.clips} == dict(zip(IDS, names, strict=True))
    assert all(clip.path for clip in listing.clips)
    assert (listing.n_unlisted, listing.n_duplicates, listing.n_mistimed) == (0, 0, 0)


def test_rows_become_clips_with_their_labels_and_times(
    place: Callable[..., Path], metadata: dict[str, Path]
) -> None:
    listing = audioset.scan(place("Y_dQw4w9WgXc.wav"), **metadata)
    assert listing.label_names == ("Speech", "Gush", "Keys jangling", 'Car, "vehicle" (motor)')
    assert listing.label_ids == ("/m/09x0r", "/t/dd00088", "/m/03v3yw", "/m/0k4j")
    clips = by_key(listing)
    assert sorted(clips) == sorted(IDS)
    assert clips["aB_cD-eF_g8"].labels == (3,)
    assert clips["aB_cD-ef_g8"].labels == (0, 2)  # differs by case only
    assert clips["zzzzzzzzzzI"].labels == (3,)  # named twice in its row
    found = clips["_dQw4w9WgXc"]
    assert (found.start_s, found.duration_s) == (7.6, 10.0)
    assert found.source == "Y_dQw4w9WgXc.wav"
    missing = clips["-0RWZT-miFs"]
    assert missing == Clip("-0RWZT-miFs", None, (2, 3), "-0RWZT-miFs", 420.0, 10.0)


def test_an_id_that_starts_with_y_is_not_cut(
    place: Callable[..., Path], metadata: dict[str, Path]
) -> None:
    for name in ("Y0_kuYkO-eA.wav", "YY0_kuYkO-eA_0_10.wav"):
        root = place(name)
        assert by_key(audioset.scan(root, **metadata))["Y0_kuYkO-eA"].source == name
        (root / name).unlink()


def test_every_file_is_counted_once(place: Callable[..., Path], metadata: dict[str, Path]) -> None:
    root = place(
        "--PJHxphWEs.wav",  # listed; the file with times wins
        "Speech/--PJHxphWEs_30.0-40.0.wav",
        "Gush, splash/--PJHxphWEs_30.0-40.0.wav",  # first by path of those with times
        "-0RWZT-miFs_30.000.wav",  # listed with another start
        "aB_cD-eF_g8_10_15.wav",  # with another end
        "AB_CD-EF_G8.wav",  # no such id, but for its case
        "intro music.mp3",
        "Some title [Y0_kuYkO-eA].webm",
        "Y0_kuYkO-eA_0_10_16k.wav",
    )
    listing = audioset.scan(root, **metadata)
    clips = by_key(listing)
    assert clips["--PJHxphWEs"].source == "Gush, splash/--PJHxphWEs_30.0-40.0.wav"
    assert [key for key, clip in clips.items() if clip.path] == ["--PJHxphWEs"]
    assert (listing.n_duplicates, listing.n_mistimed, listing.n_unlisted) == (2, 2, 4)


def test_files_of_another_set_are_an_error(
    place: Callable[..., Path], metadata: dict[str, Path]
) -> None:
    root = place("other.wav", "-0RWZT-miFs_30.000.wav")
    with pytest.raises(
        ValueError, match=r"none of the 2 audio files .*segments.csv: 1 have an id .* 1 other times"
    ):
        audioset.scan(root, **metadata)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace(", ", ","),
        lambda text: text.replace("# YTID", "YTID"),
        lambda text: text.removeprefix(HEADER),
        lambda text: text + "\n\n",
    ],
    ids=["bom", "crlf", "no spaces", "header without #", "no header", "blank lines"],
)
def test_segments_are_read_as_other_programs_save_them(
    change: Callable[[str], str], place: Callable[..., Path], metadata: dict[str, Path]
) -> None:
    root = place("--PJHxphWEs.wav")
    listing = audioset.scan(root, **metadata)
    metadata["segments"].write_bytes(change(SEGMENTS).encode())
    assert audioset.scan(root, **metadata) == listing


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "# YTID, start_seconds, end_seconds,",
            "# YTID, start_seconds,",
            "line 3: the columns must be",
        ),
        (
            "positive_labels\n",
            "labels\n",
            "line 3: .*, found YTID, start_seconds, end_seconds, labels",
        ),
        (', "/m/09x0r"', "", "line 6: a row must hold YTID, .*, found 3 fields"),
        ("-0RWZT-miFs", "#NAME?", "line 5: a YouTube id has 11 characters"),
        (
            "-0RWZT-miFs",
            "0RWZT-miFs",
            "line 5: a YouTube id has 11 characters.*, found '0RWZT-miFs'",
        ),
        ("420.000", "7:00", "line 5: start_seconds must be .*, found '7:00' and '430.000'"),
        ("420.000", "nan", "line 5: start_seconds must be"),
        ("420.000", "430.000", "line 5: start_seconds must be 0 or more and end_seconds greater"),
        ("/m/03v3yw", "/m/0xyz", r"line 5: .* mid of .*classes.csv \(4 classes\), found '/m/0xyz'"),
        ('"/m/09x0r"', '""', "line 6: every label must be a mid of .*, found ''"),
        ("aB_cD-ef_g8", "aB_cD-eF_g8", "line 9: .* 'aB_cD-eF_g8' stands on line 8 too"),
        (SEGMENTS, "PK\x03\x04 \udcff\udcfe\n", "line 1: a row must hold .*, found 1 fields"),
        (SEGMENTS, HEADER, "segments.csv must list clips, found none"),
    ],
)
def test_broken_segments_are_an_error_with_the_line(
    old: str, new: str, message: str, place: Callable[..., Path], metadata: dict[str, Path]
) -> None:
    assert old in SEGMENTS
    text = SEGMENTS.replace(old, new, 1)
    metadata["segments"].write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=message):
        audioset.scan(place("--PJHxphWEs.wav"), **metadata)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "index,mid,display_name",
            "index,mid",
            "line 1: expected the columns index,mid,display_name",
        ),
        (
            "2,/m/03v3yw",
            "5,/m/03v3yw",
            "line 4: expected index 2, a mid not seen before and a name",
        ),
        ("/t/dd00088", "/m/09x0r", "line 3: expected index 1, a mid not seen before"),
        (',"Gush"', "", "line 3: expected .*, found '1,/t/dd00088'"),
        (CLASS_LABELS, "index,mid,display_name\n", "must list the classes, found none"),
    ],
)
def test_a_broken_class_list_is_an_error_with_the_line(
    old: str, new: str, message: str, place: Callable[..., Path], metadata: dict[str, Path]
) -> None:
    metadata["class_labels"].write_text(CLASS_LABELS.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        audioset.scan(place("--PJHxphWEs.wav"), **metadata)


@pytest.mark.parametrize("option", ["segments", "class_labels"])
def test_absent_metadata_is_named_with_its_option(
    option: str, place: Callable[..., Path], metadata: dict[str, Path]
) -> None:
    metadata[option].unlink()
    flag = re.escape(f"`--{option.replace('_', '-')}` must be a CSV file, found no ")
    with pytest.raises(ValueError, match=flag):
        audioset.scan(place("--PJHxphWEs.wav"), **metadata)
