"""Corpora: how the files of a known data set become a list of clips.

One file per corpus. A module here that defines ``scan(source, **options)`` is a
corpus: it becomes a command of ``melstream build`` and is tried by
``tests/test_corpora.py``, and nothing has to be registered. ``folder.py`` is the
shortest to copy.

Where several clips of a corpus can be cut from one recording, such as a video, its module also
defines ``recording_of(key)``, which returns the recording's name: then ``--disjoint-from``,
``--not-in`` and ``inspect`` take clips of one recording for shared. ``audioset.py`` has one.
"""

from .corpus import Clip, Listing, find_corpora

__all__ = ["Clip", "Listing", "find_corpora"]
