"""How a network is computed: the choice of backend, precision, threads, streams and batch size. No torch here."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from importlib.util import find_spec
from math import ceil
from typing import Any, Literal, TypeAlias, get_args

from resnetkit.errors import UsageError
from resnetkit.machine import read_machine

BackendName: TypeAlias = Literal["torch", "inductor", "openvino", "onnxruntime"]
"""The programs that compute a network. torch runs one operation after another; inductor is torch.compile."""
Precision: TypeAlias = Literal["float32", "bfloat16", "int8"]
Goal: TypeAlias = Literal["latency", "throughput"]
Output: TypeAlias = Literal["logits", "pool", "c5"]
"""logits (n, classes); c5, the last feature map (n, channels, h, w); pool, its mean over h and w (n, channels)."""

SUPPORTED: Mapping[BackendName, tuple[Precision, ...]] = {
    "torch": ("float32", "bfloat16"),
    "inductor": ("float32", "bfloat16"),
    "openvino": ("float32", "bfloat16", "int8"),
    "onnxruntime": ("float32",),
}
"""The precisions of each backend."""
PACKAGES: Mapping[BackendName, str] = {
    "torch": "torch",
    "inductor": "torch",
    "openvino": "openvino",
    "onnxruntime": "onnxruntime",
}
BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")
"""A processor with one of these instructions computes in bfloat16. Others emulate it, or can't compute in it."""
GRAPHS: tuple[BackendName, ...] = ("openvino", "onnxruntime")
"""Backends that compute an exported graph, without torch. The others compute the network of torch itself."""


@dataclass(frozen=True)
class Choice:
    """One way to compute a network on this machine."""

    backend: BackendName
    precision: Precision = "float32"
    threads: int = 0
    """Threads that compute; 0 is the number of cores that the process may use."""
    streams: int = 1
    """Batches that are computed at the same time. They share the threads."""
    batch_size: int = 1
    """Pictures in a batch."""

    def __post_init__(self) -> None:
        """Raise UsageError for a value that no backend accepts."""
        for name, known in (("backend", get_args(BackendName)), ("precision", get_args(Precision))):
            if getattr(self, name) not in known:
                raise UsageError(f"`{name}` is {getattr(self, name)!r}; choose one of {', '.join(known)}")
        # OpenMP ends the process if it is given far more threads.
        for name, least, most in (("threads", 0, 1024), ("streams", 1, 1024), ("batch_size", 1, 1_000_000)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise UsageError(f"`{name}` is {value!r}; it must be from {least} to {most}")
        if self.precision not in SUPPORTED[self.backend]:
            able = [name for name, precisions in SUPPORTED.items() if self.precision in precisions]
            raise UsageError(
                f"{self.backend} does not compute in {self.precision} here, but in "
                f"{', '.join(SUPPORTED[self.backend])}; {', '.join(able)} does"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Choice":
        """Return the Choice with these fields: the inverse of `to_dict`. Unknown fields are ignored.

        Raises UsageError for a value that is not allowed, TypeError without a backend.
        """
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})

    def __str__(self) -> str:
        """Such as `openvino bfloat16, 2 threads, 1 stream, batch 16`."""
        return (
            f"{self.backend} {self.precision}, {_count(self.threads or usable_threads(), 'thread')}, "
            f"{_count(self.streams, 'stream')}, batch {self.batch_size}"
        )


def choose(stated: Mapping[str, Any], rules: Iterable[Choice]) -> list[Choice]:
    """Return the choices to try, the best first; never empty.

    They are `rules`, the best first, with their fields replaced by the fields in `stated`. A rule with another backend
    than the stated one contributes only its batch size. Of several choices with the same backend and precision only the
    first is returned, because the others would fail for the same reason. Raises UsageError if the stated fields do not
    fit together.
    """
    found: dict[tuple[BackendName, Precision], Choice] = {}
    for rule in rules:
        backend = stated.get("backend", rule.backend)
        base = rule if backend == rule.backend else Choice(backend, batch_size=rule.batch_size)
        if stated.get("precision", base.precision) in SUPPORTED[backend]:
            choice = replace(base, **stated)
            found.setdefault((choice.backend, choice.precision), choice)
    return list(found.values()) or [replace(Choice("openvino"), **stated)]


def installed(backend: BackendName) -> bool:
    """Whether the package of `backend` is installed. The package is not imported."""
    return find_spec(PACKAGES[backend]) is not None


def available() -> tuple[BackendName, ...]:
    """Return the backends whose packages are installed. The packages are not imported."""
    return tuple(name for name in PACKAGES if installed(name))


def usable_threads() -> int:
    """Return the number of cores that the process may use, at least 1: the lower of its affinity and its CPU quota."""
    return max(1, ceil(read_machine().usable_cores))


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"
