"""The file of ``melstream embed``: a Zarr group, one row per clip.

    key            string    (n,)            key of the clip, or path of the file
    clips          float32   (n, D)          mean over the clip's latent steps
    frames         float16   (steps, D)      on request: the latent steps of all clips, in order;
    frame_indptr   int64     (n + 1,)          those of clip i from frame_indptr[i] on
    scores         float32   (n, C)          of a tagger; attribute ``label_names``
    labels         bool      (n, C')         of a labelled data set; attribute ``label_names``

Attributes of the group say which model and which layer made it, and how many steps a second has.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import ZstdCodec
from zarr.dtype import VariableLengthUTF8

from ..model.atomic_folder import atomic_folder
from ..shards.files import sync_tree

CHUNK_BYTES = 8 << 20


@dataclass(frozen=True, slots=True, eq=False)
class ClipEmbedding:
    """What a model makes of one clip.

    Shape:
        frames float32 (n_steps, D), scores float32 (C,) or None, labels bool (C',) or None.
    """

    key: str
    frames: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32] | None
    labels: npt.NDArray[np.bool_] | None


@dataclass(frozen=True, slots=True)
class Columns:
    """Which arrays a file of embeddings has, and how wide they are.

    Args:
        dim: D, channels of an embedding.
        score_names: the classes of the tagger; none: there is no tagger.
        label_names: the classes of the data set; none: it is not labelled.
        has_frames: whether the latent steps are kept.
    """

    dim: int
    score_names: Sequence[str] = ()
    label_names: Sequence[str] = ()
    has_frames: bool = False


class EmbeddingWriter:
    """Append clips to the arrays of a group.

    Args:
        group: an empty Zarr group.
        columns: its arrays.
    """

    def __init__(self, group: zarr.Group, columns: Columns) -> None:
        self._key = _GrowingArray(group, "key", (), VariableLengthUTF8())
        self._clips = _GrowingArray(group, "clips", (columns.dim,), np.float32)
        self._scores = self._labels = self._frames = None
        if columns.score_names:
            width = (len(columns.score_names),)
            self._scores = _GrowingArray(group, "scores", width, np.float32)
            self._scores.array.attrs["label_names"] = list(columns.score_names)
        if columns.label_names:
            self._labels = _GrowingArray(group, "labels", (len(columns.label_names),), np.bool_)
            self._labels.array.attrs["label_names"] = list(columns.label_names)
        if columns.has_frames:
            self._frames = _GrowingArray(group, "frames", (columns.dim,), np.float16)
            self._indptr = _GrowingArray(group, "frame_indptr", (), np.int64)
            self._indptr.extend(np.zeros(1, np.int64))
        self._n_steps = 0

    def add(self, clip: ClipEmbedding) -> None:
        """Append one clip."""
        self._key.extend(np.array([clip.key], np.dtypes.StringDType()))
        self._clips.extend(clip.frames.mean(axis=0, keepdims=True))
        if self._scores is not None:
            assert clip.scores is not None
            self._scores.extend(clip.scores[None])
        if self._labels is not None:
            assert clip.labels is not None
            self._labels.extend(clip.labels[None])
        if self._frames is not None:
            self._n_steps += len(clip.frames)
            self._frames.extend(clip.frames.astype(np.float16))
            self._indptr.extend(np.array([self._n_steps]))

    def finish(self) -> None:
        """Write what is still held."""
        arrays = [self._key, self._clips, self._scores, self._labels]
        arrays += [] if self._frames is None else [self._frames, self._indptr]
        for array in arrays:
            if array is not None:
                array.flush()


@contextmanager
def new_embeddings(
    path: Path, columns: Columns, attributes: dict[str, Any]
) -> Iterator[EmbeddingWriter]:
    """Write a file of embeddings, which takes its name when the block ends without an error.

    Args:
        path: where it goes; nothing stands there yet.
        columns: its arrays.
        attributes: of the group.
    """
    with atomic_folder(path) as folder:
        group = zarr.create_group(store=str(folder), attributes=attributes)
        writer = EmbeddingWriter(group, columns)
        yield writer
        writer.finish()
        sync_tree(folder)


class _GrowingArray:
    """An array along whose first axis rows are appended, written chunk by chunk."""

    def __init__(self, group: zarr.Group, name: str, shape: tuple[int, ...], dtype: Any) -> None:
        row_bytes = 64 if name == "key" else int(np.prod(shape)) * np.dtype(dtype).itemsize
        self._chunk_rows = max(1, CHUNK_BYTES // row_bytes)
        self.array = group.create_array(
            name,
            shape=(0, *shape),
            chunks=(self._chunk_rows, *shape),
            dtype=dtype,
            compressors=ZstdCodec(level=3),
        )
        self._held: list[npt.NDArray[Any]] = []
        self._n_held = 0

    def extend(self, rows: npt.NDArray[Any]) -> None:
        self._held.append(rows)
        self._n_held += len(rows)
        if self._n_held >= self._chunk_rows:
            held = np.concatenate(self._held)
            n_whole = len(held) // self._chunk_rows * self._chunk_rows
            self.array.append(held[:n_whole])
            self._held, self._n_held = [held[n_whole:]], len(held) - n_whole

    def flush(self) -> None:
        if self._n_held:
            self.array.append(np.concatenate(self._held))
        self._held, self._n_held = [], 0
