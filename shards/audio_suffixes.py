"""What an audio file's name ends in: of files in folders, and of members of tars."""

# fmt: off
AUDIO_SUFFIXES = frozenset((
    "3gp", "aac", "ac3", "aif", "aifc", "aiff", "amr", "ape", "asf", "au", "avi", "caf", "dts",
    "eac3", "flac", "flv", "g722", "m2ts", "m4a", "m4b", "m4v", "mka", "mkv", "mov", "mp2", "mp3",
    "mp4", "mpeg", "mpg", "mpga", "nist", "oga", "ogg", "ogv", "opus", "rf64", "snd", "sph", "spx",
    "ts", "tta", "voc", "w64", "wav", "wave", "webm", "wma", "wmv", "wv",
))
# fmt: on
"""In lower case, without the dot."""
