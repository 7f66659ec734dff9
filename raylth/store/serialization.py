"""Named arrays as one flat safetensors buffer; bool arrays (masks) as packed bits. Nothing is ever unpickled."""

import json
import math
from collections.abc import Mapping

import numpy as np
from safetensors.numpy import save

__all__ = ["decode_tensors", "encode_tensors"]

BITS = "raylth.bits"  # metadata: JSON of name -> shape of each bool array that is packed eight to a byte

DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32, "I16": np.int16,
    "I8": np.int8, "U8": np.uint8, "U16": np.uint16, "U32": np.uint32, "U64": np.uint64, "BOOL": np.bool_,
}  # fmt: skip


def encode_tensors(tensors: Mapping[str, np.ndarray]) -> bytes:
    """Write named arrays as safetensors; each bool array is packed and its shape kept in the metadata."""
    flat: dict[str, np.ndarray] = {}
    shapes: dict[str, list[int]] = {}
    for name, array in tensors.items():
        if array.dtype == np.bool_:
            shapes[name] = list(array.shape)
            array = np.packbits(array, axis=None)
        flat[name] = np.asarray(array, order="C")  # ascontiguousarray would turn () into (1,)
    # One entry: safetensors writes several in random order, and equal arrays must give equal bytes.
    return save(flat, metadata={BITS: json.dumps(shapes, sort_keys=True)} if shapes else None)


def decode_tensors(buffer: np.ndarray | bytes) -> dict[str, np.ndarray]:
    """Read what `encode_tensors` wrote; arrays are read-only views of `buffer`, except that masks are unpacked.

    Raises ValueError for a buffer that is not safetensors.
    """
    data = np.frombuffer(buffer, dtype=np.uint8)
    try:
        header_size = int(data[:8].view("<u8")[0])
        header = json.loads(data[8 : 8 + header_size].tobytes())
        body = data[8 + header_size :]
        shapes = json.loads(header.pop("__metadata__", {}).get(BITS, "{}"))
        tensors = {}
        for name, entry in header.items():
            start, end = entry["data_offsets"]
            array = body[start:end].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
            if name in shapes:
                array = np.unpackbits(array, count=math.prod(shapes[name])).view(np.bool_).reshape(shapes[name])
            tensors[name] = array
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"not a safetensors buffer of {len(data)} bytes: {error}") from error
    return tensors
