"""Labels as FKD, ReLabel and TinyViT publish them become rows of the right images."""

import io
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from published_labels import (
    CLASSES,
    fkd_labels,
    label_map,
    names,
    probabilities,
    write_fkd,
    write_images,
    write_relabel,
    write_tinyvit,
)
from refusals import refused
from torchvision.ops import roi_align

from ltd_pipe.errors import JoinError, MissingError, ParamsError, StoreError
from ltd_pipe.images.manifest import sample_hash
from ltd_pipe.labels import SoftLabels
from ltd_pipe.labels.convert import HashedImages, Origin
from ltd_pipe.labels.foreign import (
    FkdLabels,
    RelabelLabels,
    TinyVitLabels,
    store_of_images,
)
from ltd_pipe.labels.verify import verify_store

ALL = np.arange(12)


@pytest.fixture
def pictures(tmp_path):
    """Twelve images in six class folders."""
    return write_images(tmp_path / "train")


@pytest.fixture
def images(pictures):
    """The same, hashed."""
    return HashedImages.read(pictures)


@pytest.fixture
def converted(images, tmp_path):
    """A function that makes a verified store of labels, and opens it."""

    def convert(labels, origin=None, **options):
        target = tmp_path / "labels.zarr"
        identity = store_of_images(labels, images, origin or Origin(), **options).write(target)
        verify_store(target, images)
        assert SoftLabels.open(target).identity == identity
        return SoftLabels.open(target)

    return convert


def test_images_are_hashed_as_files(pictures, images):
    """As a beton of that folder hashes them, in the same order, with the folders as classes."""
    first = pictures / images.files[0]
    assert images.sample_hash[0] == sample_hash(first.read_bytes())
    assert images.manifest.class_names == CLASSES
    assert [file.removesuffix(".PNG") for file in images.files] == names(pictures)


# As FKD's training recovers them: the rest evenly over the other classes.
def recovered(soft, kind):
    """Dense rows of one image's crops."""
    if kind == "hard":
        return np.eye(len(CLASSES))[fkd_labels(soft, kind)]
    labels = fkd_labels(soft, kind).reshape(len(soft), 2, -1)
    k = labels.shape[2]
    rest = (1 - labels[:, 1].sum(axis=1, keepdims=True)) / (len(CLASSES) - k)
    rows = np.repeat(rest, len(CLASSES), axis=1)
    np.put_along_axis(rows, labels[:, 0].astype(int), labels[:, 1], axis=1)
    return rows


@pytest.mark.parametrize("kind", ["hard", "smoothing", "marginal"])
def test_fkd_crops_are_averaged(pictures, images, converted, tmp_path, kind):
    """Each image's label is the mean over its crops, of which the store says so."""
    root = write_fkd(tmp_path / "FKD", pictures, kind)
    found = converted(FkdLabels(root, images, average_crops=True))
    expected = np.stack([recovered(soft, kind).mean(axis=0) for soft in probabilities(12, 3)])
    np.testing.assert_allclose(found.gather(ALL), expected, atol=2**-10)
    [source] = found.attributes.derived_from.sources
    assert source.startswith("FKD, mean over 3 crops of each image, 12 files, SHA-256 of their")
    assert found.attributes.teachers == ()


def test_fkd_crops_are_not_taken_for_images(pictures, images, tmp_path):
    """Without being told to average, the labels of crops are refused."""
    root = write_fkd(tmp_path / "FKD", pictures)
    with refused(ParamsError, where=root, what="random", remedy="--average-crops"):
        FkdLabels(root, images, average_crops=False)


def test_fkd_labels_can_be_made_sparse(pictures, images, converted, tmp_path):
    """How much is lost is unknown, since they were sparse before."""
    root = write_fkd(tmp_path / "FKD", pictures)
    found = converted(FkdLabels(root, images, average_crops=True), top_k=2)
    assert found.top_k == 2
    assert found.attributes.top_k.total_variation is None
    with refused(ParamsError, where="top_k", expected="1 to 6, the number of classes", found=7):
        converted(FkdLabels(root, images, average_crops=True), top_k=7)


def test_files_of_numpy_1_are_read_too(pictures, images, converted, tmp_path):
    """It pickled arrays under the name of a module that NumPy 2 has moved."""
    root = write_fkd(tmp_path / "FKD", pictures)
    for path in root.rglob("*.tar"):
        rename_numpy(path)
    found = converted(FkdLabels(root, images, average_crops=True))
    assert found.num_samples == 12


def rename_numpy(path: Path) -> None:
    """Put the pickle of a torch.save into NumPy 1's words."""
    with zipfile.ZipFile(path) as archive:
        members = {item: archive.read(item) for item in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for item, content in members.items():
            changed = content
            if item.filename.endswith("data.pkl"):
                assert b"numpy._core.multiarray" in content
                changed = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            archive.writestr(item.filename, changed)


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return open, (str(self.proof), "w")


def zipped(content):
    """As torch.save without its checks."""
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


REFUSED = {
    "torch": re.compile(r"code .*\.open\b"),
    "legacy": re.compile(r"code .*\.open\b"),
    "plain pickle": "damaged",
}


@pytest.mark.parametrize("form", REFUSED)
def test_code_in_a_file_is_never_run(pictures, images, tmp_path, form):
    """Whoever wrote the file, only tensors and arrays come out of it."""
    root = write_fkd(tmp_path / "FKD", pictures)
    path, proof = next(root.rglob("*.tar")), tmp_path / "proof"
    content = [np.zeros((3, 4)), np.zeros(3), Evil(proof)]
    if form == "plain pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "torch")
    labels = FkdLabels(root, images, average_crops=True)
    with refused(StoreError, where=path, what=REFUSED[form]):
        labels.read(ALL)
    assert not proof.exists()


WRONG_FKD = {
    "no list": torch.ones(3),
    "too short": [np.ones(3), np.ones(3)],
    "a text": [1, 2, "labels"],
    "another shape": [1, 2, np.ones((3, 3, 5), np.float32)],
    "no crops": [1, 2, torch.ones(0, 2, 5)],
    "no class": [1, 2, np.array([[[6.0], [0.5]]], np.float32)],
    "a negative class": [1, 2, np.array([[[-1.0], [0.5]]], np.float32)],
    "half a class": [1, 2, np.array([[[0.5], [0.5]]], np.float32)],
    "a class twice": [1, 2, np.array([[[1.0, 1.0], [0.5, 0.5]]], np.float32)],
    "too much": [1, 2, np.array([[[1.0, 2.0], [0.9, 0.5]]], np.float32)],
    "NaN": [1, 2, np.array([[[1.0], [np.nan]]], np.float32)],
}


@pytest.mark.parametrize("content", WRONG_FKD.values(), ids=WRONG_FKD.keys())
def test_what_fkd_never_writes_is_refused(pictures, images, converted, tmp_path, content):
    """Naming the file, and nothing is published."""
    root = write_fkd(tmp_path / "FKD", pictures)
    torch.save(content, root / "n02" / "n02_8.tar")
    with refused(StoreError, where=root / "n02/n02_8.tar", what=re.compile("^holds (no )?labels")):
        converted(FkdLabels(root, images, average_crops=True))
    assert not (tmp_path / "labels.zarr").exists()


def test_a_file_that_grows_is_refused(pictures, images, tmp_path):
    """Compressed zeros that would fill the memory."""
    root = write_fkd(tmp_path / "FKD", pictures)
    path = root / "n01" / "n01_7.tar"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**27))
    with refused(
        StoreError, where=path, what="large", expected="at most 67108864 bytes", found=134217728
    ):
        FkdLabels(root, images, average_crops=True).read(ALL[:1])


@pytest.mark.parametrize(
    "tensor",
    {
        "of one number": torch.ones(1).expand(2, 1, 2**13, 2**13),
        "of many places": torch.ones(2, 1, 1, 1, dtype=torch.uint8).expand(2, 1, 2**11, 2**11),
        "complex": torch.ones(2, 1, 2, 2, dtype=torch.complex64),
    }.items(),
    ids=lambda item: item[0],
)
def test_tensors_that_would_grow_or_change_are_refused(pictures, images, tmp_path, tensor):
    """A file of a kilobyte may hold a tensor of terabytes, or of what has no place in a label."""
    root = write_relabel(tmp_path / "relabel", pictures)
    path = root / "n01" / "n01_7.pt"
    torch.save(tensor[1], path)
    assert path.stat().st_size < 2**12
    with refused(StoreError, where=path, what=re.compile("is too large|than real numbers")):
        RelabelLabels(root, images).read(ALL)


def test_images_without_a_file_are_refused(pictures, images, tmp_path):
    """All are looked for before the first is read."""
    root = write_fkd(tmp_path / "FKD", pictures)
    (root / "n03" / "n03_7.tar").unlink()
    with refused(JoinError, where=root, what="n03/n", expected="n03/n03_7.tar"):
        FkdLabels(root, images, average_crops=True)
    with refused(MissingError, where=root / "absent", what="folder"):
        FkdLabels(root / "absent", images, average_crops=True)


def test_two_images_of_one_file_are_refused(pictures, tmp_path):
    """a.PNG and a.jpg would both get a.tar."""
    (pictures / "n01" / "n01_7.jpg").write_bytes(b"another")
    root = write_fkd(tmp_path / "FKD", pictures)
    with refused(
        JoinError, where=root, what="n01/n01_7.tar", found="n01/n01_7.PNG and n01/n01_7.jpg"
    ):
        FkdLabels(root, HashedImages.read(pictures), average_crops=True)


def test_label_maps_are_pooled_as_relabel_pools_them(pictures, images, converted, tmp_path):
    """RoIAlign over the whole image, then softmax: the label of a crop that cuts nothing."""
    found = converted(RelabelLabels(write_relabel(tmp_path / "relabel", pictures), images))
    for i in range(12):
        logits, classes = label_map(i)
        dense = torch.zeros(1, len(CLASSES), 15, 15)
        dense[0].scatter_(0, classes.long(), logits)
        whole = torch.tensor([[0.0, -0.5, -0.5, 14.5, 14.5]])
        expected = roi_align(dense, whole, output_size=(1, 1)).flatten()
        np.testing.assert_allclose(
            found.gather_logits(ALL[i : i + 1])[0], expected, rtol=2e-3, atol=1e-3
        )
        soft = expected.softmax(dim=0)
        np.testing.assert_allclose(found.gather(ALL[i : i + 1])[0], soft, atol=2e-3)
    assert found.attributes.derived_from.sources[0].startswith("ReLabel, mean over the label map")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_label_maps_may_be_of_any_precision(pictures, images, converted, tmp_path, dtype):
    """Also tensors that were trained; one that is not dense is refused."""
    root = write_relabel(tmp_path / "relabel", pictures)
    path = next(root.rglob("*.pt"))
    content = torch.load(path, weights_only=True).to(dtype)
    torch.save(content.requires_grad_(), path)
    converted(RelabelLabels(root, images))
    torch.save(content.detach().float().to_sparse(), path)
    with refused(StoreError, where=path, what=re.compile("than real numbers|nothing that torch")):
        RelabelLabels(root, images).read(ALL)


def test_label_maps_can_be_softened_and_made_sparse(pictures, images, converted, tmp_path):
    """At another temperature, with what is lost by the largest alone."""
    labels = RelabelLabels(write_relabel(tmp_path / "relabel", pictures), images)
    found = converted(labels, Origin(temperature=0.5), top_k=2)
    assert found.attributes.temperature == 0.5
    assert found.attributes.top_k.total_variation.samples == 12


WRONG_MAPS = {
    "no tensor": [1, 2],
    "another shape": torch.ones(5, 15, 15),
    "no class": torch.full((2, 5, 2, 2), 6.0),
    "a negative class": torch.full((2, 5, 2, 2), -1.0),
    "NaN": torch.full((2, 5, 2, 2), float("nan")),
    "empty": torch.ones(2, 0, 2, 2),
    "a class twice at a place": torch.ones(2, 2, 2, 2),
}


@pytest.mark.parametrize("content", WRONG_MAPS.values(), ids=WRONG_MAPS.keys())
def test_what_relabel_never_writes_is_refused(pictures, images, converted, tmp_path, content):
    """Naming the file."""
    root = write_relabel(tmp_path / "relabel", pictures)
    torch.save(content, root / "n06" / "n06_8.pt")
    with refused(StoreError, where=root / "n06/n06_8.pt", what="label map"):
        converted(RelabelLabels(root, images))


def tinyvit(root, images, **options):
    """TinyViT's labels, averaged."""
    return TinyVitLabels(root, images, **{"average_crops": True} | options)


def keys_of(folder):
    """Names of the images without folder and suffix: TinyViT's keys."""
    return [name.partition("/")[2] for name in names(folder)]


def test_one_epoch_of_tinyvit_is_stored_as_it_is(pictures, images, converted, tmp_path):
    """Classes and probabilities by key, whatever the order in the files."""
    root = write_tinyvit(tmp_path / "logits", keys_of(pictures))
    found = converted(tinyvit(root, images))
    values, indices = probabilities(12, 1)[:, 0].topk(3)
    stored = found.gather_topk(ALL)
    np.testing.assert_array_equal(stored[0], indices)
    np.testing.assert_array_equal(stored[1], values.to(torch.float16))
    assert found.attributes.top_k.total_variation is None
    assert "mean over 1 augmented views" in found.attributes.derived_from.sources[0]


def test_names_with_blanks_are_keys_of_tinyvit(tmp_path):
    """A key is a line, whatever Python takes for the end of one; lines may end as on Windows."""
    keys = ["my cat", "next\x85line", *"cdef"]
    for number, name in enumerate(keys):
        place = tmp_path / "photos" / CLASSES[number] / f"{name}.png"
        place.parent.mkdir(parents=True)
        Image.new("L", (8, 8), number * 9).save(place)
    images = HashedImages.read(tmp_path / "photos")
    root = write_tinyvit(tmp_path / "logits", keys)
    for path in root.rglob("*-keys.txt"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert tinyvit(root, images).read(np.arange(6))["topk_probs"].shape == (6, 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_fkd_labels_may_be_of_any_precision(pictures, images, converted, tmp_path, dtype):
    """Also one that NumPy has not, and of a tensor that was trained."""
    root = write_fkd(tmp_path / "FKD", pictures)
    path = next(root.rglob("*.tar"))
    content = torch.load(path, weights_only=False)
    labels = torch.zeros(3, dtype=dtype).requires_grad_()  # three crops' classes
    torch.save([content[0], content[1], labels], path)
    converted(FkdLabels(root, images, average_crops=True))


def test_epochs_of_tinyvit_are_averaged(pictures, images, converted, tmp_path):
    """The rest spread evenly, as its training does; the largest of the mean are kept."""
    for epoch in (0, 1):
        root = write_tinyvit(tmp_path / "logits", keys_of(pictures), epoch)
    found = converted(tinyvit(root, images))
    rows = []
    for epoch in (0, 1):
        values, indices = probabilities(12, 1, seed=epoch)[:, 0].topk(3)
        rest = (1 - values.sum(dim=1, keepdim=True)) / 3
        rows.append(rest.expand(12, 6).clone().scatter_(1, indices, values))
    mean = (rows[0] + rows[1]) / 2
    np.testing.assert_allclose(found.gather_topk(ALL)[1], mean.topk(3).values, atol=2**-10)
    assert "mean over 2 augmented views" in found.attributes.derived_from.sources[0]


def test_augmented_views_of_tinyvit_are_not_taken_for_images(pictures, images, tmp_path):
    """Unless that is asked for."""
    root = write_tinyvit(tmp_path / "logits", keys_of(pictures))
    with refused(ParamsError, where=root, what="augmented", remedy="--average-crops"):
        tinyvit(root, images, average_crops=False)


def test_numbers_as_keys_are_positions_that_nothing_proves(pictures, images, converted, tmp_path):
    """They are taken when the user answers for the order, which the store says."""
    root = write_tinyvit(tmp_path / "logits", [str(i) for i in range(12)])
    with refused(
        JoinError, where=root / "logits_top3_epoch0", what="n01/n01_7.PNG", remedy="--trust-order"
    ):
        tinyvit(root, images)
    found = converted(tinyvit(root, images, trust_order=True))
    assert "joined by position" in found.attributes.derived_from.sources[0]


def test_positions_are_of_all_images_or_none(pictures, tmp_path):
    """An image that is gone shifts every label after it to the next image, mostly of its class."""
    root = write_tinyvit(tmp_path / "logits", [str(i) for i in range(12)])
    epoch = root / "logits_top3_epoch0"
    first = pictures / HashedImages.read(pictures).files[0]
    moved = first.rename(tmp_path / first.name)
    with refused(JoinError, where=epoch, what="more images", found="1 others, such as '11'"):
        tinyvit(root, HashedImages.read(pictures), trust_order=True)
    moved.rename(first)
    tinyvit(root, HashedImages.read(pictures), trust_order=True)
    # torchvision has such a one at another place.
    inner = first.parent / "more"
    inner.mkdir()
    first.rename(inner / first.name)
    with refused(JoinError, where=f"n01/more/{first.name}", what="torchvision's order"):
        tinyvit(root, HashedImages.read(pictures), trust_order=True)


def test_other_files_beside_labels_of_tinyvit_are_left_alone(pictures, images, converted, tmp_path):
    """Folders too; keys that are no text are refused."""
    root = write_tinyvit(tmp_path / "logits", keys_of(pictures))
    epoch = root / "logits_top3_epoch0"
    (epoch / "rank0-notes").mkdir()
    assert ", 4 files, " in converted(tinyvit(root, images)).attributes.derived_from.sources[0]
    keys = epoch / "rank0-keys.txt"
    keys.write_bytes(b"\xff" + keys.read_bytes())
    with refused(StoreError, where=keys, what="UTF-8"):
        tinyvit(root, images)


def test_damaged_values_of_tinyvit_are_refused(pictures, images, converted, tmp_path):
    """Cut short, without keys, or with labels that are none."""
    root = write_tinyvit(tmp_path / "logits", keys_of(pictures)[:-1])
    with refused(JoinError, where=root / "logits_top3_epoch0", what="n06/n06_8.PNG"):
        tinyvit(root, images)
    root = write_tinyvit(tmp_path / "more", keys_of(pictures))
    values = root / "logits_top3_epoch0" / "rank0-values.bin"
    content = values.read_bytes()
    values.write_bytes(content[:-4])
    with refused(StoreError, where=values, what="short", expected="96 bytes", found=92):
        tinyvit(root, images)
    values.write_bytes(content[:10] + b"\xff\x7f" + content[12:])
    with refused(
        StoreError,
        where=root / "logits_top3_epoch0",
        what="distribution",
        found="classes up to 2, sum nan",
    ):
        converted(tinyvit(root, images))
    values.with_name("rank0-keys.txt").unlink()
    with refused(MissingError, where=root / "logits_top3_epoch0/rank0-keys.txt", what="file"):
        tinyvit(root, images)


@pytest.mark.parametrize("name", ["labels", "logits_top3", "logits_top0_epoch0"])
def test_what_is_no_folder_of_tinyvit_is_refused(images, tmp_path, name):
    """The names say how many probabilities there are."""
    (tmp_path / "root" / name).mkdir(parents=True)
    with refused(StoreError, where=tmp_path / "root", what="epochs", found=name):
        tinyvit(tmp_path / "root", images)


def test_more_ranks_than_classes_are_refused(pictures, images, tmp_path):
    """They are labels over other classes."""
    (tmp_path / "root" / "logits_top100_epoch0").mkdir(parents=True)
    with refused(
        StoreError,
        where=tmp_path / "root",
        what="probabilities",
        expected="at most 6, the classes",
        found=100,
    ):
        tinyvit(tmp_path / "root", images)


def test_images_of_one_name_are_refused(pictures, tmp_path):
    """TinyViT's key is the name alone."""
    root = write_tinyvit(tmp_path / "logits", keys_of(pictures))
    (pictures / "n02" / "n01_7.PNG").write_bytes(b"another")
    with refused(JoinError, where="n02/n01_7.PNG", what="name", found="n01/n01_7.PNG"):
        tinyvit(root, HashedImages.read(pictures))
