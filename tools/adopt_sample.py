"""One sample of a tar made elsewhere: its log-mel checked, its labels read.

The tar is untrusted: nothing is unpickled, and sizes are compared before memory is taken.
"""

import io
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from ..shards.errors import ShardError
from ..shards.spec import FeatureSpec
from ..shards.writer import LOGMEL_FIELD, SampleInfo

PICKLES = ("pyd", "pickle", "pkl", "pth", "pt", "ckpt", "joblib")
MAX_HEADER_BYTES = 4_096
MAX_JSON_BYTES = 16 * 2**20
LABEL_FIELD = "labels"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a sample is, for messages."""

    shard: str
    key: str

    def error(self, message: str) -> ShardError:
        """Make the error about this sample."""
        return ShardError(f"{self.shard}, {self.key}: {message}", shard=self.shard, key=self.key)


def refuse_pickle(place: Place, field: str) -> None:
    """Refuse members that only unpickling reads.

    Raises:
        ShardError: the field's ending is one of ``PICKLES``.
    """
    ending = field.rpartition(".")[2].lower()
    if ending in PICKLES:
        raise place.error(
            f"members must be readable without unpickling, found `{field}`, which can run code "
            "when it is read; make the tar again with .npy or .json instead"
        )


def choose_logmel_field(place: Place, fields: Mapping[str, Any], wanted: str | None) -> str:
    """Say which field of a sample is the log-mel.

    Args:
        place: the sample.
        fields: those it has.
        wanted: what the user said; else ``logmel.npy``, or the only ``.npy``.

    Raises:
        ShardError: it is not there, or cannot be told.
    """
    shown = ", ".join(fields)
    if wanted is not None:
        if wanted not in fields:
            raise place.error(f"`--logmel-field` must be one of {shown}, found {wanted!r}")
        return wanted
    if LOGMEL_FIELD in fields:
        return LOGMEL_FIELD
    arrays = [name for name in fields if name == "npy" or name.endswith(".npy")]
    if len(arrays) != 1:
        found = f"several ({', '.join(arrays)})" if arrays else f"none among {shown}"
        raise place.error(
            f"a log-mel must be in `{LOGMEL_FIELD}` or in the only .npy member, found {found}; "
            "say which with `--logmel-field`"
        )
    return arrays[0]


def read_logmel(
    place: Place, field: str, payload: npt.NDArray[np.uint8], spec: FeatureSpec
) -> npt.NDArray[Any]:
    """Check a ``.npy`` and return its array, as stored and without a copy.

    Args:
        place: the sample.
        field: its name there.
        payload: the bytes of the member, uint8.
        spec: what was stated.

    Returns:
        float16 or uint8, shape (n_frames, n_mels).

    Raises:
        ShardError: it is not what the loader can serve, or not by this spec.
    """
    shape, is_fortran, dtype, start = _npy_header(place, field, payload)
    _require_dtype(place, field, dtype, spec)
    if is_fortran and min(shape, default=0) > 1:
        raise place.error(
            f"`{field}` must be in C order, found Fortran order; write it again with "
            "`numpy.ascontiguousarray(logmel)`"
        )
    _require_shape(place, field, shape, spec)
    n_bytes = shape[0] * spec.frame_bytes
    if len(payload) - start != n_bytes:
        raise place.error(
            f"`{field}` must have {n_bytes} bytes after its header for shape {shape}, found "
            f"{len(payload) - start}; make the tar again"
        )
    logmel = payload[start:].view(dtype).reshape(shape)
    if dtype.kind == "f" and not np.isfinite(logmel).all():
        raise place.error(
            f"`{field}` must be finite, found NaN or infinity; a log-mel needs a floor under the "
            "logarithm"
        )
    return logmel


def _npy_header(
    place: Place, field: str, payload: npt.NDArray[np.uint8]
) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Read shape, order and type, and where the array starts."""
    file = io.BytesIO(payload[:MAX_HEADER_BYTES].tobytes())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a header of Python 2, or of structured types
            version = np.lib.format.read_magic(file)
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, is_fortran, dtype = read(file)
    except (ValueError, KeyError, TypeError, SyntaxError, UserWarning) as error:
        raise place.error(
            f"`{field}` must be a .npy array of version 1 or 2, found something else ({error}); "
            "write it with `numpy.save`"
        ) from error
    return shape, is_fortran, dtype, file.tell()


def _require_dtype(place: Place, field: str, dtype: np.dtype[Any], spec: FeatureSpec) -> None:
    if dtype == np.dtype(spec.storage_dtype):
        return
    if dtype.hasobject:
        raise place.error(
            f"`{field}` must hold numbers, found pickled Python objects, which can run code when "
            "they are read; write the array as float16"
        )
    if dtype == np.uint8:
        remedy = (
            'if it is the affine code of the spec, state `storage_dtype = "uint8"` in a file for '
            "`--features`; if not, write the tar again with float16 log-mels"
        )
    else:
        remedy = (
            "the loader serves what is stored as it is: write the tar again with "
            "`logmel.astype(numpy.float16)`"
        )
    raise place.error(f"`{field}` must be {spec.storage_dtype}, found {dtype}; {remedy}")


def _require_shape(place: Place, field: str, shape: tuple[int, ...], spec: FeatureSpec) -> None:
    if len(shape) == 2 and shape[1] == spec.n_mels and shape[0] > 0:
        return
    remedy = "state the features the tars were made with by `--features`"
    if len(shape) == 2 and shape[0] == spec.n_mels:
        remedy = "it stands on its side: write it again with `logmel.T.copy()`"
    if len(shape) != 2:
        remedy = "write one array per clip, without further axes"
    raise place.error(
        f"`{field}` must have shape (n_frames, n_mels) with n_mels={spec.n_mels} and at least "
        f"one frame, found {shape}; {remedy}"
    )


def read_json(place: Place, payload: npt.NDArray[np.uint8]) -> tuple[Any, SampleInfo | None]:
    """Parse a ``json`` member.

    Returns:
        its content, and the same as melstream writes it, where it is so.

    Raises:
        ShardError: it is not JSON, or larger than any description of a clip.
    """
    if len(payload) > MAX_JSON_BYTES:
        raise place.error(f"`json` must be under {MAX_JSON_BYTES} bytes, found {len(payload)}")
    try:
        content = json.loads(payload.tobytes())
    except (ValueError, RecursionError) as error:
        raise place.error(f"`json` must be JSON, found: {error}; make the tar again") from error
    try:
        return content, SampleInfo.model_validate(content)
    except ValidationError:
        return content, None


def read_labels(place: Place, content: Any, field: str) -> tuple[str, ...] | None:
    """Return the labels in a parsed ``json``, each once; None where it has no such field.

    Raises:
        ShardError: the field is neither a name nor a list of names.
    """
    found = content.get(field) if isinstance(content, dict) else None
    if found is None:
        return None
    names = [found] if isinstance(found, str) else found
    if not isinstance(names, list) or not all(isinstance(n, str) and n for n in names):
        raise place.error(
            f"`{field}` of the json must be the name of a class or a list of names, found "
            f"{json.dumps(found)[:60]}; name another field with `--label-field`, or make the tar "
            "again with names"
        )
    return tuple(dict.fromkeys(names))
