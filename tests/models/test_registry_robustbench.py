"""Networks of RobustBench's zoo: by name, with weights that are read as any others."""

import sys
from pathlib import Path

import pytest
import torch
from refusals import refused

from ltd_pipe.errors import MachineError, MissingError, ModelError
from ltd_pipe.models.foreign import load_foreign
from ltd_pipe.models.registry import build, zoo_weights

# A zoo of three entries in the package's own form, so that no test needs its hundreds.
ZOO = """
import enum
import torch
from torch import nn

class Sets(enum.Enum):
    cifar_10 = "cifar10"
    cifar_100 = "cifar100"
    imagenet = "imagenet"

class Threats(enum.Enum):
    Linf = "Linf"
    L2 = "L2"

class Inside(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(12, 10)
    def forward(self, images):
        return self.linear(images.flatten(1))

class Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mu", torch.full((1, 3, 1, 1), 0.5))
        self.register_buffer("sigma", torch.full((1, 3, 1, 1), 0.25))
        self.model = Inside()
    def forward(self, images):
        return self.model((images - self.mu) / self.sigma)

model_dicts = {
    Sets.cifar_10: {
        Threats.Linf: {"Both2020": {"model": Inside}, "Only2021": {"model": Normalised}},
        Threats.L2: {"Both2020": {"model": Normalised}},
    },
    Sets.cifar_100: {}, Sets.imagenet: {},
}
"""
SHAPE = (3, 2, 2)


def forget():
    """Take the package out of what is imported; what was there is given back."""
    names = [name for name in sys.modules if name.partition(".")[0] == "robustbench"]
    return {name: sys.modules.pop(name) for name in names}


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """The package, found before any other of its name, and an empty working directory."""
    package = tmp_path / "packages" / "robustbench"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "model_zoo.py").write_text(ZOO)
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.chdir(tmp_path)
    before = forget()
    yield tmp_path
    forget()
    sys.modules.update(before)


def test_a_name_that_stands_twice_is_linf_unless_said(zoo):
    """`L2/NAME` asks for the other one."""
    assert type(build("robustbench:Both2020", 10, SHAPE)).__name__ == "Inside"
    assert type(build("robustbench:L2/Both2020", 10, SHAPE)).__name__ == "Normalised"


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_weights_fit_with_the_usual_prefixes(zoo, prefix):
    """Also inside a normalisation that the file does not hold: the logits are the network's."""
    network = build("robustbench:Only2021", 10, SHAPE).eval()
    state = {
        prefix + name.removeprefix("model."): tensor
        for name, tensor in network.state_dict().items()
        if name not in ("mu", "sigma")
    }
    torch.save({"state_dict": state}, "weights.pt")
    model = load_foreign(Path("weights.pt"), "robustbench:Only2021", "0123456789", SHAPE)
    images = torch.rand(5, *SHAPE)
    torch.testing.assert_close(model(images), network(images))


def test_weights_are_looked_for_where_robustbench_leaves_them(zoo):
    """And nothing is downloaded: what would fetch them is said."""
    with refused(
        MissingError, where="models/cifar10/L2/Both2020.pt", what="Both2020", remedy="--weights"
    ):
        zoo_weights("L2/Both2020", 10)
    path = Path("models/cifar10/L2/Both2020.pt")
    path.parent.mkdir(parents=True)
    path.touch()
    assert zoo_weights("L2/Both2020", 10) == path


REFUSED = [
    ("robustbench:Both2021", 10, {"what": "cifar10", "remedy": "Both2020"}),
    ("robustbench:L2/Only2021", 10, {"what": "cifar10", "remedy": "Only2021"}),
    ("robustbench:Both2020", 100, {"what": "cifar100"}),
    (
        "robustbench:Both2020",
        7,
        {"what": "classes", "expected": "10, 100 or 1000, as its data sets", "found": 7},
    ),
]


@pytest.mark.parametrize(("name", "classes", "fields"), REFUSED)
def test_what_the_zoo_has_not_is_refused(zoo, name, classes, fields):
    """With the names that come close."""
    with refused(ModelError, where=name, **fields):
        build(name, classes, SHAPE)


def test_without_the_package_it_is_said_how_to_get_it(monkeypatch):
    """One line, which names the extra."""
    monkeypatch.setitem(sys.modules, "robustbench", None)
    monkeypatch.setitem(sys.modules, "robustbench.model_zoo", None)
    with refused(MachineError, where="robustbench:Both2020", what="package", remedy="robustbench"):
        build("robustbench:Both2020", 10, SHAPE)


@pytest.mark.filterwarnings("ignore")
def test_networks_of_the_real_zoo_give_their_own_logits(tmp_path):
    """Weights under `state_dict` with DataParallel's prefix, as its files have them."""
    pytest.importorskip("robustbench.model_zoo", exc_type=ImportError)
    architecture = "robustbench:Linf/Rice2020Overfitting"
    network = build(architecture, 10, (3, 32, 32)).eval()
    state = {
        f"module.{name}": tensor
        for name, tensor in network.state_dict().items()
        if name not in ("mu", "sigma")
    }
    torch.save({"state_dict": state}, tmp_path / "rice.pt")
    model = load_foreign(tmp_path / "rice.pt", architecture, "0123456789", (3, 32, 32))
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(model(images), network(images))
