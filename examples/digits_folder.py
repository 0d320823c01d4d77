"""Write scikit-learn's 1,797 digits as a folder of pictures, to try the other examples on.

python examples/digits_folder.py digits      # digits/train/3/17.png, …, digits/test/…
ltd-pipe recipe use digits                   # writes params.yaml
ltd-pipe prepare --dataset folder --path digits --channels 3
ltd-pipe teacher
ltd-pipe label --teacher data/teacher/model.safetensors --data digits/train --out labels.zarr
"""

import argparse
from pathlib import Path

from PIL import Image

from ltd_pipe.images.sources import open_source
from ltd_pipe.params import PrepareParams


def main() -> None:
    """Write both splits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limit", type=int, help="write only so many of each split")
    arguments = parser.parse_args()
    for split in ("train", "test"):
        source = open_source(PrepareParams(dataset="digits"), split)
        for i in range(len(source))[: arguments.limit]:
            name = source.class_names[source.labels[i]]
            path = arguments.folder / split / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(source.decode(i)).save(path)


if __name__ == "__main__":
    main()
