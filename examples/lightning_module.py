"""Train a ResNet-18 on soft labels with Lightning.

    python examples/lightning_module.py photos/train labels.zarr --size 224 --devices 8

The folder holds a folder of images per class, and labels.zarr was made for it with 'ltd-pipe
label'; examples/digits_folder.py makes one to try. Lightning gives each device its part of the
samples; the labels come along, since they are found by each image's hash.
"""

import argparse

import lightning
import torch
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision import models, transforms
from torchvision.datasets import ImageFolder

from ltd_pipe.labels import SoftLabelDataset


class Student(lightning.LightningModule):
    """Learns the teacher's distributions; the classes themselves are only counted."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.model = models.resnet18(num_classes=num_classes)

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        """Cross-entropy against the soft labels."""
        images, labels, soft = batch
        logits = self.model(images)
        loss = functional.cross_entropy(logits, soft)
        accuracy = (logits.argmax(dim=1) == labels).float().mean()
        metrics = {"loss": loss, "accuracy": accuracy}
        self.log_dict(metrics, on_step=False, on_epoch=True, batch_size=len(labels))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD with momentum."""
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


def main() -> None:
    """Train, and print the last epoch's loss and accuracy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("store")
    parser.add_argument("--size", type=int, default=32, help="pixels of a side")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--devices", type=int, default=1)
    arguments = parser.parse_args()
    resize = transforms.Resize((arguments.size, arguments.size))
    folder = ImageFolder(arguments.folder, transforms.Compose([resize, transforms.ToTensor()]))
    data = SoftLabelDataset(folder, arguments.store)
    loader = DataLoader(data, 128, shuffle=True, num_workers=arguments.workers)
    trainer = lightning.Trainer(
        max_epochs=arguments.epochs,
        devices=arguments.devices,
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(Student(len(folder.classes)), loader)
    print({name: round(float(value), 4) for name, value in trainer.callback_metrics.items()})


if __name__ == "__main__":
    main()
