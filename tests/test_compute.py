"""How a training step is computed; and computing blocks again in the backward pass changes no number."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from resnetkit.errors import UsageError
from resnetkit.kernels.library import library, status
from resnetkit.models.freezing import freeze
from resnetkit.models.resnet import ResNet, build
from resnetkit.models.spec import parse_spec
from resnetkit.train.computing import compute
from resnetkit.train.computing.compute import PAYS_FROM_MINUTES, PAYS_FROM_STEPS, choose_forward, refuse_single_values
from resnetkit.train.computing.fused import FusedNet
from resnetkit.train.recipe import Recipe

compiled = pytest.mark.skipif(library() is None, reason=f"the kernels are {status()}")
CPU = torch.device("cpu")
SERVED, UNSERVED = "resnet20,depths=1-1-1", "resnet20,depths=1-1-1,order=pre"
LONG = Recipe(iterations=PAYS_FROM_STEPS)
BATCHES = 400  # in an epoch


def network(name: str) -> ResNet:
    torch.manual_seed(0)
    return build(parse_spec(name, classes=10)).to(memory_format=torch.channels_last).train()


def chosen(
    name: str,
    recipe: Recipe,
    *,
    device: torch.device = CPU,
    recompute: bool = False,
    precision: str = "float32",
) -> str:
    steps = recipe.total_steps(BATCHES)
    return choose_forward(network(name), recipe, device, precision, size=32, recompute=recompute, steps=steps)[1]


@pytest.fixture
def untouched_compile(monkeypatch) -> list[object]:
    """The arguments of torch.compile, which is replaced and compiles nothing."""
    asked: list[object] = []

    def note(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        asked.append(function)
        return function

    monkeypatch.setattr(torch, "compile", note)
    monkeypatch.setattr("resnetkit.train.computing.compute.find_compiler", lambda: ["g++"])
    return asked


@compiled
@pytest.mark.parametrize("recipe", [Recipe(), LONG, Recipe(compile="kernels")])
def test_kernels_where_they_serve(recipe, untouched_compile):
    assert chosen(SERVED, recipe) == "kernels"
    forward, _ = choose_forward(network(SERVED), recipe, CPU, "bfloat16", size=32, recompute=True)
    assert isinstance(forward, FusedNet)
    assert forward.dtype == torch.bfloat16
    assert forward.blocks[0].residual.recompute
    assert not untouched_compile


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        (Recipe(), "eager"),
        (Recipe(compile="off"), "eager"),
        (replace(LONG, compile="off"), "eager"),
        (Recipe(iterations=PAYS_FROM_STEPS - 1), "eager"),
        (LONG, "torch.compile"),
        (Recipe(epochs=PAYS_FROM_STEPS / BATCHES), "torch.compile"),
        (Recipe(epochs=PAYS_FROM_STEPS / BATCHES - 1), "eager"),
        (Recipe(epochs=PAYS_FROM_STEPS / BATCHES, accumulate=2), "eager"),
        (Recipe(minutes=1.0), "eager"),
        (Recipe(minutes=PAYS_FROM_MINUTES), "torch.compile"),
        (Recipe(minutes=PAYS_FROM_MINUTES - 1), "eager"),
        (Recipe(compile="inductor"), "torch.compile"),
    ],
)
def test_other_networks_are_compiled_where_it_pays(recipe, name, untouched_compile):
    assert chosen(UNSERVED, recipe) == name
    assert len(untouched_compile) == (name == "torch.compile")


def test_a_choice_holds_for_networks_that_the_kernels_serve(untouched_compile):
    assert chosen(SERVED, Recipe(compile="off")) == "eager"
    assert chosen(SERVED, Recipe(compile="inductor")) == "torch.compile"


def test_nothing_is_compiled_without_a_compiler_unless_asked(monkeypatch, untouched_compile):
    monkeypatch.setattr("resnetkit.train.computing.compute.find_compiler", lambda: None)
    assert chosen(UNSERVED, LONG) == "eager"
    assert chosen(UNSERVED, Recipe(compile="inductor")) == "torch.compile"


@pytest.mark.parametrize(
    ("name", "size", "batch_size", "frozen", "refused"),
    [
        ("resnet18,depths=1-1-1-1,width=16", 32, 1, 0, True),  # the last maps have one pixel
        ("resnet18,depths=1-1-1-1,width=16", 33, 1, 0, False),
        ("resnet18,depths=1-1-1-1,width=16", 32, 2, 0, False),
        ("resnet18,depths=1-1-1-1,width=16", 32, 1, 5, False),  # running statistics
        ("resnet18,depths=1-1-1-1,width=32,norm=group", 32, 1, 0, False),
        (UNSERVED, 4, 1, 0, True),
    ],
)
def test_batches_of_a_single_value_are_refused(name, size, batch_size, frozen, refused):
    """The kernels would compute it without an effect; torch raises a ValueError at the first step."""
    net = network(name)
    freeze(net, frozen)
    if refused:
        with pytest.raises(
            UsageError, match=rf"^one picture of {size} × {size} in a batch.*give a larger `batch_size`"
        ):
            refuse_single_values(net, batch_size=batch_size, size=size)
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            net(torch.randn(batch_size, 3, size, size))
    else:
        refuse_single_values(net, batch_size=batch_size, size=size)
        assert net(torch.randn(batch_size, 3, size, size)).isfinite().all()


def test_recomputing_is_not_compiled(untouched_compile):
    assert chosen(UNSERVED, LONG, recompute=True) == "eager"
    with pytest.raises(UsageError, match=r"`compile` inductor can't compute maps again.* `batch_size` than 128$"):
        chosen(UNSERVED, Recipe(compile="inductor"), recompute=True)
    assert not untouched_compile


def test_kept_statistics_are_for_the_kernels_in_float32_with_all_maps(untouched_compile):
    recipe = Recipe(iterations=1, keep_statistics=True)
    assert chosen("resnet20", recipe.replace(compile="kernels")) == "kernels"
    assert chosen("resnet20", recipe, precision="bfloat16") == chosen("resnet20", recipe, recompute=True) == "eager"
    with pytest.raises(UsageError, match="its batch norm keeps its statistics"):
        chosen("resnet20", recipe.replace(compile="kernels"), recompute=True)


def test_kernels_that_cannot_serve_are_refused_with_the_reason():
    with pytest.raises(
        UsageError, match=r"^`compile` kernels does not support this network: .+\. Give `compile` auto$"
    ):
        chosen(UNSERVED, Recipe(compile="kernels"))
    with pytest.raises(UsageError, match="does not support this network: it is not on a CPU"):
        chosen(SERVED, Recipe(compile="kernels"), device=torch.device("cuda"))


def test_the_precision_is_that_of_the_maps():
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        net, seen = network(UNSERVED), []
        net.layer1.register_forward_hook(lambda _module, _inputs, out, seen=seen: seen.append(out.dtype))
        forward, _ = choose_forward(net, Recipe(compile="off"), CPU, precision, size=32)
        forward(torch.randn(2, 3, 16, 16))
        assert seen == [dtype]


def two_steps(net: ResNet, forward: Callable[[Tensor], Tensor]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Return losses and gradients of two steps of gradient descent, and the network's state after them."""
    found: list[Tensor] = []
    torch.manual_seed(1)
    for _ in range(2):
        loss = F.cross_entropy(forward(torch.randn(6, net.spec.in_channels, 32, 32)).float(), torch.arange(6))
        net.zero_grad()
        loss.backward()
        parameters = [p for p in net.parameters() if p.grad is not None]
        found += [loss.detach(), *(p.grad.clone() for p in parameters)]
        with torch.no_grad():
            for p in parameters:
                p -= 0.01 * p.grad
    return found, net.state_dict()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("name", "frozen"),
    [
        ("resnet20,depths=2-1-1", 0),
        ("resnet20,depths=2-1-1", 2),
        ("plain20,depths=1-1-1", 0),
        ("preact_resnet18,depths=1-1-1-1,width=16", 0),
        ("resnet20,depths=2-2-1,drop_path=0.5", 0),
        ("resnet50d,depths=1-1-1-1,width=16", 0),
        ("seresnet50,depths=1-1-1-1,width=16", 0),
        ("resnet18,depths=1-1-1-1,width=32,norm=group", 0),
    ],
)
def test_computing_blocks_again_gives_the_same_bits(name, frozen, precision):
    """Losses, gradients, weights and running statistics with their counters, random depth included."""
    net = network(name)
    freeze(net, frozen)
    recipe = Recipe(compile="off")
    runs = []
    for recompute in (False, True):
        twin = copy.deepcopy(net)
        runs.append(two_steps(twin, choose_forward(twin, recipe, CPU, precision, size=32, recompute=recompute)[0]))
    (kept, kept_state), (again, again_state) = runs
    assert len(kept) == len(again)
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))
    assert all(torch.equal(kept_state[key], again_state[key]) for key in kept_state)
    counters = {int(value) for key, value in again_state.items() if key.endswith("num_batches_tracked")}
    assert counters == (set() if "group" in name else {0, 2} if frozen else {2})
    assert all(norm.momentum == 0.1 for norm in twin.modules() if isinstance(norm, torch.nn.BatchNorm2d))


@pytest.mark.slow
@compiled
def test_compiled_steps_do_not_depend_on_the_sizes_before():
    """A run that is resumed at full size has not seen the small pictures, and must give the same bits."""

    def gradients(sizes: list[int]) -> list[Tensor]:
        torch._dynamo.reset()
        net = network(UNSERVED)
        forward, name = choose_forward(net, Recipe(compile="inductor"), CPU, "bfloat16", size=32)
        assert name == "torch.compile"
        for size in sizes:
            net.load_state_dict(network(UNSERVED).state_dict())
            net.zero_grad()
            images = torch.randn(16, 3, size, size, generator=torch.Generator().manual_seed(1))
            forward(images.to(memory_format=torch.channels_last)).float().logsumexp(dim=1).sum().backward()
        return [p.grad for p in net.parameters() if p.grad is not None]

    for small_first, alone in zip(gradients([24, 32]), gradients([32]), strict=True):
        assert torch.equal(small_first, alone)


@compiled
def test_ways_are_measured_apart_for_kept_statistics(monkeypatch):
    settings = []
    monkeypatch.setattr(compute, "fastest", lambda *ways, setting, **given: settings.append(setting) or "eager")
    monkeypatch.setattr(compute, "worth_measuring", lambda *given, **more: True)
    for kept in (False, True):
        chosen("resnet20", Recipe(iterations=1, keep_statistics=kept))
    assert settings == ["float32", "float32, kept statistics"]
