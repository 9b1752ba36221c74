"""Corpora: how the files of a known data set become a list of clips.

One file per corpus. A module here that defines ``scan(source, **options)`` is a
corpus: it becomes a command of ``melstream build`` and is tried by
``tests/test_corpora.py``, and nothing has to be registered. ``folder.py`` is the
shortest to copy.
"""

from .corpus import Clip, Listing, find_corpora

__all__ = ["Clip", "Listing", "find_corpora"]
