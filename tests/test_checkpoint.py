"""The content of a saved training state, and what is restored from it."""

from pathlib import Path

import pytest
import torch

from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.modelfile import Header
from resnetkit.models.resnet import ResNet, build
from resnetkit.train.checkpoint import Position, State, load_state, save_state
from resnetkit.train.pace import Plan


def saved(path: Path, net: ResNet) -> tuple[State, torch.optim.Optimizer]:
    """Return the state of `net` after saving and loading it."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    header = Header(net.spec, Preprocess(size=32), ("cat", "dog"))
    save_state(path, Position(Plan.of_length(2)), header=header, net=net, optimizer=optimizer, ema=None, best=None)
    return load_state(path), optimizer


@pytest.mark.parametrize("older", [False, True])
def test_random_numbers_go_on_as_they_would_have(older: bool, tmp_path: Path) -> None:
    """Also from states of earlier versions, which contain no random state of a GPU."""
    net = build("resnet20,depths=1-1-1", classes=2)
    torch.manual_seed(3)
    torch.rand(5)
    state, optimizer = saved(tmp_path / "state.pt", net)
    expected = torch.rand(5)
    assert state.tensors["device_rng"] is None
    if older:
        del state.tensors["device_rng"]
    torch.manual_seed(0)
    state.restore(net=net, optimizer=optimizer, ema=None)
    assert torch.equal(torch.rand(5), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_random_numbers_of_a_gpu_go_on_as_they_would_have(tmp_path: Path) -> None:
    net = build("resnet20,depths=1-1-1", classes=2).to("cuda")
    torch.manual_seed(3)
    torch.rand(5, device="cuda")
    state, optimizer = saved(tmp_path / "state.pt", net)
    expected = torch.rand(5, device="cuda")
    torch.manual_seed(0)
    state.restore(net=net, optimizer=optimizer, ema=None)
    assert torch.equal(torch.rand(5, device="cuda"), expected)
    # Elsewhere, what a GPU had is of no use, and does no harm.
    there = build("resnet20,depths=1-1-1", classes=2)
    state.restore(net=there, optimizer=torch.optim.SGD(there.parameters(), lr=0.1), ema=None)
