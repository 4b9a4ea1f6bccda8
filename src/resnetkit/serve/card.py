"""What a server tells of its models: what is the same for every kind; and its limits."""

from collections.abc import Iterable
from typing import Any

from resnetkit.display import printable
from resnetkit.infer.choice import Choice
from resnetkit.modelfile import Header
from resnetkit.models.spec import text_of
from resnetkit.serve.limits import Limits
from resnetkit.serve.served import ServedModel
from resnetkit.version import __version__


def cards(models: Iterable[ServedModel], limits: Limits) -> dict[str, Any]:
    """Return the answer of GET /models: a card for each model, the default one first, and the limits of requests."""
    return {
        "models": [one.opened.card(one.name) for one in models],
        "limits": {name: getattr(limits, name) for name in ("max_body", "max_pictures", "max_pixels", "timeout")},
        "version": __version__,
    }


def card_of(name: str, header: Header, *, choice: Choice, fingerprint: str | None) -> dict[str, Any]:
    """Return the part of a card that every kind of model has, as plain values for JSON."""
    data = header.data.get("name")
    return {
        "name": name,
        "kind": header.kind,
        "fingerprint": fingerprint,
        "classes": [printable(label) for label in header.classes],
        "size": header.preprocess.size,
        "network": text_of(header.spec, without=["classes"]),
        "choice": choice.to_dict(),
        "computed_by": str(choice),
        "data": printable(data) if isinstance(data, str) else None,
        "metrics": {k: v for k, v in header.metrics.items() if isinstance(v, int | float | str)},
        "origin": {k: printable(v) for k, v in header.origin.items() if isinstance(v, str)},
    }
