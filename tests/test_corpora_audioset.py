"""AudioSet: what downloaders leave and what is published, matched."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from melstream.tools.corpora import Clip, Listing, audioset

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
EVAL_SEGMENTS = """\
# Segments csv created Sun Mar  5 10:54:25 2017
# num_ytids=2, num_segs=2, num_unique_labels=2, num_positive_labels=2
# YTID, start_seconds, end_seconds, positive_labels
--4gqARaEJE, 0.000, 10.000, "/m/0k4j"
--BfvyPmVMo, 20.000, 30.000, "/m/09x0r"
"""
STRONG_COLUMNS = "segment_id\tstart_time_seconds\tend_time_seconds\tlabel\n"
TRAIN_STRONG = (  # as published, but for the number of rows
    STRONG_COLUMNS
    + """\
s9d-2nhuJCQ_30000\t2.627\t7.237\t/m/053hz1
s9d-2nhuJCQ_30000\t0.000\t10.000\t/m/09x0r
--PJHxphWEs_30000\t1.435\t2.012\t/m/07pzfmf
b0RFKhbpFJA_0\t0.000\t9.500\t/m/09x0r
s9d-2nhuJCQ_30000\t0.000\t0.841\t/m/053hz1
"""
)
EVAL_STRONG = STRONG_COLUMNS + "--4gqARaEJE_0\t0.000\t0.096\t/m/09x0r\n"
STRONG_CLASSES = """\
/g/122z_qxw\tFirecracker
/m/053hz1\tCheering
/m/07pzfmf\tCrackle
/m/09x0r\tSpeech, strong
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
def metadata(tmp_path: Path) -> dict[str, list[Path]]:
    """The options of ``audioset.scan``."""
    segments, classes = tmp_path / "segments.csv", tmp_path / "classes.csv"
    segments.write_text(SEGMENTS)
    classes.write_text(CLASS_LABELS)
    return {"segments": [segments], "class_labels": [classes]}


@pytest.fixture
def lists(tmp_path: Path) -> Callable[..., list[Path]]:
    """``lists(eval_segments_csv=text, ...)``: write published files; their paths."""

    def write(**texts: str) -> list[Path]:
        paths = []
        for name, text in texts.items():
            stem, _, suffix = name.rpartition("_")
            paths.append(tmp_path / f"{stem}.{suffix}")
            paths[-1].write_text(text)
        return paths

    return write


def by_key(listing: Listing) -> dict[str, Clip]:
    return {clip.key: clip for clip in listing.clips}


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
        "videos/Wind [live], e.g. 1.5 h [{id}].webm",
        "[aB_cD-xx_g8] [{id}]_{start:.0f}.mkv",
    ],
)
def test_every_layout_finds_every_clip(
    name: str, place: Callable[..., Path], metadata: dict[str, list[Path]]
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
    place: Callable[..., Path], metadata: dict[str, list[Path]]
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
    assert missing == Clip(
        "-0RWZT-miFs", None, (2, 3), "-0RWZT-miFs", start_s=420.0, duration_s=10.0, split=0
    )


def test_an_id_that_starts_with_y_is_not_cut(
    place: Callable[..., Path], metadata: dict[str, list[Path]]
) -> None:
    for name in ("Y0_kuYkO-eA.wav", "YY0_kuYkO-eA_0_10.wav"):
        root = place(name)
        assert by_key(audioset.scan(root, **metadata))["Y0_kuYkO-eA"].source == name
        (root / name).unlink()


def test_every_file_is_counted_once(
    place: Callable[..., Path], metadata: dict[str, list[Path]]
) -> None:
    root = place(
        "--PJHxphWEs.wav",  # listed; the file with times wins
        "Speech/--PJHxphWEs_30.0-40.0.wav",
        "Gush, splash/--PJHxphWEs_30.0-40.0.wav",  # first by path of those with times
        "-0RWZT-miFs_30.000.wav",  # listed with another start
        "aB_cD-eF_g8_10_15.wav",  # with another end
        "AB_CD-EF_G8.wav",  # no such id, but for its case
        "intro music.mp3",
        "Some title [Y0_kuYkO-eA] part 2.webm",
        "Y0_kuYkO-eA_0_10_16k.wav",
    )
    listing = audioset.scan(root, **metadata)
    clips = by_key(listing)
    assert clips["--PJHxphWEs"].source == "Gush, splash/--PJHxphWEs_30.0-40.0.wav"
    assert [key for key, clip in clips.items() if clip.path] == ["--PJHxphWEs"]
    assert (listing.n_duplicates, listing.n_mistimed, listing.n_unlisted) == (2, 2, 4)


def test_files_of_another_set_are_an_error(
    place: Callable[..., Path], metadata: dict[str, list[Path]]
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
    change: Callable[[str], str], place: Callable[..., Path], metadata: dict[str, list[Path]]
) -> None:
    root = place("--PJHxphWEs.wav")
    listing = audioset.scan(root, **metadata)
    metadata["segments"][0].write_bytes(change(SEGMENTS).encode())
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
    old: str, new: str, message: str, place: Callable[..., Path], metadata: dict[str, list[Path]]
) -> None:
    assert old in SEGMENTS
    text = SEGMENTS.replace(old, new, 1)
    metadata["segments"][0].write_bytes(text.encode("utf-8", "surrogateescape"))
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
    old: str, new: str, message: str, place: Callable[..., Path], metadata: dict[str, list[Path]]
) -> None:
    metadata["class_labels"][0].write_text(CLASS_LABELS.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        audioset.scan(place("--PJHxphWEs.wav"), **metadata)


@pytest.mark.parametrize("option", ["segments", "class_labels"])
def test_absent_metadata_is_named_with_its_option(
    option: str, place: Callable[..., Path], metadata: dict[str, list[Path]]
) -> None:
    metadata[option][0].unlink()
    flag = re.escape(f"`--{option.replace('_', '-')}` must be a file, found no ")
    with pytest.raises(ValueError, match=flag):
        audioset.scan(place("--PJHxphWEs.wav"), **metadata)


# --- several lists


def test_every_list_is_a_split_with_its_published_name(
    place: Callable[..., Path], lists: Callable[..., list[Path]]
) -> None:
    segments = lists(
        balanced_train_segments_csv=SEGMENTS,
        eval_segments_csv=EVAL_SEGMENTS,
        unbalanced_train_segments_csv="Zbcdefghijk, 0.000, 10.000, /m/0k4j\n",
        my_list_csv="zbcdefghijk, 0.000, 10.000, /m/0k4j\n",
    )
    listing = audioset.scan(
        place("--4gqARaEJE.wav", "--PJHxphWEs.wav"),
        segments=segments,
        class_labels=lists(class_labels_indices_csv=CLASS_LABELS),
    )
    assert listing.splits == ("balanced_train", "eval", "unbalanced_train", "my_list")
    splits = {clip.key: listing.splits[clip.split] for clip in listing.clips}
    assert splits == dict.fromkeys(IDS, "balanced_train") | {
        "--4gqARaEJE": "eval",
        "--BfvyPmVMo": "eval",
        "Zbcdefghijk": "unbalanced_train",
        "zbcdefghijk": "my_list",
    }
    assert [clip.key for clip in listing.only(["eval"]).clips] == ["--4gqARaEJE", "--BfvyPmVMo"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "eval_segments_csv",
            r"'balanced_train' and 'eval' must not share a video \(a leak: .*\), found 7 in both: "
            r"--PJHxphWEs, -0RWZT-miFs, .*, aB_cD-eF_g8 and 2 more; remove",
        ),
        (
            "unbalanced_train_segments_csv",
            r"'balanced_train' and 'unbalanced_train' must not share a video, found 7 in both",
        ),
    ],
)
def test_an_id_in_two_lists_is_an_error(
    name: str,
    message: str,
    place: Callable[..., Path],
    metadata: dict[str, list[Path]],
    lists: Callable[..., list[Path]],
) -> None:
    metadata["segments"] = lists(balanced_train_segments_csv=SEGMENTS, **{name: SEGMENTS})
    with pytest.raises(ValueError, match=message):
        audioset.scan(place("--PJHxphWEs.wav"), **metadata)


def test_two_lists_of_one_name_are_an_error(
    place: Callable[..., Path], metadata: dict[str, list[Path]], tmp_path: Path
) -> None:
    metadata["segments"] *= 2
    with pytest.raises(ValueError, match=r"found .*segments.csv and .*both are called 'segments'"):
        audioset.scan(place("--PJHxphWEs.wav"), **metadata)


def test_a_list_is_required(place: Callable[..., Path], metadata: dict[str, list[Path]]) -> None:
    del metadata["segments"]
    with pytest.raises(ValueError, match="give --segments, --strong, or both"):
        audioset.scan(place("--PJHxphWEs.wav"), **metadata)


# --- strong labels


def test_strong_labels_become_events(
    place: Callable[..., Path], lists: Callable[..., list[Path]]
) -> None:
    listing = audioset.scan(
        place("Ys9d-2nhuJCQ.wav", "b0RFKhbpFJA_0_7.wav"),  # the end is not known
        strong=lists(audioset_train_strong_tsv=TRAIN_STRONG, audioset_eval_strong_tsv=EVAL_STRONG),
        class_labels=lists(mid_to_display_name_tsv=STRONG_CLASSES),
    )
    assert listing.label_names == ("Firecracker", "Cheering", "Crackle", "Speech, strong")
    assert listing.label_ids == ("/g/122z_qxw", "/m/053hz1", "/m/07pzfmf", "/m/09x0r")
    assert listing.splits == ("train_strong", "eval_strong")
    clips = by_key(listing)
    assert clips["s9d-2nhuJCQ"] == Clip(
        "s9d-2nhuJCQ",
        "Ys9d-2nhuJCQ.wav",
        (1, 3),
        "Ys9d-2nhuJCQ.wav",
        start_s=30.0,
        duration_s=10.0,
        split=0,
        events=((0.0, 0.841, 1), (0.0, 10.0, 3), (2.627, 7.237, 1)),
    )
    assert clips["--PJHxphWEs"].events == ((1.435, 2.012, 2),)
    assert clips["b0RFKhbpFJA"].path == "b0RFKhbpFJA_0_7.wav"
    assert {key: clip.split for key, clip in clips.items() if clip.split} == {"--4gqARaEJE": 1}


def test_a_clip_with_weak_and_strong_labels_keeps_the_weak_ones(
    place: Callable[..., Path], lists: Callable[..., list[Path]]
) -> None:
    listing = audioset.scan(
        place("--PJHxphWEs.wav"),
        segments=lists(balanced_train_segments_csv=SEGMENTS, eval_segments_csv=EVAL_SEGMENTS),
        strong=lists(audioset_train_strong_tsv=TRAIN_STRONG, audioset_eval_strong_tsv=EVAL_STRONG),
        class_labels=lists(
            class_labels_indices_csv=CLASS_LABELS, mid_to_display_name_tsv=STRONG_CLASSES
        ),
    )
    assert listing.label_ids == (
        *("/m/09x0r", "/t/dd00088", "/m/03v3yw", "/m/0k4j"),
        *("/g/122z_qxw", "/m/053hz1", "/m/07pzfmf"),
    )
    assert listing.label_names[0] == "Speech"  # as the first class list calls it
    clips = by_key(listing)
    assert len(clips) == len(ROWS) + 2 + 2
    both = clips["--PJHxphWEs"]
    assert (both.split, both.labels, both.events) == (0, (0, 1), ((1.435, 2.012, 6),))
    only_strong = clips["s9d-2nhuJCQ"]
    assert (listing.splits[only_strong.split], only_strong.labels) == ("train_strong", (0, 5))
    assert clips["-0RWZT-miFs"].events == ()


def test_several_clips_of_a_video_have_keys_and_files_of_their_own(
    place: Callable[..., Path], lists: Callable[..., list[Path]]
) -> None:
    rows = "".join(
        f"{ytid}_{ms}\t0.000\t1.000\t/m/09x0r\n" for ytid in IDS[:2] for ms in (0, 90000)
    )
    options = {
        "strong": lists(audioset_train_strong_tsv=STRONG_COLUMNS + rows),
        "class_labels": lists(mid_to_display_name_tsv=STRONG_CLASSES),
    }
    one, two = IDS[:2]
    root = place(
        f"{one}_90.wav", f"{one}_0_10.wav", f"{two}.wav", f"{two}_90000.wav", f"{two}_5.wav"
    )
    listing = audioset.scan(root, **options)
    assert {clip.key: clip.path for clip in listing.clips} == {
        f"{one}_0": f"{one}_0_10.wav",
        f"{one}_90000": f"{one}_90.wav",
        f"{two}_0": None,  # the file without times may be of either clip
        f"{two}_90000": f"{two}_90000.wav",
    }
    assert listing.n_ignored == {"unlisted": 1, "mistimed": 1}
    assert {audioset.recording_of(clip.key) for clip in listing.clips} == {one, two}
    listing = audioset.scan(root, **options, whole_videos=True)
    cut = by_key(listing)[f"{two}_0"]
    assert (cut.path, cut.offset_s) == (f"{two}.wav", 0.0)
    assert listing.n_ignored == {"mistimed": 1}
    (root / f"{two}_90000.wav").unlink()
    listing = audioset.scan(root, **options, whole_videos=True)
    assert by_key(listing)[f"{two}_90000"].path == cut.path
    assert listing.n_ignored == {"mistimed": 1}


def test_a_strong_clip_beside_another_part_of_its_video_is_kept_apart(
    place: Callable[..., Path], lists: Callable[..., list[Path]], metadata: dict[str, list[Path]]
) -> None:
    row = "--PJHxphWEs_60000\t0.000\t1.000\t/m/09x0r\n"
    strong = lists(audioset_train_strong_tsv=STRONG_COLUMNS + row)
    clips = by_key(audioset.scan(place("--PJHxphWEs_30.wav"), strong=strong, **metadata))
    assert clips["--PJHxphWEs_30000"].path == "--PJHxphWEs_30.wav"
    assert clips["--PJHxphWEs_60000"].events == ((0.0, 1.0, 0),)
    assert "--PJHxphWEs" not in clips


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (
            {"audioset_train_strong_tsv": TRAIN_STRONG, "audioset_eval_strong_tsv": TRAIN_STRONG},
            r"'train_strong' and 'eval_strong' must not share a video \(a leak: .*found 2 in both",
        ),
        (
            {"audioset_train_strong_tsv": TRAIN_STRONG, "train2_tsv": TRAIN_STRONG},
            r"'train_strong' and 'train2' must not share a video, found 3 in both: s9d-2nhuJCQ, ",
        ),
        (
            {"audioset_eval_strong_tsv": STRONG_COLUMNS + "-0RWZT-miFs_0\t0.0\t1.0\t/m/09x0r\n"},
            r"'segments' and 'eval_strong' must not share a video \(a leak: .*: -0RWZT-miFs; ",
        ),
    ],
    ids=["train and eval", "twice", "weak train and strong eval"],
)
def test_a_video_in_lists_that_exclude_each_other_is_an_error(
    texts: dict[str, str],
    message: str,
    place: Callable[..., Path],
    metadata: dict[str, list[Path]],
    lists: Callable[..., list[Path]],
) -> None:
    metadata["class_labels"] += lists(mid_to_display_name_tsv=STRONG_CLASSES)
    with pytest.raises(ValueError, match=message):
        audioset.scan(place("--PJHxphWEs.wav"), strong=lists(**texts), **metadata)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\tlabel\n", "\tlabel\tpresent\n", "line 1: the columns must be segment_id, .*present"),
        ("\t2.627\t7.237", "\t2.627", "line 2: a row must hold segment_id, .*, found 3 fields"),
        ("s9d-2nhuJCQ_30000", "s9d-2nhuJCQ", "line 2: a segment_id is .*, found 's9d-2nhuJCQ'"),
        ("s9d-2nhuJCQ_30000", "s9d-2nhuJCQ_30.0", "line 2: a segment_id is .* milliseconds, found"),
        (
            "\t7.237",
            "\t1.5",
            "line 2: start_time_seconds .* not before it, found '2.627' and '1.5'",
        ),
        ("\t2.627", "\t-1", "line 2: start_time_seconds must be 0 or more"),
        (
            "/m/053hz1",
            "/m/0zzz",
            r"line 2: .* mid of .*mid_to_display_name.tsv \(4 classes\), found '/m/0zzz'; .*twice",
        ),
        (TRAIN_STRONG, STRONG_COLUMNS, "strong.tsv must list clips, found none"),
    ],
)
def test_broken_strong_labels_are_an_error_with_the_line(
    old: str, new: str, message: str, place: Callable[..., Path], lists: Callable[..., list[Path]]
) -> None:
    assert old in TRAIN_STRONG
    with pytest.raises(ValueError, match=message):
        audioset.scan(
            place("--PJHxphWEs.wav"),
            strong=lists(audioset_train_strong_tsv=TRAIN_STRONG.replace(old, new, 1)),
            class_labels=lists(mid_to_display_name_tsv=STRONG_CLASSES),
        )


def test_an_event_may_take_no_time_and_the_header_may_be_gone(
    place: Callable[..., Path], lists: Callable[..., list[Path]]
) -> None:
    listing = audioset.scan(
        place("--PJHxphWEs.wav"),
        strong=lists(audioset_train_strong_tsv="--PJHxphWEs_30000\t1.0\t1.0\t/m/09x0r\n"),
        class_labels=lists(mid_to_display_name_tsv=STRONG_CLASSES),
    )
    assert listing.clips[0].events == ((1.0, 1.0, 3),)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("/m/053hz1", "/m/09x0r", "line 4: expected a mid not seen before, a tab and a name"),
        ("/m/053hz1\t", "Cheering\t", "line 2: expected a mid not seen before"),
        ("\tCheering", "\tCheer\ting", r"line 2: expected a mid .*, found '/m/053hz1\\tCheer"),
    ],
)
def test_a_broken_list_of_strong_classes_is_an_error_with_the_line(
    old: str, new: str, message: str, place: Callable[..., Path], lists: Callable[..., list[Path]]
) -> None:
    with pytest.raises(ValueError, match=message):
        audioset.scan(
            place("--PJHxphWEs.wav"),
            strong=lists(audioset_train_strong_tsv=TRAIN_STRONG),
            class_labels=lists(mid_to_display_name_tsv=STRONG_CLASSES.replace(old, new, 1)),
        )


# --- whole videos


@pytest.mark.parametrize("name", ["{id}.webm", "Y{id}.wav", "Some title [{id}].webm"])
def test_a_whole_video_is_cut_where_its_clip_starts(
    name: str, place: Callable[..., Path], metadata: dict[str, list[Path]]
) -> None:
    root = place(name.format(id="-0RWZT-miFs"), "--PJHxphWEs_30.wav")
    as_clips = by_key(audioset.scan(root, **metadata))
    assert {clip.offset_s for clip in as_clips.values()} == {None}
    cut = by_key(audioset.scan(root, **metadata, whole_videos=True))
    assert (cut["-0RWZT-miFs"].offset_s, cut["-0RWZT-miFs"].duration_s) == (420.0, 10.0)
    assert cut["--PJHxphWEs"].offset_s is None  # its name states times: it is the clip


def test_a_clip_is_preferred_to_the_whole_video(
    place: Callable[..., Path], metadata: dict[str, list[Path]]
) -> None:
    root = place("a/-0RWZT-miFs.webm", "b/-0RWZT-miFs_420_430.wav")
    listing = audioset.scan(root, **metadata, whole_videos=True)
    clip = by_key(listing)["-0RWZT-miFs"]
    assert (clip.path, clip.offset_s) == ("b/-0RWZT-miFs_420_430.wav", None)
    assert listing.n_ignored == {"duplicate": 1}


# --- size


def test_clips_share_what_is_equal(
    place: Callable[..., Path], lists: Callable[..., list[Path]]
) -> None:
    """There are two million of them."""
    rows = "".join(f'a{n:010d}, 30.000, 40.000, "/m/09x0r,/m/0k4j"\n' for n in range(3))
    listing = audioset.scan(
        place("a0000000000.wav", "a0000000001.wav"),
        segments=lists(unbalanced_train_segments_csv=rows),
        class_labels=lists(class_labels_indices_csv=CLASS_LABELS),
    )
    for name in ("labels", "start_s", "duration_s", "events"):
        assert len({id(getattr(clip, name)) for clip in listing.clips}) == 1
    assert listing.clips[0].path is listing.clips[0].source
    assert listing.clips[2].key is listing.clips[2].source
