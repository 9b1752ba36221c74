"""CSV: columns by name, several labels, segments, splits, ids, and what is said of mistakes."""

import os
import shutil
from pathlib import Path

import pytest
from corpora_files import RECORDING, by_key, place

from melstream.tools.corpora import Clip, csv
from melstream.tools.corpora.names import possible_keys


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return place(tmp_path / "audio", "a/1.wav", "a/1.flac", "talk.wav")


def write(root: Path, text: str, name: str = "clips.csv") -> Path:
    (root / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    return root / name


def test_a_list_of_paths_is_enough(root: Path) -> None:
    listing = csv.scan(write(root, "path\na/1.wav\na/1.flac\ntalk.wav\ngone.wav\n"))
    assert listing.root == root
    assert (listing.label_names, listing.splits) == ((), ())
    clips = {clip.source: clip for clip in listing.clips}
    assert clips["talk.wav"] == Clip("talk", "talk.wav", (), "talk.wav")
    assert clips["gone.wav"] == Clip("gone", None, (), "gone.wav")
    assert len({clip.key for clip in listing.clips}) == 4  # names that differ by suffix only


def test_labels_splits_and_ids_by_column(root: Path) -> None:
    text = """\
file;tags;fold;id
a/1.wav;dog | bark ;2;x-1
talk.wav;speech;1;x-2
a/1.flac;;;x.3
"""
    listing = csv.scan(
        write(root, text),
        path_column="file",
        label_column="tags",
        label_separator="|",
        split_column="fold",
        id_column="id",
    )
    assert listing.label_names == ("bark", "dog", "speech")
    assert listing.splits == ("2", "1")
    clips = {clip.source: clip for clip in listing.clips}
    assert clips["a/1.wav"] == Clip("x-1", "a/1.wav", (0, 1), "a/1.wav", split=0)
    assert clips["talk.wav"] == Clip("x-2", "talk.wav", (2,), "talk.wav", split=1)
    assert (clips["a/1.flac"].labels, clips["a/1.flac"].split) == ((), -1)


@pytest.mark.parametrize(
    ("header", "rows"),
    [
        ("path,start,end", ["talk.wav,0.25,0.5", "talk.wav,12345.678,12345.689", "talk.wav,,"]),
        (
            "path\tstart\tend",
            ["talk.wav\t0.25\t.5", "talk.wav\t12345.678\t12345.689", "talk.wav\t\t"],
        ),
        ("path,start,dur", ["talk.wav,0.25,0.25", "talk.wav,12345.678,0.011", "talk.wav,,"]),
    ],
    ids=["end", "tabs", "duration"],
)
def test_segments_of_one_file_become_clips(header: str, rows: list[str], root: Path) -> None:
    ends = {"duration_column": "dur"} if "dur" in header else {"end_column": "end"}
    table = write(root, "\n".join([header, *rows]))
    listing = csv.scan(table, start_column="start", **ends)
    found = sorted((c.start_s or 0, c.offset_s, c.duration_s, c.path) for c in listing.clips)
    assert found == [
        (0, None, None, "talk.wav"),
        (0.25, 0.25, 0.25, "talk.wav"),
        (12345.678, 12345.678, 0.011, "talk.wav"),
    ]


def test_a_segment_may_lack_its_start_or_end(root: Path) -> None:
    table = write(root, "path,start,end\ntalk.wav,0.5,\ntalk.wav,,0.5\n")
    listing = csv.scan(table, start_column="start", end_column="end")
    assert sorted((c.offset_s, c.duration_s) for c in listing.clips) == [(0.0, 0.5), (0.5, None)]


def test_paths_start_from_the_root_or_are_absolute(root: Path, tmp_path: Path) -> None:
    table = write(tmp_path, f"path\na/1.wav\n{root / 'talk.wav'}\n")
    listing = csv.scan(table, root=root)
    assert all(clip.path and (listing.root / clip.path).is_file() for clip in listing.clips)


def test_a_path_that_is_not_utf_8_leads_to_its_file(root: Path) -> None:
    name = os.fsdecode(b"k\xfcl.wav")
    shutil.copyfile(RECORDING, root / name)
    (clip,) = csv.scan(write(root, f"path,label\n{name},bell\n"), label_column="label").clips
    assert clip.path == name
    assert clip.source == r"k\xfcl.wav"


def test_a_list_of_labels_gives_the_order(root: Path, tmp_path: Path) -> None:
    labels = write(tmp_path, "siren\ndog\n", "labels.txt")
    table = write(root, "path,label\na/1.wav,dog\n")
    listing = csv.scan(table, label_column="label", labels=labels)
    assert listing.label_names == ("siren", "dog")
    assert listing.clips[0].labels == (1,)
    table.write_text("path,label\na/1.wav,dog\ntalk.wav,sirren\n")
    message = r"line 3: .* class of .*labels\.txt \(2 names\), found 'sirren' \(close: 'siren'\)"
    with pytest.raises(ValueError, match=message):
        csv.scan(table, label_column="label", labels=labels)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (
            "path,label\na/1.wav,d\udcf6g\n",
            {"label_column": "label"},
            r"line 2: `label` must be UTF-8, found 'd\\\\xf6g'; save the table as UTF-8",
        ),
        ("a,b\nx,y\n", {}, r"line 1: .* columns path, .* found a, b, without 'path'"),
        ("a,b c\nx,y.wav\n", {}, r"no column 'path', found a, b c: type `--path-column 'b c'`"),
        ("file,label\nx,y\n", {}, r"type `--path-column file` if that one holds the paths"),
        (
            "pat;label\nx;y\n",
            {},
            r"no column 'path', found pat, label: type `--path-column pat`",
        ),
        ("path,tag\nx,y\n", {"label_column": "tags"}, r"without 'tags' \(close: 'tag'\)"),
        ("path\n\n\n,\n", {}, "must list clips below its header, found none"),
        (
            "path,label\ntalk.wav\n",
            {"label_column": "label"},
            r"line 2: a row must have 2 fields \(path, label\), found 1",
        ),
        ("path,kind\n,dog\n", {}, "line 2: `path` must be the path of a file, found ''"),
        ("path\ns3://bucket/a.wav\n", {}, "line 2: `path` must be the path .* found 's3://"),
        (
            "path\ntalk.wav\na/1.wav\n./talk.wav\ntalk.wav\n",
            {},
            r"found 2 rows .* line 4 \('talk.wav', of line 2\), line 5 \('talk.wav', of line 2\);",
        ),
        ("path\n" + 13 * "talk.wav\n", {}, r"found 12 rows .* line 11 \(.*\) and 2 more; write"),
        (
            "path,id\ntalk.wav,1\na/1.wav,1\n",
            {"id_column": "id"},
            r"found 1 row of clips .* line 3 \('1', of line 2\)",
        ),
        ("path,id\ntalk.wav,\n", {"id_column": "id"}, "line 2: `id` must not be empty"),
        (
            "path,start\ntalk.wav,1:30\n",
            {"start_column": "start"},
            "line 2: `start` must be a time in seconds, 0 or more; found '1:30'",
        ),
        (
            "path,start,end\ntalk.wav,2,1\n",
            {"start_column": "start", "end_column": "end"},
            "line 2: a clip must end after its start, found '2' to '1'",
        ),
        ("path\nx/talk.wav\n", {}, r"none of the 1 files .* looked for .*/x/talk\.wav .* `--root`"),
    ],
)
def test_a_broken_table_is_an_error_with_the_line(
    text: str, options: dict[str, str], message: str, root: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        csv.scan(write(root, text), **options)


@pytest.mark.parametrize("name", ["label", "labels", "Label", "category"])
def test_a_column_of_labels_that_is_not_named_is_not_left_out_in_silence(
    name: str, root: Path
) -> None:
    table = write(root, f"path;{name};fold\ntalk.wav;dog;1\n")
    message = rf"clips.csv has a column '{name}': type `--label-column {name}` .*`--unlabelled` if"
    with pytest.raises(ValueError, match=message):
        csv.scan(table)
    assert csv.scan(table, label_column=name).label_names == ("dog",)
    assert csv.scan(table, label_column="fold").label_names == ("1",)
    assert csv.scan(table, unlabelled=True).label_names == ()
    assert csv.scan(table, split_column=name).splits == ("dog",)


def test_wrong_options_are_errors(root: Path) -> None:
    table = write(root, "path,a,b\ntalk.wav,1,2\n")
    with pytest.raises(ValueError, match="`--end-column` and `--duration-column` exclude"):
        csv.scan(table, start_column="a", end_column="a", duration_column="b")
    with pytest.raises(ValueError, match="`--end-column` goes with `--start-column`"):
        csv.scan(table, end_column="b")
    with pytest.raises(ValueError, match="`--label-separator` goes with `--label-column`"):
        csv.scan(table, label_separator=";")
    with pytest.raises(ValueError, match="`--label-separator` must not be empty"):
        csv.scan(table, label_column="a", label_separator="")
    with pytest.raises(ValueError, match="`--label-column` and `--unlabelled` exclude"):
        csv.scan(table, label_column="a", unlabelled=True)
    assert len(by_key(csv.scan(table, label_column="a"))) == 1


def test_the_key_of_a_path_is_one_of_two_whatever_stands_beside_it(root: Path) -> None:
    rows = "a/1.wav,,\na/1.wav,0.25,1\na/1.flac,0.5,\ntalk.wav,,\ntalk.wav,0.125,0.5\n"
    text = f"path,start,end\n{rows}"
    listing = csv.scan(write(root, text), start_column="start", end_column="end")
    places = {clip.source: [] for clip in listing.clips}
    for clip in listing.clips:
        places[clip.source].append(possible_keys(clip).index(clip.key))
    assert places == {"a/1.wav": [1, 1], "a/1.flac": [1], "talk.wav": [0, 0]}
