"""Train a ResNet-18 on soft labels in a plain loop.

    python examples/plain_loop.py photos/train labels.zarr --size 224 --workers 8

The folder holds a folder of images per class, and labels.zarr was made for it with 'ltd-pipe
label'; examples/digits_folder.py makes one to try. The store is used in three lines, marked (1),
(2) and (3): an image that the store has no label for stops the loop.
"""

import argparse

import torch
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision import models, transforms
from torchvision.datasets import ImageFolder

from ltd_pipe.labels import SoftLabelDataset


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("store")
    parser.add_argument("--size", type=int, default=32, help="pixels of a side")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    """Train, and print loss and accuracy of each epoch."""
    arguments = parse()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    transform = transforms.Compose(
        [
            transforms.Resize((arguments.size, arguments.size)),
            transforms.RandomCrop(arguments.size, padding=arguments.size // 8),
            transforms.ToTensor(),
        ]
    )
    folder = ImageFolder(arguments.folder, transform)
    data = SoftLabelDataset(folder, arguments.store)  # (1)
    loader = DataLoader(data, arguments.batch_size, shuffle=True, num_workers=arguments.workers)
    model = models.resnet18(num_classes=len(folder.classes)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for epoch in range(arguments.epochs):
        total = right = 0.0
        for images, labels, soft in loader:  # (2)
            logits = model(images.to(device))
            loss = functional.cross_entropy(logits, soft.to(device))  # (3)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(labels)
            right += (logits.argmax(dim=1).cpu() == labels).sum().item()
        print(f"epoch {epoch}: loss {total / len(data):.4f}, accuracy {right / len(data):.2%}")


if __name__ == "__main__":
    main()
