"""Tensors compared with a network: missing tensors, additional tensors, tensors of another shape."""

import pytest
import torch

from resnetkit.errors import ModelFileError
from resnetkit.models.empty import empty_network
from resnetkit.models.resnet import build
from resnetkit.models.spec import parse_spec
from resnetkit.models.tensors import compare, fill, without_counters

EXPECTED = {"a": torch.zeros(2, 3), "b": torch.zeros(4), "c.num_batches_tracked": torch.zeros(())}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"a": None}, "1 of 3 tensors differ, first a: missing"),
        ({"b": torch.zeros(5), "d": torch.zeros(1)}, "2 of 4 tensors differ, first b: of shape (5,), not (4,)"),
        ({"d": torch.zeros(1)}, "1 of 4 tensors differ, first d: not in the network"),
        ({"a": 3}, "1 of 3 tensors differ, first a: of shape (), not (2, 3)"),
        ({"c.num_batches_tracked": None}, "1 of 3 tensors differ, first c.num_batches_tracked: missing"),
    ],
)
def test_a_misfit_in_words(changes: dict, words: str) -> None:
    given = {name: value for name, value in (EXPECTED | changes).items() if value is not None}
    misfit = compare(EXPECTED, given)
    assert misfit
    assert str(misfit) == words


def test_a_misfit_by_kind() -> None:
    misfit = compare(EXPECTED, {"b": torch.zeros(5), "d": torch.zeros(1)})
    assert (misfit.missing, misfit.unexpected, misfit.misshaped) == (["a", "c.num_batches_tracked"], ["d"], ["b"])


def test_what_fits_is_no_misfit() -> None:
    assert not compare(EXPECTED, dict(reversed(EXPECTED.items())))
    assert str(compare(EXPECTED, EXPECTED)) == ""
    assert not compare(without_counters(EXPECTED), {"a": torch.ones(2, 3), "b": torch.ones(4)})


def test_an_empty_network_takes_the_tensors_of_a_real_one() -> None:
    net = build("resnet18,depths=1-1-1-1,blur=3", classes=3).eval()
    empty = empty_network(net.spec)
    assert next(empty.parameters()).is_meta
    assert not compare(empty.state_dict(), net.state_dict())
    fill(empty, net.state_dict(), source="x")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(empty.eval()(images), net(images))


def test_what_no_network_can_hold_is_not_filled_in() -> None:
    net = empty_network(parse_spec("resnet20", depths=(1, 1, 1)))
    tensors = build(net.spec).state_dict() | {"bn1.running_var": torch.full((16,), -1.0)}
    with pytest.raises(ModelFileError, match=r"^x: bn1\.running_var contains variances below 0; get weights that"):
        fill(net, tensors, source="x")
