"""Copy crops of samples out of mapped shards, straight into a batch.

No per-sample Python and no ``.npy`` parsing: the index says where a payload ends, and an
array is the tail of its payload. Each crop is one memcpy; padding is zeros.
"""

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from .draws import below, draw

_LINE_BYTES = 64


def random_starts(
    n_frames: npt.NDArray[np.int32], crop_frames: int, keys: npt.NDArray[np.uint64]
) -> npt.NDArray[np.int64]:
    """Draw where each sample's crop begins; 0 where the sample is not longer than the crop.

    Args:
        n_frames: frames of each sample, int32, shape (B,).
        crop_frames: frames of a crop.
        keys: one key of draws per sample, uint64, shape (B,).

    Returns:
        first frame of each crop, int64, shape (B,).
    """
    return _random_starts(n_frames, crop_frames, keys)


def gather(
    addresses: npt.NDArray[np.uint64], sizes: npt.NDArray[np.int64], out: npt.NDArray[np.generic]
) -> None:
    """Copy one run of bytes per sample into a batch and fill the rest with zeros.

    The caller guarantees that every run lies inside memory that stays mapped during the call:
    addresses are taken from arrays it holds, sizes were checked against their bounds.

    Args:
        addresses: where each sample's crop begins in memory, uint64, shape (B,).
        sizes: bytes to copy for each sample, int64, shape (B,).
        out: the batch, C order, shape (B, …); overwritten.

    Raises:
        ValueError: a run is longer than a row of ``out``, or the shapes do not agree.
    """
    row_bytes = out.nbytes // len(out)
    if not out.flags.c_contiguous or not len(addresses) == len(sizes) == len(out):
        raise ValueError(f"`out` must be C order with one row per sample ({len(sizes)} samples)")
    if sizes.size and not 0 <= sizes.min() <= sizes.max() <= row_bytes:
        raise ValueError(
            f"`sizes` must be in 0..{row_bytes} bytes, found {sizes.min()}..{sizes.max()}"
        )
    _gather(addresses, sizes, out.reshape(-1).view(np.uint8), row_bytes)


def address_of(data: npt.NDArray[np.uint8]) -> int:
    """Return where an array lies in memory; NumPy's ``ctypes`` takes four times as long."""
    return _address_of(data)


def fill_labels(
    rows: npt.NDArray[np.int64],
    places: npt.NDArray[np.int64],
    indptr: npt.NDArray[np.int64],
    label_ids: npt.NDArray[np.int32],
    label_map: npt.NDArray[np.int64],
    out: npt.NDArray[np.float32],
) -> None:
    """Set the labels of samples in a batch to 1.

    Args:
        rows: of the index, int64, shape (n,); -1 for none.
        places: of the samples in the batch, int64, shape (n,).
        indptr, label_ids: the index's labels, as CSR.
        label_map: the class of each label id, int64, shape (n_ids,).
        out: float32, shape (B, n_classes); other values stay.
    """
    _fill_labels(rows, places, indptr, label_ids, label_map, out)


@njit(cache=True)
def _address_of(data):
    return data.ctypes.data


@njit(cache=True, nogil=True)
def _fill_labels(rows, places, indptr, label_ids, label_map, out):
    for i in range(len(rows)):
        if rows[i] >= 0:
            for k in range(indptr[rows[i]], indptr[rows[i] + 1]):
                out[places[i], label_map[label_ids[k]]] = 1.0


@njit(cache=True, nogil=True)
def _random_starts(n_frames, crop_frames, keys):
    starts = np.zeros(len(n_frames), np.int64)
    for b in range(len(n_frames)):
        if n_frames[b] > crop_frames:
            starts[b] = below(draw(keys[b], 0), n_frames[b] - crop_frames + 1)
    return starts


@intrinsic
def _copy_bytes(typing_context, target, source, size):
    """Copy ``size`` bytes between two addresses (LLVM's memcpy; a loop is a quarter as fast)."""

    def generate(context, builder, signature, arguments):
        target_address, source_address, n_bytes = arguments
        pointer = ir.IntType(8).as_pointer()
        cgutils.raw_memcpy(
            builder,
            builder.inttoptr(target_address, pointer),
            builder.inttoptr(source_address, pointer),
            n_bytes,
            ir.Constant(ir.IntType(64), 1),
        )
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64, types.int64), generate


@intrinsic
def _stream_line(typing_context, target, source):
    """Copy a cache line to an address that is a multiple of its size, past the caches."""

    def generate(context, builder, signature, arguments):
        line = ir.VectorType(ir.IntType(8), _LINE_BYTES).as_pointer()
        target_line, source_line = (builder.inttoptr(each, line) for each in arguments)
        store = builder.store(builder.load(source_line, align=1), target_line, align=_LINE_BYTES)
        yes = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
        store.set_metadata("nontemporal", yes)
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64), generate


@intrinsic
def _fence(typing_context):
    """Have everything in memory that was written: streamed lines wait for no later store."""

    def generate(context, builder, signature, arguments):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@njit(cache=True, nogil=True)
def _stream_bytes(target, source, size):
    """Copy ``size`` bytes: whole lines of the target past the caches, what is beside them not."""
    head = min(-np.int64(target) % _LINE_BYTES, size)
    lines = (size - head) // _LINE_BYTES * _LINE_BYTES
    _copy_bytes(target, source, head)  # pyright: ignore[reportCallIssue]
    for done in range(head, head + lines, _LINE_BYTES):
        _stream_line(target + np.uint64(done), source + np.uint64(done))  # pyright: ignore[reportCallIssue]
    done = head + lines
    _copy_bytes(target + np.uint64(done), source + np.uint64(done), size - done)


@njit(cache=True, nogil=True)
def _gather(addresses, sizes, out, row_bytes):
    base = np.uint64(out.ctypes.data)
    for b in range(len(addresses)):
        first = b * row_bytes
        _stream_bytes(base + np.uint64(first), addresses[b], sizes[b])
        out[first + sizes[b] : first + row_bytes] = 0
    _fence()  # pyright: ignore[reportCallIssue]
