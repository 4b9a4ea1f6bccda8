"""What `evaluate` says about the data: likely label errors, and whether more pictures would help."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from resnetkit.commands.parser import Parser
from resnetkit.commands.printing import on_one_line, print_table
from resnetkit.display import count
from resnetkit.errors import UsageError
from resnetkit.progress import bar

if TYPE_CHECKING:
    from resnetkit.data.parts import Part
    from resnetkit.data.samples import Dataset, Samples
    from resnetkit.finetune.features import Features
    from resnetkit.finetune.labels import LabelErrors
    from resnetkit.finetune.learning_curve import LearningCurve
    from resnetkit.modelfile import Model

MOST_ERRORS = 20
"""Largest number of likely label errors that are printed."""
MOST_CLASSES = 10
"""Largest number of classes whose learning curves are printed."""


def add_flags(parser: Parser) -> None:
    """Add the flags of `evaluate` for questions about the data."""
    parser.add_argument(
        "--label_errors",
        action="store_true",
        help="also name the pictures whose labels are likely wrong, among all pictures or those of --split; each is "
        "judged by a head that was not fitted to it",
    )
    parser.add_argument(
        "--review",
        type=str,
        metavar="FILE",
        help="also write the likely label errors as an HTML page, on which they can be corrected for --corrections",
    )
    parser.add_argument(
        "--learning_curve",
        action="store_true",
        help="also say how much more pictures would help: errors of heads on shares of the pictures, extrapolated",
    )
    parser.add_argument(
        "--features_of",
        type=str,
        metavar="OTHER",
        help="network whose features are used for these questions; unset: MODEL. If MODEL learnt from the pictures, it "
        "may know wrong labels by heart; the weights that its training began with do not",
    )
    parser.add_argument("--cache_gb", type=float, default=4.0, help="largest size of the cached features, in GB")


@dataclass(frozen=True)
class Answers:
    """The answers to the questions that were asked."""

    samples: "Samples"
    errors: "LabelErrors | None"
    curve: "LearningCurve | None"
    notes: tuple[str, ...]
    """Facts that limit the answers, one phrase each."""

    @property
    def document(self) -> dict[str, Any]:
        """The answers for JSON."""
        document: dict[str, Any] = {}
        if self.errors is not None:
            document["label_errors"] = errors_document(self.errors, self.samples)
        if self.curve is not None:
            document["learning_curve"] = self.curve.to_dict()
        return document

    @property
    def sections(self) -> dict[str, str]:
        """The answers as parts of the report: heading -> HTML."""
        from resnetkit.finetune.sections import curve_section, errors_section

        sections: dict[str, str] = {}
        if self.errors is not None:
            sections["Are the labels right?"] = errors_section(self.errors, self.samples)
        if self.curve is not None:
            sections["Would more pictures help?"] = curve_section(self.curve)
        return sections

    def print(self) -> None:
        """Print the answers for people."""
        if self.errors is not None:
            print_errors(self.errors, self.samples)
        if self.curve is not None:
            print_curve(self.curve)


def check_flags(given: Mapping[str, Any]) -> None:
    """Raise UsageError for flags without use and for values out of range."""
    asked = given["label_errors"] or given["learning_curve"] or given["review"] is not None
    if given["features_of"] is not None and not asked:
        raise UsageError("--features-of needs --label-errors, --review or --learning-curve; give one of them")
    if given["cache_gb"] <= 0:
        raise UsageError(f"--cache-gb is {given['cache_gb']:g}; it must be over 0")


def answer(model: "Model", dataset: "Dataset", part: "Part", given: Mapping[str, Any]) -> Answers | None:
    """Answer the questions about the data that the flags ask; None if they ask none.

    The pictures are those of --split if it was given, else all: each of them is judged by heads that were not fitted to
    it, so those that trained the model are among them.
    """
    asked = given["label_errors"] or given["review"] is not None
    if not asked and not given["learning_curve"]:
        return None
    from resnetkit.data.corrections import kept_labels
    from resnetkit.modelfile import load

    samples = part.samples if given["split"] != "auto" else dataset.part("all")[1]
    samples = samples.as_classes(model.header.classes)
    trunk = load(given["features_of"]) if given["features_of"] is not None else model
    features = features_of(trunk, samples, workers=given["workers"], strict=given["strict"], cache_gb=given["cache_gb"])
    notes: list[str] = []
    if known := learnt_from(trunk, samples):
        notes.append(
            f"the network, and not only its head, was trained on {known:,} of these pictures: it may know wrong labels "
            "by heart, and its learning curve may be too good. Give the weights that its training began with: "
            "--features-of OTHER"
        )
    errors = find_errors(features) if asked else None
    if errors is not None and given["corrections"]:
        stated = kept_labels(dataset, given["corrections"])
        errors = replace(errors, errors=tuple(one for one in errors.errors if one.path not in stated))
    curve = find_curve(features) if given["learning_curve"] else None
    return Answers(samples, errors, curve, tuple(notes))


def features_of(
    model: "Model", samples: "Samples", *, workers: int = 2, strict: bool = False, cache_gb: float = 4.0
) -> "Features":
    """Return the features of pictures, computed once and kept on disk."""
    from resnetkit.finetune.features import FeatureCache

    with bar("computing features", len(samples)) as advance:
        return FeatureCache(model, workers=workers, cache_gb=cache_gb).compute(samples, strict=strict, advance=advance)


def find_errors(features: "Features") -> "LabelErrors":
    """Find the likely label errors."""
    from resnetkit.finetune.labels import label_errors
    from resnetkit.finetune.out_of_sample import FOLDS

    with bar("judging labels", FOLDS, "folds") as advance:
        return label_errors(features, advance=advance)


def find_curve(features: "Features") -> "LearningCurve":
    """Measure the learning curve."""
    from resnetkit.finetune.learning_curve import DRAWS, SHARES, learning_curve
    from resnetkit.finetune.out_of_sample import FOLDS

    with bar("measuring the learning curve", DRAWS * FOLDS * len(SHARES), "folds") as advance:
        return learning_curve(features.pool(), features.labels, classes=features.samples.classes, advance=advance)


def learnt_from(model: "Model", samples: "Samples") -> int:
    """Return how many of the pictures trained the network below its head."""
    from resnetkit.data.parts import recognise

    recipe = model.header.recipe
    frozen = recipe.get("freeze", 0)
    if "head" in (recipe.get("rung"), model.header.metrics.get("rung")) or (
        isinstance(frozen, int) and frozen > len(model.header.spec.depths)
    ):
        return 0
    return int(recognise(samples, model.header.data).mask.sum())


def errors_document(found: "LabelErrors", samples: "Samples") -> list[dict[str, Any]]:
    """Return the likely label errors for JSON."""
    return [
        {
            "path": samples.place(error.index),
            "label": error.label,
            "suggested": error.suggested,
            "score": round(error.score, 6),
        }
        for error in found.errors
    ]


def print_errors(found: "LabelErrors", samples: "Samples") -> None:
    """Print the worst label errors as a table."""
    print(f"\nlikely label errors: {len(found.errors):,} of {found.pictures:,} pictures, worst first")
    shown = errors_document(found, samples)[:MOST_ERRORS]
    if shown:
        rows = [(one["path"], one["label"], one["suggested"], f"{one['score']:.3f}") for one in shown]
        print_table(("path", "label", "suggested", "score"), rows)
    if more := len(found.errors) - len(shown):
        print(f"and {more:,} more; --review FILE shows them as pictures, --json names them")
    if found.too_few:
        named = ", ".join(found.too_few[:MOST_CLASSES])
        print(on_one_line(f"not judged, too few pictures: {count(len(found.too_few), 'class')}: {named}"))


def print_curve(curve: "LearningCurve") -> None:
    """Print the learning curve, and what more pictures would do for the classes that gain most."""
    print("\nwould more pictures help: errors of heads on the features, out of sample")
    rows = [("measured", point) for point in curve.measured] + [("extrapolated", point) for point in curve.extrapolated]
    print_table(
        ("", "pictures", "top-1 error", "95 % interval"),
        [
            (kind, f"{point.pictures:,}", f"{point.top1_error_percent:.2f} %", _interval(point.interval_percent))
            for kind, point in rows
        ],
    )
    saved, low, high = curve.gain_percent
    print(f"twice the pictures save {saved:.2f} points of error ({low:.2f} to {high:.2f})")
    ordered = sorted(
        curve.per_class.items(),
        key=lambda one: one[1].doubled.top1_error_percent - one[1].now.top1_error_percent,
    )
    print()
    print_table(
        ("class", "pictures", "error now", "with twice as many", "95 % interval"),
        [
            (
                name,
                f"{one.pictures:,}",
                f"{one.now.top1_error_percent:.2f} %",
                f"{one.doubled.top1_error_percent:.2f} %",
                _interval(one.doubled.interval_percent),
            )
            for name, one in ordered[:MOST_CLASSES]
        ],
    )
    if (more := len(ordered) - MOST_CLASSES) > 0:
        print(f"and {count(more, 'class')} that would gain less; --json names them")


def _interval(ends: tuple[float, float]) -> str:
    return f"{ends[0]:.2f} to {ends[1]:.2f} %"
