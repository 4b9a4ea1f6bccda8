"""The receipt of a verification: whether all ways to predict agree."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from resnetkit.errors import DataError
from resnetkit.serve.client import Client


class Compared(Protocol):
    """How one way differs from another."""

    @property
    def agrees(self) -> bool:
        """Whether it does not, but for rounding."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, and whether they agree, as plain values for JSON."""


W = TypeVar("W", bound=Compared)
S = TypeVar("S", bound=Compared)


@dataclass(frozen=True)
class Receipt(Generic[W, S]):
    """What was compared, and how it differs."""

    pictures: int
    of: str
    """Where the pictures come from, for people."""
    ways: Mapping[str, W]
    """Each way beside training's evaluation."""
    left_out: Mapping[str, str]
    """Ways that could not be tried, with the reasons."""
    served: S | None = None
    """The server's answers beside `predict`; None without a server, or where `predict` can't use the same backend."""

    @property
    def agrees(self) -> bool:
        """Whether all ways agree."""
        return all(way.agrees for way in self.ways.values()) and (self.served is None or self.served.agrees)

    def to_dict(self) -> dict[str, Any]:
        """Return the receipt as plain values for JSON."""
        return {
            "pictures": self.pictures,
            "of": self.of,
            "ways": {name: way.to_dict() for name, way in self.ways.items()},
            "left_out": dict(self.left_out),
            "served": self.served and self.served.to_dict(),
            "agrees": self.agrees,
        }


def rounded(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields with three significant digits of each float."""
    return {name: float(f"{value:.3g}") if isinstance(value, float) else value for name, value in fields.items()}


def find_card(client: Client, fingerprint: str, kind: str) -> tuple[Mapping[str, Any], bool]:
    """Return the card of the model with this fingerprint, and True; else that of the first of this kind, and False.

    Raises DataError if the server has no model of this kind: classifier or detector.
    """
    cards = client.models()
    for card in cards:
        if card.get("fingerprint") == fingerprint:
            return card, True
    for card in cards:
        if card.get("kind", "classifier") == kind:
            return card, False
    raise DataError(f"{client.url} serves no {kind}, but {', '.join(str(card.get('name')) for card in cards)}")
