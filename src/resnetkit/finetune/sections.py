"""Parts of the report about the data: likely label errors, and whether more pictures would help. HTML and SVG."""

import math
from pathlib import Path

from resnetkit.data.samples import Samples
from resnetkit.display import count, printable, table
from resnetkit.finetune.labels import LabelErrors
from resnetkit.finetune.learning_curve import LearningCurve

MOST_ERRORS = 50
SHOWN = 3
"""Parts of a path that are shown, from its end."""
MOST_CLASSES = 30
"""Largest number of rows of the tables."""
WIDE, HIGH = 340, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 40
"""Size of the drawing and its margins."""


def errors_section(found: LabelErrors, samples: Samples) -> str:
    """Return the worst label errors as HTML."""
    if not found.errors:
        return f"<p>None of {found.pictures:,} labels looks wrong.</p>"
    rows = [
        (
            printable("/".join(Path(samples.place(error.index)).parts[-SHOWN:])),
            error.label,
            error.suggested,
            f"{error.score:.3f}",
        )
        for error in found.errors[:MOST_ERRORS]
    ]
    more = f"<p>and {len(found.errors) - MOST_ERRORS:,} more</p>" if len(found.errors) > MOST_ERRORS else ""
    return (
        f"<p>{count(len(found.errors), 'label')} of {found.pictures:,} may be wrong, worst first. Each picture was "
        "judged by a head that was not fitted to it; the score is the probability of its label. <code>resnetkit "
        "evaluate MODEL DATA --review FILE</code> writes a page on which they can be corrected.</p>"
        f'<div class="scroll">{table(("picture", "label", "suggested", "score"), rows, kind="words")}</div>{more}'
    )


def curve_section(curve: LearningCurve) -> str:
    """Return the learning curve as HTML: a sentence, a drawing and a table of the classes that gain most."""
    saved, low, high = curve.gain_percent
    now, doubled, *_ = curve.extrapolated
    ordered = sorted(
        curve.per_class.items(),
        key=lambda one: one[1].doubled.top1_error_percent - one[1].now.top1_error_percent,
    )
    rows = [
        (
            name,
            f"{one.pictures:,}",
            f"{one.now.top1_error_percent:.1f} %",
            f"{one.doubled.top1_error_percent:.1f} %",
            "{:.1f} to {:.1f} %".format(*one.doubled.interval_percent),
        )
        for name, one in ordered[:MOST_CLASSES]
    ]
    head = ("class", "pictures", "error now", "with twice as many", "95 % interval")
    more = f"<p>and {len(ordered) - MOST_CLASSES:,} more classes</p>" if len(ordered) > MOST_CLASSES else ""
    return (
        f"<p>With twice the pictures, the error falls from {now.top1_error_percent:.1f} % to about "
        f"{doubled.top1_error_percent:.1f} %: by {saved:.1f} points (95 % interval {low:.1f} to {high:.1f}). This is "
        "measured with heads on the features, out of sample, on shares of the pictures, and extrapolated by a power "
        "law. It holds for more pictures of the same kind.</p>"
        f'{_drawing(curve)}<div class="scroll">{table(head, rows)}</div>{more}'
    )


def _drawing(curve: LearningCurve) -> str:
    """Return an SVG of the measured errors, the law through them, and its interval; pictures in steps of doubling."""
    points = (*curve.measured, *curve.extrapolated)
    first, last = points[0].pictures, points[-1].pictures
    most = max(point.interval_percent[1] for point in points) or 1.0
    step = 10 ** math.floor(math.log10(most))
    step = next(size for size in (step / 5, step / 2, step, 2 * step) if most / size <= 5)

    def across(pictures: float) -> float:
        return LEFT + (WIDE - LEFT - RIGHT) * math.log(pictures / first) / math.log(last / first)

    def down(percent: float) -> float:
        return TOP + (HIGH - TOP - BOTTOM) * (1 - percent / most)

    parts = []
    for number in range(int(most / step) + 1):
        y = down(number * step)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDE - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--rule)"></line>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number * step:g} %</text>'
        )
    ahead = curve.extrapolated
    upper = [f"{across(point.pictures):.1f},{down(point.interval_percent[1]):.1f}" for point in ahead]
    lower = [f"{across(point.pictures):.1f},{down(point.interval_percent[0]):.1f}" for point in reversed(ahead)]
    parts.append(f'<polygon points="{" ".join(upper + lower)}" fill="var(--bar)" fill-opacity="0.2"></polygon>')
    a, b, c = curve.law
    sizes = [first * (last / first) ** (place / 40) for place in range(41)]
    line = " ".join(f"{across(size):.1f},{down(100 * min(1, a * size**-b + c)):.1f}" for size in sizes)
    parts.append(f'<polyline points="{line}" fill="none" stroke="var(--bar)" stroke-dasharray="5 3"></polyline>')
    for point in curve.measured:
        x, low, high = across(point.pictures), *(down(end) for end in point.interval_percent)
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="var(--ink)"></line>'
            f'<circle cx="{x:.1f}" cy="{down(point.top1_error_percent):.1f}" r="3.5" fill="var(--bar)">'
            f"<title>{point.pictures:,} pictures: {point.top1_error_percent:.2f} %</title></circle>"
        )
    shown = [curve.measured[0], curve.measured[len(curve.measured) // 2], ahead[0], ahead[-1]]
    parts += [
        f'<text x="{across(point.pictures):.1f}" y="{HIGH - BOTTOM + 16}" '
        f'text-anchor="{"end" if point is ahead[-1] else "middle"}">{point.pictures:,}</text>'
        for point in shown
    ]
    parts.append(f'<text x="{(LEFT + WIDE) / 2:.0f}" y="{HIGH - 6}" text-anchor="middle">pictures to learn from</text>')
    label = "top-1 error by the number of pictures to learn from, measured and extrapolated"
    return f'<svg viewBox="0 0 {WIDE} {HIGH}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
