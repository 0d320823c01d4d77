"""Networks by name, classifiers, and their checkpoints."""

__all__ = ["NETWORKS"]

# Names of networks of this package that the documentation uses; widths and depths give more.
NETWORKS = (
    "small-cnn",
    "resnet18",
    "preactresnet18",
    "wrn-28-10",
    "wrn-34-10",
    "wrn-34-20",
    "small-cnn-exits",
    "resnet18-exits",
)
