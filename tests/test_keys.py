"""Keys hold only what WebDataset and tar can carry, and two names do not share one."""

import re
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from melstream.shards.keys import KEY_PATTERN, MAX_KEY_BYTES, check_key, make_key

LEGAL = st.from_regex(KEY_PATTERN, fullmatch=True)


@given(st.text())
def test_any_name_becomes_a_key(name: str) -> None:
    check_key(make_key(name))


@given(LEGAL)
def test_a_key_stays_as_it_is(key: str) -> None:
    assert make_key(key) == key


@given(st.lists(st.text(max_size=120), unique=True, max_size=50))
def test_two_names_do_not_share_a_key(names: list[str]) -> None:
    assert len({make_key(name) for name in names}) == len(names)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ab.1", "ab.2"),  # plain WebDataset merges these into one sample `ab`
        ("a/b", "a_b"),
        ("a b", "a  b"),
        ("dog", "Dog"),
        ("é", "e\u0301"),
        ("x" * 89 + "1", "x" * 89 + "2"),
        ("x" * 60 + "1" + "x" * 60, "x" * 60 + "2" + "x" * 60),
        ("", "_"),
    ],
)
def test_names_that_look_alike_get_distinct_keys(one: str, other: str) -> None:
    assert make_key(one) != make_key(other)


@pytest.mark.parametrize("name", ["-0RWZT-miFs", "--PJHxphWEs", "_", "-", "7" * MAX_KEY_BYTES])
def test_youtube_ids_and_the_longest_key_are_keys(name: str) -> None:
    assert make_key(name) == name


def test_bytes_that_are_not_utf_8_are_told_apart() -> None:
    names = [bytes([byte]).decode("utf-8", "surrogateescape") for byte in (0xE9, 0xE8)]
    assert make_key(names[0]) != make_key(names[1])


def test_the_longest_member_name_fits_a_plain_tar_header() -> None:
    member = tarfile.TarInfo(make_key("long" * 100) + ".logmel.npy")
    header = member.tobuf(tarfile.USTAR_FORMAT)
    assert len(member.name) == 100
    assert header[:100] == member.name.encode()  # `name` alone, nothing in `prefix`
    assert len(header) == 512


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "a b", "é", "a\n", "x" * 90])
def test_what_cannot_be_a_key_is_refused(key: str) -> None:
    with pytest.raises(
        ValueError, match=re.escape(f"1 to 89 characters of [A-Za-z0-9_-], found {key!r}")
    ):
        check_key(key)
