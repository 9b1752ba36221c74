"""Data sets in the layouts they are published in, made of a recording that ships."""

import json
import shutil
from importlib import resources
from pathlib import Path

import soundfile

from melstream.tools.corpora import Clip, Listing

RECORDING = Path(
    str(resources.files("melstream.tools") / "recordings/eval/tom/drum_tom_lo_soft.flac")
)
"""A short recording that stands for any clip."""

ESC50 = {
    "meta/esc50.csv": """\
filename,fold,target,category,esc10,src_file,take
1-100032-A-0.wav,1,0,dog,True,100032,A
1-100038-A-14.wav,1,14,chirping_birds,False,100038,A
5-9032-A-0.wav,5,0,dog,True,9032,A
2-104105-B-19.wav,2,19,thunderstorm,False,104105,B
5-198411-E-20.wav,5,20,crying_baby,True,198411,E
"""
}

FSD50K = {
    "FSD50K.ground_truth/vocabulary.csv": """\
0,Accelerating_and_revving_and_vroom,/m/07q2z82
1,Accordion,/m/0mkg
2,Acoustic_guitar,/m/042v_gx
3,Music,/m/04rlf
""",
    "FSD50K.ground_truth/dev.csv": """\
fname,labels,mids,split
64760,"Acoustic_guitar,Music","/m/042v_gx,/m/04rlf",train
16399,"Music,Accordion","/m/04rlf,/m/0mkg",train
99,Accelerating_and_revving_and_vroom,/m/07q2z82,val
""",
    "FSD50K.ground_truth/eval.csv": """\
fname,labels,mids
37199,"Acoustic_guitar,Music","/m/042v_gx,/m/04rlf"
175151,Music,/m/04rlf
""",
}

URBANSOUND8K = {
    "metadata/UrbanSound8K.csv": """\
slice_file_name,fsID,start,end,salience,fold,classID,class
100032-3-0-0.wav,100032,0.0,0.317551,1,5,3,dog_bark
100263-2-0-117.wav,100263,58.5,62.5,1,5,2,children_playing
100648-1-0-0.wav,100648,4.823402,5.471927,2,10,1,car_horn
100852-0-0-0.wav,100852,0.0,4.0,1,5,0,air_conditioner
"""
}

VGGSOUND = {
    "vggsound.csv": """\
---g-f_I2yQ,1,people marching,test
--0PQM4-hqg,30,waterfall burbling,train
--56QUhyDQM,185,"playing violin, fiddle",train
FwVYUHKoLtQ,34,people marching,test
FwVYUHKoLtQ,120,waterfall burbling,train
"""
}

SPEECHCOMMANDS = {
    "validation_list.txt": "bed/026290a7_nohash_0.wav\nzero/026290a7_nohash_1.wav\n",
    "testing_list.txt": "bed/0c40e715_nohash_0.wav\n",
}

CSV = {
    "clips.csv": """\
path,label
dog/1.wav,dog
dog/2.flac,dog
"Car, vehicle/x.ogg",car
"""
}


def place(root: Path, *names: str) -> Path:
    """Put the recording at each path below a folder; the folder."""
    root.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(RECORDING, path)
    return root


def write_texts(root: Path, texts: dict[str, str]) -> Path:
    """Write text files below a folder; the folder."""
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def cut_line(name: str, path: str, *, label: str) -> str:
    """One line of a lhotse manifest: a cut that is a whole file."""
    info = soundfile.info(RECORDING)
    recording = {
        "id": name,
        "sources": [{"type": "file", "channels": [0], "source": path}],
        "sampling_rate": info.samplerate,
        "num_samples": info.frames,
        "duration": info.duration,
        "channel_ids": [0],
    }
    supervision = {
        "id": f"{name}-0",
        "recording_id": name,
        "start": 0.0,
        "duration": info.duration,
        "channel": 0,
        "text": label,
    }
    cut = {
        "id": name,
        "start": 0.0,
        "duration": info.duration,
        "channel": 0,
        "supervisions": [supervision],
        "recording": recording,
        "type": "MonoCut",
    }
    return json.dumps(cut) + "\n"


LHOTSE = {
    "cuts.jsonl": cut_line("b.1", "b/1.wav", label="bass") + cut_line("a 1", "a/1.flac", label="é")
}


def by_key(listing: Listing) -> dict[str, Clip]:
    """Key -> clip."""
    return {clip.key: clip for clip in listing.clips}
