"""Render a sound font's instruments, note by note, as a corpus with AudioSet's class names.

    pip install --no-deps tinysoundfont  # what it plays through is not needed
    python tests/benchmarks/render_instruments.py FluidR3_GM.sf2 corpora/instruments/train
    python tests/benchmarks/render_instruments.py TimGM6mb.sf2 corpora/instruments/eval

Debian has both fonts, as fluid-soundfont-gm and timgm6mb-soundfont; they share no recording.
Each of the 128 General MIDI programs plays 13 notes, and the standard drum kit its 47 drums at
three velocities: 1,805 clips of 2 s, an hour of audio, `OUT/<class>/<program>-<note>.flac`.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import tinysoundfont

SAMPLE_RATE = 44_100
HELD_S, RELEASED_S = 1.5, 0.5
NOTES = range(36, 85, 4)  # C2 to C6 in major thirds
VELOCITY = 100
DRUM_VELOCITIES = (60, 90, 120)
PROGRAM_CHANNEL, DRUM_CHANNEL, DRUM_BANK = 0, 9, 128

# The class of each program is that of the last number at or before it.
PROGRAM_CLASSES = {
    0: "Piano",
    2: "Electric piano",
    3: "Piano",
    4: "Electric piano",
    6: "Harpsichord",
    7: "Electric piano",
    8: "Glockenspiel",
    11: "Vibraphone",
    12: "Marimba, xylophone",
    14: "Tubular bells",
    15: "Zither",
    16: "Hammond organ",
    19: "Organ",
    21: "Accordion",
    22: "Harmonica",
    23: "Accordion",
    24: "Acoustic guitar",
    26: "Electric guitar",
    32: "Double bass",
    33: "Bass guitar",
    38: "Synthesizer",
    40: "Violin, fiddle",
    42: "Cello",
    43: "Double bass",
    44: "String section",
    45: "Pizzicato",
    46: "Harp",
    47: "Timpani",
    48: "String section",
    52: "Choir",
    55: "Orchestra",
    56: "Trumpet",
    57: "Trombone",
    58: "Brass instrument",
    59: "Trumpet",
    60: "French horn",
    61: "Brass instrument",
    64: "Saxophone",
    68: "Oboe",
    70: "Bassoon",
    71: "Clarinet",
    72: "Flute",
    78: "Whistle",
    79: "Flute",
    80: "Synthesizer",
    104: "Plucked string instrument",  # sitar, banjo, shamisen
    107: "Zither",
    108: "Marimba, xylophone",
    109: "Bagpipes",
    110: "Violin, fiddle",
    111: "Oboe",
    112: "Bell",
    113: "Cowbell",
    114: "Steelpan",
    115: "Wood block",
    116: "Drum",
    119: "Cymbal",
    120: "Sound effect",
}

# Likewise, the drums of the standard kit, General MIDI's notes 35 to 81.
DRUM_CLASSES = {
    35: "Bass drum",
    37: "Wood block",  # side stick
    38: "Snare drum",
    39: "Clapping",
    40: "Snare drum",
    41: "Drum",
    42: "Hi-hat",
    43: "Drum",
    44: "Hi-hat",
    45: "Drum",
    46: "Hi-hat",
    47: "Drum",
    49: "Cymbal",
    50: "Drum",
    51: "Cymbal",
    54: "Tambourine",
    55: "Cymbal",
    56: "Cowbell",
    57: "Cymbal",
    58: "Rattle (instrument)",
    59: "Cymbal",
    60: "Drum",
    67: "Cowbell",
    69: "Rattle (instrument)",
    71: "Whistle",
    73: "Rattle (instrument)",
    75: "Wood block",
    78: "Drum",
    80: "Bell",  # triangle
}
DRUM_NOTES = range(35, 82)


def class_of(number: int, classes: dict[int, str]) -> str:
    """Return the class of a program or of a drum's note."""
    return classes[max(first for first in classes if first <= number)]


def clips(font: Path) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Yield path and waveform, mono at 44.1 kHz, of every clip of a sound font."""
    synth = tinysoundfont.Synth(samplerate=SAMPLE_RATE)
    font_id = synth.sfload(str(font))
    for program in range(128):
        synth.program_select(PROGRAM_CHANNEL, font_id, 0, program)
        name = class_of(program, PROGRAM_CLASSES)
        for note in NOTES:
            waveform = play(synth, PROGRAM_CHANNEL, note, VELOCITY)
            yield f"{name}/{program:03d}-{note}.flac", waveform
    synth.program_select(DRUM_CHANNEL, font_id, DRUM_BANK, 0, True)
    for note in DRUM_NOTES:
        name = class_of(note, DRUM_CLASSES)
        for velocity in DRUM_VELOCITIES:
            waveform = play(synth, DRUM_CHANNEL, note, velocity)
            yield f"{name}/drum-{note}-{velocity}.flac", waveform


def play(
    synth: tinysoundfont.Synth, channel: int, note: int, velocity: int
) -> npt.NDArray[np.float32]:
    """Play one note, then silence what still sounds.

    Args:
        synth: the synthesizer, a program selected.
        channel: MIDI channel of the program.
        note, velocity: MIDI's, 0 to 127.

    Returns:
        waveform: float32, shape (n_samples,), in [-1, 1]; 2 s.
    """
    synth.noteon(channel, note, velocity)
    held = bytes(synth.generate(round(HELD_S * SAMPLE_RATE)))
    synth.noteoff(channel, note)
    released = bytes(synth.generate(round(RELEASED_S * SAMPLE_RATE)))
    synth.sounds_off()
    synth.generate(SAMPLE_RATE)
    stereo = np.frombuffer(held + released, np.float32).reshape(-1, 2)
    return stereo.mean(axis=1).clip(-1, 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("font", type=Path, help="a General MIDI sound font, .sf2 or .sf3")
    parser.add_argument("out", type=Path, help="folder of the corpus")
    arguments = parser.parse_args()
    names = set()
    for name, waveform in clips(arguments.font):
        path = arguments.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, waveform, SAMPLE_RATE)
        names.add(path.parent.name)
    sys.stdout.write(f"{len(names)} classes in {arguments.out}\n")
