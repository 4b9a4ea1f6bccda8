"""The fastest way to compute a step is measured once, kept, and chosen again by a resumed run."""

import json
import time

import pytest
import torch
from torch import Tensor

from resnetkit.kernels.library import library, status
from resnetkit.models.resnet import ResNet, build
from resnetkit.models.spec import SPECS, parse_spec
from resnetkit.train.computing import measuring
from resnetkit.train.computing.compute import choose_forward
from resnetkit.train.computing.measuring import fastest, measure, worth_measuring
from resnetkit.train.recipe import Recipe

compiled = pytest.mark.skipif(library() is None, reason=f"the kernels are {status()}")
LONG = Recipe(minutes=3.0)


def small() -> ResNet:
    torch.manual_seed(0)
    return build(parse_spec("resnet20,depths=1-1-1", classes=10)).train()


class Ways:
    """Ways that take a known time; they count their steps."""

    def __init__(self, **seconds: float) -> None:
        self.seconds, self.steps = seconds, dict.fromkeys(seconds, 0)

    def make(self, name: str, net: ResNet):
        def forward(images: Tensor) -> Tensor:
            self.steps[name] += 1
            time.sleep(self.seconds[name])
            return net(images[:1])[[0] * len(images)]

        return forward

    def fastest(self, net: ResNet, **changes) -> str:
        arguments = {"batch_size": 16, "size": 16, "setting": "float32"} | changes
        return fastest(tuple(self.seconds), self.make, net, **arguments)


def test_the_fastest_way_is_chosen_and_kept(own_cache):
    net = small()
    slow_first, quick_first = Ways(one=0.1, other=0.0), Ways(one=0.0, other=0.1)
    assert slow_first.fastest(net) == "other"
    assert set(slow_first.steps.values()) <= set(range(2, 2 + measuring.ROUNDS))
    steps = dict(slow_first.steps)
    assert slow_first.fastest(net) == "other"
    assert slow_first.steps == steps, "the second time, nothing is measured"
    assert quick_first.fastest(net) == "other", "the times are read"
    assert quick_first.fastest(net, setting="bfloat16") == "one"
    assert quick_first.fastest(net, size=24) == "one"
    assert quick_first.fastest(net, batch_size=8) == "one"
    files = list((own_cache / "computing").iterdir())
    assert len(files) == 4
    files[0].write_text("broken")
    for changes in ({}, {"setting": "bfloat16"}, {"size": 24}, {"batch_size": 8}):
        assert quick_first.fastest(net, **changes) in ("one", "other")
    assert all(set(json.loads(path.read_text())) == {"one", "other"} for path in files), "it is written again"


def test_the_first_way_is_kept_if_no_other_is_clearly_faster(own_cache, monkeypatch):
    for times, name in (((1.0, 0.97), "one"), ((1.0, 0.90), "other"), ((1.0, 2.0), "one")):
        monkeypatch.setattr(
            measuring, "measure", lambda *_a, times=times, **_k: dict(zip(("one", "other"), times, strict=True))
        )
        assert Ways(one=0, other=0).fastest(small(), setting=str(times)) == name


def test_measuring_changes_neither_the_network_nor_the_random_numbers():
    net = small()
    before, random = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    found = measure(("one",), Ways(one=0).make, net, pictures=8, size=16)
    assert found["one"] > 0
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(
    ("model", "size", "recipe", "steps", "worth"),
    [
        ("resnet20", 32, Recipe(minutes=1.0), None, True),
        ("resnet20", 32, Recipe(minutes=0.5), None, False),
        ("resnet20", 32, Recipe(iterations=20), 20, False),
        ("resnet20", 32, Recipe(epochs=1.0), 351, True),
        ("resnet50", 224, Recipe(iterations=10, batch_size=32), 10, True),
        ("resnet50", 224, Recipe(iterations=1, batch_size=32, accumulate=10), 1, True),
        ("resnet50", 224, Recipe(iterations=1, batch_size=32), 1, False),
    ],
)
def test_which_runs_are_worth_it(model, size, recipe, steps, worth):
    assert worth_measuring(SPECS[model], recipe, size=size, steps=steps) is worth


@compiled
@pytest.mark.parametrize("quicker", ["kernels", "eager"])
def test_what_was_measured_is_on(quicker, own_cache, monkeypatch):
    asked = []

    def measured(ways, *_args, **sizes):
        asked.append(sizes)
        return {way: 1.0 if way == quicker else 2.0 for way in ways}

    monkeypatch.setattr(measuring, "measure", measured)
    cpu, net = torch.device("cpu"), small()
    assert choose_forward(net, LONG, cpu, "float32", size=32)[1] == quicker
    assert asked == [{"pictures": 108, "size": 32}], "8e9 operations, of 74e6 for a picture"
    other = "eager" if quicker == "kernels" else "kernels"
    assert choose_forward(net, LONG, cpu, "float32", size=32, before=other)[1] == other, "a resumed run goes on"
    assert choose_forward(net, LONG.replace(compile="off"), cpu, "float32", size=32)[1] == "eager"
    assert choose_forward(net, LONG.replace(compile="kernels"), cpu, "float32", size=32)[1] == "kernels"
    assert choose_forward(net, Recipe(iterations=1), cpu, "float32", size=32, steps=1)[1] == "kernels"
    assert len(asked) == 1


@compiled
def test_a_real_measurement(own_cache):
    forward, name = choose_forward(small(), LONG, torch.device("cpu"), "float32", size=32)
    (path,) = (own_cache / "computing").iterdir()
    seconds = json.loads(path.read_text())
    assert set(seconds) == {"kernels", "eager"}
    assert all(0 < value < 60 for value in seconds.values())
    assert name in seconds
    assert forward(torch.randn(4, 3, 32, 32)).shape == (4, 10)
