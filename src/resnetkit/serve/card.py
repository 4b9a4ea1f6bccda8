"""What a server tells of its models: classes, network, preprocessing, measured errors, calibration, licence."""

from collections.abc import Iterable
from typing import Any

from resnetkit.display import printable
from resnetkit.infer.predictor import Predictor
from resnetkit.models.spec import text_of
from resnetkit.serve.limits import Limits
from resnetkit.serve.served import ServedModel
from resnetkit.version import __version__


def cards(models: Iterable[ServedModel], limits: Limits) -> dict[str, Any]:
    """Return the answer of GET /models: a card for each model, the default one first, and the limits of requests."""
    return {
        "models": [card(one.name, one.predictor) for one in models],
        "limits": {name: getattr(limits, name) for name in ("max_body", "max_pictures", "max_pixels", "timeout")},
        "version": __version__,
    }


def card(name: str, predictor: Predictor) -> dict[str, Any]:
    """Return the card of a model, as plain values for JSON."""
    header = predictor.header
    data = header.data.get("name")
    return {
        "name": name,
        "fingerprint": predictor.fingerprint,
        "classes": [printable(label) for label in predictor.classes],
        "size": predictor.preprocess.size,
        "multilabel": predictor.answer.multilabel,
        "thresholds": _thresholds(predictor),
        "can_reject": predictor.can_reject,
        "can_explain": predictor.can_explain,
        "network": text_of(header.spec, without=["classes"]),
        "parameters": header.spec.parameters,
        "pictures": f"{predictor.preprocess.geometry}; {'colour' if predictor.preprocess.mode == 'RGB' else 'grey'}",
        "calibration": _calibration(predictor),
        "choice": predictor.choice.to_dict(),
        "computed_by": str(predictor.choice),
        "data": printable(data) if isinstance(data, str) else None,
        "metrics": {k: v for k, v in header.metrics.items() if isinstance(v, int | float | str)},
        "origin": {k: printable(v) for k, v in header.origin.items() if isinstance(v, str)},
    }


def _calibration(predictor: Predictor) -> dict[str, Any] | None:
    if (found := predictor.calibration) is None:
        return None
    about: dict[str, Any] = {"temperature": found.temperature, "pictures": found.pictures}
    return about | ({"reject_below": found.threshold()} if predictor.can_reject else {})


def _thresholds(predictor: Predictor) -> list[float] | None:
    """Return the probability from which each class of a multi-label model is answered; None for another model."""
    found = predictor.answer.thresholds
    return None if found is None else found.tolist()
