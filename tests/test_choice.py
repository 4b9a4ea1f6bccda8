"""The choice of backend and precision: values that are refused, and the result of rules and stated fields."""

import re

import pytest

from resnetkit.errors import UsageError
from resnetkit.infer.choice import SUPPORTED, Choice, available, choose, usable_threads

TUNED = Choice("openvino", "int8", threads=3, streams=2, batch_size=8)
RULES = [TUNED, Choice("openvino", batch_size=32), Choice("torch", batch_size=32)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backend": "tensorrt"}, "`backend` is 'tensorrt'; choose one of torch, inductor, openvino, onnxruntime"),
        ({"backend": "openvino", "precision": "int4"}, "`precision` is 'int4'"),
        ({"backend": "torch", "precision": "int8"}, "torch does not compute in int8 here, but in float32, bfloat16"),
        ({"backend": "torch", "threads": -1}, "`threads` is -1; it must be from 0 to 1024"),
        ({"backend": "torch", "threads": 100_000}, "`threads` is 100000; it must be from 0 to 1024"),
        ({"backend": "torch", "streams": 0}, "`streams` is 0; it must be from 1 to 1024"),
        ({"backend": "torch", "batch_size": 1.5}, "`batch_size` is 1.5"),
    ],
)
def test_what_can_not_be_meant(fields: dict, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        Choice(**fields)


def test_goes_through_a_dictionary() -> None:
    assert Choice.from_dict(TUNED.to_dict() | {"of a later version": 1}) == TUNED
    assert str(TUNED) == "openvino int8, 3 threads, 2 streams, batch 8"
    assert str(Choice("torch", threads=1)) == "torch float32, 1 thread, 1 stream, batch 1"


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({}, RULES),
        ({"backend": "torch"}, [Choice("torch", batch_size=8)]),
        ({"precision": "float32"}, [Choice("openvino", "float32", 3, 2, 8), RULES[2]]),
        ({"precision": "int8"}, [TUNED]),
        (
            {"backend": "openvino", "threads": 1, "batch_size": 4},
            [Choice("openvino", "int8", 1, 2, 4), Choice("openvino", threads=1, batch_size=4)],
        ),
        ({"backend": "onnxruntime", "streams": 2}, [Choice("onnxruntime", streams=2, batch_size=8)]),
    ],
)
def test_what_is_stated_wins(stated: dict, expected: list[Choice]) -> None:
    assert choose(stated, RULES) == expected


@pytest.mark.parametrize("stated", [{"backend": "onnxruntime", "precision": "int8"}, {"precision": "int4"}])
def test_nothing_can_be_meant(stated: dict) -> None:
    with pytest.raises(UsageError, match=r"`precision` is 'int4'|onnxruntime does not compute in int8"):
        choose(stated, RULES)


def test_what_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"torch", "inductor"} <= set(available()) <= set(SUPPORTED)
    assert usable_threads() >= 1
    monkeypatch.setattr("resnetkit.infer.choice.find_spec", lambda name: None)
    assert available() == ()
