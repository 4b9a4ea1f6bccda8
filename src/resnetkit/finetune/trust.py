"""What a report says about the data themselves: leaks, shortcuts, likely label errors, and whether more would help."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from resnetkit.data.duplicates import alike_numbers
from resnetkit.data.first_look import FirstLook
from resnetkit.data.samples import Dataset
from resnetkit.data.shortcuts import MARGIN_PERCENT, Shortcut, find_shortcuts
from resnetkit.display import printable, shell, table
from resnetkit.errors import DataError
from resnetkit.finetune.features import Features
from resnetkit.finetune.labels import label_errors
from resnetkit.finetune.learning_curve import learning_curve
from resnetkit.finetune.sections import curve_section, errors_section
from resnetkit.page import scrolled

LEAKS, SHORTCUTS, LABELS, MORE = (
    "Are pictures in two parts?",
    "Can the label be told without looking?",
    "Are the labels right?",
    "Would more pictures help?",
)
"""The headings of the parts."""
MOST_WORK = 2e7
"""Pictures times channels times classes: for more, label errors and the learning curve are left out of a training."""
WORK_PER_SECOND = 6.5e5
"""Such products that the heads of both take in a second, on one core of an AMD EPYC (Zen 3)."""


def look_sections(dataset: Dataset, look: FirstLook) -> dict[str, str]:
    """Return the parts on leaks and shortcuts, as heading and HTML; none for pictures in memory, and for large sets."""
    looks = look.look_at(dataset)
    if looks is None:
        return {}
    labels = np.concatenate([samples.labels for samples in dataset.parts.values()])
    alike = alike_numbers(looks)
    found = find_shortcuts(looks.facts, labels, alike, names=dataset.classes)
    remarks = look.remarks(dataset, alike)
    return {
        LEAKS: leaks_section([line for line in remarks if line.startswith(("leak:", "contradiction:"))]),
        SHORTCUTS: shortcuts_section(found),
    }


def leaks_section(remarks: Sequence[str]) -> str:
    """Return the leaks between parts, and the same pictures with several labels, as HTML."""
    if not remarks:
        return "<p>No picture is the same as, or alike to, one of another part or of another class.</p>"
    said = "".join(f"<li>{escape(printable(line[0].upper() + line[1:]))}.</li>" for line in remarks)
    return f"<ul>{said}</ul><p><code>resnetkit data check DATA --fix</code> names them all and mends them.</p>"


def shortcuts_section(found: Sequence[Shortcut]) -> str:
    """Return the facts that give the label away, as HTML."""
    tried = "file size, picture size, format, camera, colour of the border, background"
    if not found:
        return (
            f"<p>No. From each of these facts alone ({tried}), a small classifier tells the label no better than "
            f"chance, or by less than {MARGIN_PERCENT:g} points.</p>"
        )
    rows = [(one.source, f"{one.accuracy_percent:g} %", f"{one.chance_percent:g} %") for one in found]
    return (
        f"<p>Yes, in part. A small classifier that sees only one fact ({tried}) tells the label of more pictures than "
        "chance does. A network may learn that instead of the content; its error on pictures from elsewhere is then "
        f"higher.</p>{scrolled(table(('fact', 'labels told', 'by chance'), rows))}"
    )


def seconds_of(pictures: int, channels: int, classes: int) -> float | None:
    """Return about how long `feature_sections` takes; None if that is too long for the end of a training."""
    work = pictures * channels * classes
    return None if work > MOST_WORK else work / WORK_PER_SECOND


def left_out(run: Path, data: str) -> dict[str, str]:
    """Return the parts of `feature_sections` where they were left out, with the command that makes them."""
    command = f"resnetkit evaluate {shell(run)} {shell(data)} --report FILE --label-errors --learning-curve"
    return {LABELS: f"<p>Not examined, for want of time: <code>{escape(printable(command))}</code> does it.</p>"}


def feature_sections(features: Features) -> dict[str, str]:
    """Return the parts on labels and on more pictures, as heading and HTML, from heads on features."""
    sections: dict[str, str] = {}
    for heading, make in (
        (LABELS, lambda: errors_section(label_errors(features), features.samples)),
        (
            MORE,
            lambda: curve_section(learning_curve(features.pool(), features.labels, classes=features.samples.classes)),
        ),
    ):
        try:
            sections[heading] = make()
        except DataError as error:  # too few pictures
            sections[heading] = f"<p>Not known: {escape(printable(str(error)))}.</p>"
    return sections
