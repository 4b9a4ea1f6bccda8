"""The choice of how a network is computed: backend, precision, threads, streams and batch. No torch here."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from importlib.util import find_spec
from math import ceil
from typing import Any, Literal, TypeAlias, get_args

from resnetkit.errors import UsageError
from resnetkit.machine import read_machine

BackendName: TypeAlias = Literal["torch", "inductor", "openvino", "onnxruntime"]
"""torch runs one operation at a time; inductor is torch.compile with frozen weights."""
Precision: TypeAlias = Literal["float32", "bfloat16", "int8"]
Goal: TypeAlias = Literal["latency", "throughput"]
Output: TypeAlias = Literal["logits", "pool", "c5"]
"""Logits (n, classes), the last map averaged over its places (n, channels), or that map itself (n, channels, h, w)."""

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
"""Instructions of a processor that computes in bfloat16. Others emulate it, or can't do it at all."""
GRAPHS: tuple[BackendName, ...] = ("openvino", "onnxruntime")
"""Backends that compute an exported graph, without torch; the others compute the network itself."""


@dataclass(frozen=True)
class Choice:
    """One way to compute a network on this machine."""

    backend: BackendName
    precision: Precision = "float32"
    threads: int = 0
    """Threads that compute; 0 is as many as the process may use."""
    streams: int = 1
    """Batches that are computed at the same time and share the threads."""
    batch_size: int = 1
    """Pictures that go through the network together."""

    def __post_init__(self) -> None:
        """Raise UsageError for a value that no backend takes."""
        for name, known in (("backend", get_args(BackendName)), ("precision", get_args(Precision))):
            if getattr(self, name) not in known:
                raise UsageError(f"`{name}` is {getattr(self, name)!r}; choose one of {', '.join(known)}")
        # Far more threads make OpenMP end the process.
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
        """The fields, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Choice":
        """The inverse of `to_dict`; fields of a later version are ignored. Raises UsageError, TypeError."""
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})

    def __str__(self) -> str:
        """Such as `openvino bfloat16, 2 threads, 1 stream, batch 16`."""
        return (
            f"{self.backend} {self.precision}, {_count(self.threads or usable_threads(), 'thread')}, "
            f"{_count(self.streams, 'stream')}, batch {self.batch_size}"
        )


def choose(stated: Mapping[str, Any], rules: Iterable[Choice]) -> list[Choice]:
    """Return the choices that `rules` (the best first) and the fields in `stated` allow, the best first; never empty.

    Fields in `stated` replace those of a rule. A rule for another backend than the stated one gives its batch size
    only. Of several choices with the same backend and precision the first is returned, since where one fails the others
    would. Raises UsageError where the stated fields do not fit together.
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
    """Whether the package of `backend` is installed. It is not imported."""
    return find_spec(PACKAGES[backend]) is not None


def available() -> tuple[BackendName, ...]:
    """The backends whose packages are installed. None is imported."""
    return tuple(name for name in PACKAGES if installed(name))


def usable_threads() -> int:
    """The number of cores that the process may use, by its affinity or its container's quota if that is less."""
    return max(1, ceil(read_machine().usable_cores))


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"
