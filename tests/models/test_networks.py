"""Parameter names, shapes and first weights are those of RobustBench's model zoo.

Read from robustbench/model_zoo/architectures/{resnet,wide_resnet}.py of the public repository
RobustBench/robustbench: `ResNet18()`; `PreActResNet(PreActBlockV2, [2, 2, 2, 2],
bn_before_fc=True)`; `WideResNet(depth, 10, widen, sub_block1=False)`. With one state dict in
both, logits of four images differed by at most 1.7e-6 (WRN-34-10), 4.8e-7 (WRN-28-10) and
3e-8 (the ResNets), in float32 on a CPU: the mean over 8×8 positions is summed in another order.
"""

import hashlib

import pytest
import torch

from ltd_pipe.models.registry import build

# Number of entries, and SHA-256 over the sorted lines "name shape".
_ZOO = {
    "resnet18": (122, "15e99edfd6f789c7f65c55a24cb181384d2c1e04bad71a635b75ab060594c078"),
    "preactresnet18": (107, "9d9b948d8e2661b5a856af5c93e8162637c8173d60254df9d3a54b175eb317c8"),
    "wrn-16-4": (83, "a04db4aa20fbfd23761611620515de9f70097c053e0ba45a19c361d15d2ceaf7"),
    "wrn-28-10": (155, "733853da8aaa8952f93cc846d83f8ae7c5665e5a202157657c90cf5cddea0dec"),
    "wrn-34-10": (191, "f880a7bf14acacbe73ca15c96f781ef06347a51fc50b2d4b3efea2547c52c96d"),
    "wrn-34-20": (191, "0d4f5bf902dd8de653879a954b1ec36f787fbcbef5ace5d590b7f37483e314f7"),
}


@pytest.mark.parametrize("name", _ZOO)
def test_names_and_shapes_are_the_zoos(name):
    """A renamed or reshaped weight would break the exchange of checkpoints."""
    with torch.device("meta"):
        state = build(name, 10, (3, 32, 32)).state_dict()
    lines = sorted(f"{key} {tuple(tensor.shape)}" for key, tensor in state.items())
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert (len(lines), digest) == _ZOO[name]


@pytest.mark.parametrize(
    ("name", "key", "shape"),
    [
        ("resnet18", "layer2.0.shortcut.1.running_var", (128,)),
        ("resnet18", "linear.weight", (10, 512)),
        ("preactresnet18", "layer4.1.conv2.weight", (512, 512, 3, 3)),
        ("preactresnet18", "bn.weight", (512,)),
        ("wrn-34-10", "block2.layer.0.convShortcut.weight", (320, 160, 1, 1)),
        ("wrn-34-10", "block3.layer.4.bn2.num_batches_tracked", ()),
        ("wrn-34-10", "fc.bias", (10,)),
    ],
)
def test_a_few_names_in_full(name, key, shape):
    """When a digest above differs, these tell where to look."""
    with torch.device("meta"):
        state = build(name, 10, (3, 32, 32)).state_dict()
    assert tuple(state[key].shape) == shape


def test_wide_resnets_start_from_he_weights_over_the_outputs():
    """Standard deviation sqrt(2 / (9 · channels out)), biases 0: not torch's own start."""
    network = build("wrn-10-4", 10, (3, 32, 32))
    weight = network.block2.layer[0].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02)
    assert not network.fc.bias.any()


def test_projections_take_activated_features():
    """A pre-activation block projects relu(bn(x)), and passes on x itself otherwise."""
    block = build("wrn-10-1", 10, (3, 8, 8)).block2.layer[0].eval()
    features = torch.rand(2, 16, 8, 8) - 0.5
    with torch.no_grad():
        block.conv2.weight.zero_()
        active = torch.relu(block.bn1(features))
        assert torch.equal(block(features.clone()), block.convShortcut(active))
