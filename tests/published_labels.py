"""A folder of images, and labels of them in the layouts that other projects publish.

Written from what those projects' own scripts write (FKD_SLG/generate_soft_label.py of szq0214/FKD,
utils/relabel_functions.py of naver-ai/relabel_imagenet, data/augmentation/manager.py and
dataset_wrapper.py of microsoft/Cream/TinyViT), not with their code.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

CLASSES = ("n01", "n02", "n03", "n04", "n05", "n06")


def write_images(folder: Path, per_class: int = 2) -> Path:
    """Twelve small images, all different, named as ImageNet's are."""
    for number, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            pixels = np.full((4, 4, 3), number * 16 + i, np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{name}_{i + 7}.PNG")
    return folder


def names(folder: Path) -> list[str]:
    """Paths of the images without their suffix, in their order."""
    return [str(path.relative_to(folder).with_suffix("")) for path in sorted(folder.rglob("*.PNG"))]


def probabilities(count: int, crops: int, seed: int = 0) -> torch.Tensor:
    """Softmax of random logits, of shape (count, crops, K)."""
    drawn = torch.randn(count, crops, len(CLASSES), generator=torch.Generator().manual_seed(seed))
    return (drawn * 2).softmax(dim=-1)


def fkd_labels(soft: torch.Tensor, kind: str) -> np.ndarray:
    """One image's crops as FKD quantizes them."""
    quantized = []
    for row in soft:
        order = torch.argsort(row, descending=True)
        if kind == "hard":
            quantized.append(order[0])
        elif kind == "smoothing":
            quantized.append(torch.stack([order[0], row[order[0]]]))
        else:
            quantized.append(torch.stack([order[:5], row[order[:5]]]))
    return torch.stack(quantized).numpy()


def write_fkd(folder: Path, images: Path, kind: str = "marginal", crops: int = 3) -> Path:
    """A .tar of torch.save per image: boxes, flips, labels, all NumPy arrays."""
    listed = names(images)
    for name, soft in zip(listed, probabilities(len(listed), crops), strict=True):
        path = folder / f"{name}.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        boxes = torch.rand(crops, 4).numpy()
        flips = (torch.rand(crops) < 0.5).numpy()
        torch.save([boxes, flips, fkd_labels(soft, kind)], path)
    return folder


def label_map(seed: int) -> torch.Tensor:
    """One image's five largest logits at each of 15 × 15 places, then their classes."""
    drawn = torch.randn(len(CLASSES), 15, 15, generator=torch.Generator().manual_seed(seed)) * 4
    logits, classes = drawn.topk(5, dim=0)
    return torch.stack([logits, classes.float()])


def write_relabel(folder: Path, images: Path) -> Path:
    """A .pt of torch.save per image."""
    for number, name in enumerate(names(images)):
        path = folder / f"{name}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(label_map(number), path)
    return folder


def write_tinyvit(
    folder: Path, keys: list[str], epoch: int = 0, top_k: int = 3, ranks: int = 2
) -> Path:
    """Keys and values of each process: a seed, classes and probabilities, without gaps."""
    place = folder / f"logits_top{top_k}_epoch{epoch}"
    place.mkdir(parents=True)
    soft = probabilities(len(keys), 1, seed=epoch)[:, 0]
    values, indices = soft.topk(k=top_k, dim=-1, largest=True, sorted=True)
    for rank in range(ranks):
        # In the random order of training; the sampler repeats the first sample in each process.
        order = np.random.default_rng(rank).permutation(len(keys)).tolist()
        chosen = [i for i in order if i % ranks == rank or i == 0]
        content = b""
        for i in chosen:
            content += np.int32(1234 + i).tobytes()
            content += indices[i].to(torch.int16).numpy().tobytes()
            content += values[i].to(torch.float16).numpy().tobytes()
        texts = "".join(f"{keys[i]}\n" for i in chosen)
        (place / f"rank{rank}-keys.txt").write_text(texts)
        (place / f"rank{rank}-values.bin").write_bytes(content)
    return folder
