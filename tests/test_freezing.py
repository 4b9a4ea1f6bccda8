"""The parts of a network that training does not change."""

import pytest
import torch

from resnetkit.errors import UsageError
from resnetkit.models.freezing import freeze, keep_statistics
from resnetkit.models.resnet import build

POST = ["conv1", "bn1", "layer1", "layer2", "layer3", "fc"]
PRE = ["conv1", "layer1", "layer2", "layer3", "norm", "fc"]


@pytest.mark.parametrize(
    ("model", "parts", "trained"),
    [
        ("resnet20", 0, POST),
        ("resnet20", 1, ["layer1", "layer2", "layer3", "fc"]),
        ("resnet20", 3, ["layer3", "fc"]),
        ("resnet20", 4, ["fc"]),
        ("preact_resnet110", 0, PRE),
        ("preact_resnet110", 1, ["layer1", "layer2", "layer3", "norm", "fc"]),
        ("preact_resnet110", 4, ["norm", "fc"]),  # the last normalisation is trained with the head
    ],
)
def test_frozen_parts_have_no_gradients_and_keep_their_statistics(model, parts, trained):
    net = build(model, depths=(1, 1, 1))
    freeze(net, parts)
    assert list(dict.fromkeys(n.split(".")[0] for n, p in net.named_parameters() if p.requires_grad)) == trained
    before = {name: value.clone() for name, value in net.named_buffers()}
    net(torch.randn(2, 3, 32, 32))
    moved = [name.split(".")[0] for name, value in net.named_buffers() if not torch.equal(value, before[name])]
    assert list(dict.fromkeys(moved)) == [name for name in trained if name not in ("conv1", "fc")]


def test_the_head_is_never_frozen():
    net = build("resnet20", depths=(1, 1, 1))
    with pytest.raises(UsageError, match="`freeze` is 5; this network has 4 parts before its head"):
        freeze(net, 5)
    assert all(p.requires_grad for p in net.parameters())


def test_kept_statistics_normalise_and_do_not_change():
    net = build("resnet20", depths=(1, 1, 1)).train()
    keep_statistics(net)
    before = {name: value.clone() for name, value in net.named_buffers()}
    images = torch.randn(4, 3, 32, 32)
    logits = net(images)
    assert all(torch.equal(value, before[name]) for name, value in net.named_buffers())
    torch.testing.assert_close(logits[:1], net(images[:1]))  # a picture's logits do not depend on the others
    logits.sum().backward()
    assert all(p.grad is not None for p in net.parameters()), "factors and offsets are trained, too"
