"""A reader of soft-label stores as another team might write it, from the specification alone.

Python's standard library and NumPy; nothing of ours is imported.
"""

import hashlib
import json
from math import prod
from pathlib import Path

import numpy as np

# Castagnoli's polynomial, reflected.
TABLE = [0] * 256
for byte in range(256):
    remainder = byte
    for _ in range(8):
        remainder = remainder >> 1 ^ (0x82F63B78 if remainder & 1 else 0)
    TABLE[byte] = remainder


def crc32c(content: bytes) -> int:
    """The checksum behind each chunk."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def read_files(store: Path) -> dict[str, bytes]:
    """All files that the manifest lists, as it says that they are."""
    files = {}
    for line in (store / "MANIFEST.sha256").read_text("ascii").splitlines():
        digest, name = line.split("  ")
        files[name] = (store / name).read_bytes()
        if hashlib.sha256(files[name]).hexdigest() != digest:
            raise ValueError(f"{name} is damaged")
    return files


def read_array(files: dict[str, bytes], name: str, metadata: dict) -> np.ndarray:
    """One array, its chunks in their order and without the padding."""
    shape = metadata["shape"]
    chunk_shape = metadata["chunk_grid"]["configuration"]["chunk_shape"]
    dtype = np.dtype(metadata["data_type"]).newbyteorder("<")
    chunks = []
    for number in range(-(-shape[0] // chunk_shape[0])):
        chunk = files["/".join([name, "c", str(number), *["0"] * (len(shape) - 1)])]
        if len(chunk) != dtype.itemsize * prod(chunk_shape) + 4:
            raise ValueError(f"{name}: chunk {number} has another size")
        if crc32c(chunk[:-4]) != int.from_bytes(chunk[-4:], "little"):
            raise ValueError(f"{name}: chunk {number} is damaged")
        chunks.append(np.frombuffer(chunk[:-4], dtype).reshape(chunk_shape))
    return np.concatenate(chunks)[: shape[0]]


def dense_rows(arrays: dict[str, np.ndarray], num_classes: int) -> np.ndarray:
    """float32 rows over all classes that sum to one."""
    if "soft_labels" in arrays:
        rows = arrays["soft_labels"].astype(np.float32)
    else:
        classes, probs = arrays["topk_indices"], arrays["topk_probs"].astype(np.float32)
        rest = np.maximum(0, 1 - probs.sum(axis=-1, keepdims=True))
        rows = np.repeat(rest / max(num_classes - probs.shape[-1], 1), num_classes, axis=-1)
        np.put_along_axis(rows, classes.astype(np.int64), probs, axis=-1)
    return rows / rows.sum(axis=-1, keepdims=True)


def read_store(store: Path) -> tuple[dict, dict[str, np.ndarray], np.ndarray]:
    """The attribute, the arrays as they are stored, and the rows to train on."""
    files = read_files(store)
    group = json.loads(files["zarr.json"])
    facts = group["attributes"]["ltd_pipe"]
    if facts["format"] != "ltd-soft-labels" or not facts["version"].startswith("1."):
        raise ValueError("another format")
    arrays = {
        name: read_array(files, name, metadata)
        for name, metadata in group["consolidated_metadata"]["metadata"].items()
    }
    return facts, arrays, dense_rows(arrays, facts["num_classes"])
