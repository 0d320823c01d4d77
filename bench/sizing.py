"""How large stores are: from the format, and checked by writing a small one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from answers import SIZES, Size, make_facts
from rivals import files_of, remove

from ltd_pipe.labels.writer import StoreWriter

if TYPE_CHECKING:
    from pathlib import Path

    from ltd_pipe.labels.format import StoreFacts

__all__ = ["expected_bytes", "measure_sizes", "size_table"]

# The 14,197,122 images of 21,841 synsets of ImageNet's release of autumn 2011.
_IMAGENET_21K = (14_197_122, 21_841)


def size_table() -> list[dict[str, Any]]:
    """Bytes of every kind of labels, for the data sets that people use."""
    kinds = [SIZES["cifar10"], SIZES["imagenet"], Size("imagenet", *_shape("imagenet"), 50)]
    kinds += [SIZES["topk10m"], Size("topk10m", *_shape("topk10m"), 10)]
    kinds += [Size("imagenet21k", *_IMAGENET_21K, top_k) for top_k in (None, 50, 10)]
    return [
        {
            "data": size.name,
            "samples": size.num_samples,
            "classes": size.num_classes,
            "top_k": size.top_k,
            "bytes_per_sample": size.sample_bytes,
            "bytes_per_sample_with_logits": None if size.top_k else 4 * size.num_classes + 12,
            "bytes": size.num_samples * size.sample_bytes,
        }
        for size in kinds
    ]


def _shape(name: str) -> tuple[int, int]:
    return SIZES[name].num_samples, SIZES[name].num_classes


def expected_bytes(facts: StoreFacts, top_k: int | None) -> int:
    """Bytes of all chunk files: whole chunks with a checksum of 4 bytes each."""
    rows = min(facts.rows_per_chunk(top_k), facts.num_samples)
    names = ["labels", "sample_hash"]
    names += ["topk_indices", "topk_probs"] if top_k else ["soft_labels"]
    layouts = [facts.layout(name, rows, top_k) for name in names]
    return sum(layout.num_chunks * layout.file_bytes for layout in layouts)


def measure_sizes(folder: Path, seed: int, samples: int) -> dict[str, Any]:
    """Write ImageNet-21k's width for a few samples, dense and top-50, and look at the files."""
    classes = _IMAGENET_21K[1]
    return {
        str(top_k or "dense"): _measure(Size("imagenet21k", samples, classes, top_k), folder, seed)
        for top_k in (None, 50)
    }


def _measure(size: Size, folder: Path, seed: int) -> dict[str, Any]:
    path = folder / "sized"
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(size.num_classes, (size.num_samples,), generator=generator).int().numpy()
    hashes = torch.arange(size.num_samples).numpy().astype("uint64")
    facts = make_facts(size, labels, hashes)
    temperature = 1.0 if size.top_k else None
    writer = StoreWriter(
        folder / "sized.draft",
        facts,
        keep_logits=False,
        top_k=size.top_k,
        temperature=temperature,
    )
    for start in range(0, size.num_samples, 256):
        block = slice(start, min(start + 256, size.num_samples))
        shape = (block.stop - start, size.num_classes)
        logits = torch.randn(shape, generator=generator) * 2.5
        writer.append(logits.numpy(), labels[block], hashes[block])
    writer.publish(path, 1.0)
    chunks = [file for file in files_of(path) if "c" in file.relative_to(path).parts]
    found = sum(file.stat().st_size for file in chunks)
    total = sum(file.stat().st_size for file in files_of(path))
    remove(path)
    if found != expected_bytes(facts, size.top_k):
        raise ValueError(f"{size}: chunks of {found} bytes, not as the format says")
    return {"samples": size.num_samples, "chunk_bytes": found, "other_bytes": total - found}
