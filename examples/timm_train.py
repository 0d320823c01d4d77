"""Train a network of timm on soft labels with timm's loader, optimizer, schedule and loss.

    python examples/timm_train.py photos/train labels.zarr --model resnet50 --size 224

The folder holds a folder of images per class, and labels.zarr was made for it with 'ltd-pipe
label'; examples/digits_folder.py makes one to try. In timm's own train.py the marked lines go
(1) after `dataset_train = create_dataset(…)`, (2) before `loader_train = create_loader(…)`, and
(3) in place of the other losses; run it without --mixup, --cutmix and --aug-splits, which mix
labels as class numbers.
"""

import argparse
from typing import Any

import timm
import torch
from timm.data import create_dataset, create_loader
from timm.data.loader import fast_collate
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2

from ltd_pipe.labels import SoftLabelDataset


def soft_collate(batch: list[tuple[Any, int, torch.Tensor]]) -> Any:
    """Leave out the class numbers: timm's loops take (images, targets)."""
    return fast_collate([(image, soft) for image, _, soft in batch])


def main() -> None:
    """Train, and print the loss of each epoch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("store")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=32, help="pixels of a side")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    dataset_train = create_dataset("", root=arguments.folder, is_training=True)
    dataset_train = SoftLabelDataset(dataset_train, arguments.store)  # (1)
    loader_train = create_loader(
        dataset_train,
        input_size=(3, arguments.size, arguments.size),
        batch_size=arguments.batch_size,
        is_training=True,
        num_workers=arguments.workers,
        collate_fn=soft_collate,  # (2)
        device=device,
    )
    num_classes = dataset_train.store.num_classes
    model = timm.create_model(arguments.model, num_classes=num_classes).to(device)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
    scheduler, epochs = create_scheduler_v2(optimizer, num_epochs=arguments.epochs)
    loss_fn = SoftTargetCrossEntropy()  # (3)
    for epoch in range(epochs):
        losses = []
        for images, targets in loader_train:
            loss = loss_fn(model(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        scheduler.step(epoch + 1)
        print(f"epoch {epoch}: loss {sum(losses) / len(losses):.4f}")


if __name__ == "__main__":
    main()
