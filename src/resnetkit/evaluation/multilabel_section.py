"""The part of a report on an evaluation with several labels for a picture, in place of errors and confusions."""

from collections.abc import Mapping, Sequence
from html import escape

from resnetkit.display import table
from resnetkit.evaluation.drawing import reliability_diagram
from resnetkit.evaluation.mistakes import Mistake, mistakes_section
from resnetkit.evaluation.multilabel import MultiLabelEvaluation
from resnetkit.page import scrolled

MOST_FILES = 200
"""Largest number of unreadable files that are listed."""
MOST_PAIRS = 30
"""Largest number of pairs of classes that are listed."""


def labels_section(
    evaluated: MultiLabelEvaluation,
    *,
    on: str,
    chose: bool = False,
    compared: Mapping[str, str] | None = None,
    mistakes: Sequence[Mistake] = (),
) -> str:
    """Return the HTML of an evaluation. `on` names its pictures, such as "validation pictures".

    `chose` says that the thresholds were chosen on these pictures. `compared` are further results, as name and text.
    `mistakes` are shown with their pictures; see `worst_labels`.
    """
    parts = [f"<h2>On {evaluated.images:,} {escape(on)}</h2>"]
    if evaluated.part:
        parts.append(f"<p>{escape(f'{evaluated.part}: {evaluated.why}')}.</p>")
    parts += [f'<p class="note">{escape(note[0].upper() + note[1:])}.</p>' for note in evaluated.notes]
    parts += [_figures(evaluated), *(_compared(compared) if compared else ())]
    parts += mistakes_section(mistakes, "the class in bold type")
    parts += ["<h2>Classes</h2>", _classes(evaluated, chose=chose)]
    parts += _mixed_up(evaluated)
    parts += _calibration(evaluated)
    parts += _unreadable(evaluated)
    return "\n".join(parts)


def _figures(evaluated: MultiLabelEvaluation) -> str:
    low, high = evaluated.interval_percent
    figures = [
        (f"{evaluated.map_percent:.2f} %", "mean average precision", f"{low:.1f} to {high:.1f} %"),
        (f"{evaluated.macro_f1_percent:.2f} %", "macro F1", "mean of the classes"),
        (f"{evaluated.micro_f1_percent:.2f} %", "micro F1", "over all labels"),
        (f"{evaluated.exact_match_percent:.2f} %", "exact match", "all labels of a picture right"),
    ]
    cells = "".join(f"<div><b>{number}</b>{name}<small>{more}</small></div>" for number, name, more in figures)
    return (
        f'<div class="figures">{cells}</div><p class="faint">The error by which models are chosen is 100 % minus the '
        f"mean average precision: {evaluated.error_percent:.2f} %. Its 95 % interval is that of a bootstrap over "
        f"pictures. The loss, the mean binary cross-entropy, is {evaluated.loss:.4f}.</p>"
    )


def _compared(compared: Mapping[str, str]) -> list[str]:
    return [scrolled(table(("", ""), list(compared.items()), kind="words"))]


def _classes(evaluated: MultiLabelEvaluation, *, chose: bool) -> str:
    why = (
        "Each threshold is the one with the highest F1 on these pictures, so precision, recall and F1 are slightly too "
        "good here."
        if chose
        else "The thresholds are those in the model file."
    )
    return (
        "<p>AP: average precision, the area below the curve of precision and recall; it needs no threshold. A class is "
        "answered if its probability reaches its threshold. Precision: the share of right ones among the pictures for "
        "which it is answered. Recall: the share of its pictures for which it is. "
        f"{why}</p>{scrolled(table(*evaluated.table()))}"
    )


def _mixed_up(evaluated: MultiLabelEvaluation) -> list[str]:
    """Return a table of the labels that are answered where others are missed."""
    extra, missed = evaluated.answers & ~evaluated.labels, evaluated.labels & ~evaluated.answers
    counts = missed.T.astype(int) @ extra.astype(int)
    pairs = sorted(
        ((int(counts[i, j]), i, j) for i, j in zip(*counts.nonzero(), strict=True)), key=lambda pair: -pair[0]
    )
    if not pairs:
        return []
    names = evaluated.classes
    rows = [(names[i], names[j], f"{number:,}") for number, i, j in pairs[:MOST_PAIRS]]
    listed = scrolled(table(("missed", "answered instead", "pictures"), rows))
    return [
        "<h2>Answered for each other</h2>",
        "<p>Pictures where one class is missed and another is wrong.</p>",
        listed,
    ]


def _calibration(evaluated: MultiLabelEvaluation) -> list[str]:
    after, before, calibration = evaluated.reliability, evaluated.uncalibrated, evaluated.calibration
    low, high = after.interval_percent
    text = (
        "Of the labels with a stated probability of 80 %, 80 % should be there. Over all pairs of picture and class, "
        f"probabilities are off by {after.ece_percent:.1f} points on average ({low:.1f} to {high:.1f}; expected "
        "calibration error, bins of equally many pairs)."
    )
    if calibration is not None and calibration.temperature == 1:
        text += (
            f" A temperature was tried on {calibration.pictures:,} validation pictures. It is 1, because no other one "
            "was better there by more than its standard error."
        )
    elif calibration is not None:
        text += (
            f" The logits are divided by the temperature {calibration.temperature:.3f}, one for all classes, which was "
            f"fitted on {calibration.pictures:,} validation pictures; without it, the error is "
            f"{before.ece_percent:.1f} points."
        )
    return [
        "<h2>Are the probabilities right?</h2>",
        f"<p>{text}</p>",
        reliability_diagram(after),
        '<p class="faint">Bars: the share of labels that are there. Red: the distance to the stated probability.</p>',
    ]


def _unreadable(evaluated: MultiLabelEvaluation) -> list[str]:
    rows = [(str(file), reason) for file, reason in evaluated.unreadable.items()]
    if not rows:
        return []
    more = [f"<p>and {len(rows) - MOST_FILES:,} more</p>"] if len(rows) > MOST_FILES else []
    listed = scrolled(table(("file", "reason"), rows[:MOST_FILES], kind="words"))
    return ["<h2>Unreadable pictures</h2>", listed, *more]
