"""Results of tuning as tests write them to tune.json."""

from dataclasses import asdict

from resnetkit.infer.choice import Choice
from resnetkit.infer.tuning.record import Tuned
from resnetkit.machine import read_machine

CHOICE = Choice("onnxruntime", threads=1, batch_size=4)


def tuned(fingerprint: str, *, choice: Choice = CHOICE, **machine: object) -> Tuned:
    """Return the result for latency on this machine; `machine` replaces some of its fields."""
    here = asdict(read_machine())
    return Tuned(
        fingerprint,
        here | {"instructions": list(here["instructions"])} | machine,
        {"latency": {"choice": choice.to_dict()}},
    )
