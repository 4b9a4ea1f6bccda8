"""The look of the report: its style, and drawings as SVG, which need no network and follow light and dark."""

from collections.abc import Sequence
from itertools import pairwise

from resnetkit.evaluation.calibration import Reliability

STYLE = """
:root { --bar: #1f77b4; --gap: #d9534f; }
@media (prefers-color-scheme: dark) { :root { --bar: #5aa5dc; --gap: #e07b77; } }
img { max-width: 100%; height: auto; background: #fff; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .6rem; margin: 1rem 0; }
.figures div { border: 1px solid var(--rule); border-radius: .4rem; padding: .5rem .8rem; }
.figures b { display: block; font-size: 1.5rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.figures small { display: block; color: var(--faint); }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem; }
figure .pair { display: grid; grid-template-columns: 1fr 1fr; gap: 2px; }
figure img { width: 100%; aspect-ratio: 1; object-fit: contain; background: var(--stripe); }
figcaption { font-size: .87rem; line-height: 1.35; }
svg { max-width: 24rem; width: 100%; height: auto; display: block; }
svg text { fill: var(--ink); font: 11px system-ui, sans-serif; }
.confusion th { font-weight: normal; }
.confusion th:not(:first-child) { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left;
  padding: .6rem .2rem; white-space: nowrap; }
.confusion td { min-width: 1.6rem; border: 1px solid var(--rule); }
.confusion td:first-child { border: 0; white-space: nowrap; min-width: 0; position: sticky; left: 0;
  background: var(--paper); }
@media (max-width: 40rem) {
  .pictures { grid-template-columns: 1fr; }
  .figures { grid-template-columns: 1fr 1fr; }
}
@media print { :root { --bar: #1f77b4; --gap: #c9302c; } }
"""

WIDE, LEFT, TOP, SIDE = 330, 42, 10, 240


def reliability_diagram(found: Reliability) -> str:
    """Return an SVG: for each bin a bar of the share of right predictions, and the distance to the stated probability.

    A bar is as wide as the range of probabilities of its pictures.
    """
    lowest = min((stated for stated, _, _ in found.bins), default=0.0)
    first = max(0.0, min(0.9, int(10 * (lowest - 0.02)) / 10))

    def across(value: float) -> float:
        return LEFT + SIDE * 1.1 * (value - first) / (1 - first)

    def down(value: float) -> float:
        return TOP + SIDE * (1 - value)

    parts = [
        f'<line x1="{LEFT}" x2="{across(1):.0f}" y1="{down(share):.1f}" y2="{down(share):.1f}" '
        f'stroke="var(--rule)"></line><text x="{LEFT - 6}" y="{down(share) + 4:.1f}" text-anchor="end">'
        f"{100 * share:.0f} %</text>"
        for share in (0, 0.25, 0.5, 0.75, 1)
    ]
    edges = _edges(found, first)
    for (stated, right, pictures), (low, high) in zip(found.bins, edges, strict=True):
        left, width = across(low), max(2.0, across(high) - across(low) - 1)
        top, bottom = sorted((down(stated), down(right)))
        parts.append(
            f'<rect x="{left:.1f}" y="{down(right):.1f}" width="{width:.1f}" height="{SIDE * right:.1f}" '
            f'fill="var(--bar)"><title>{pictures} pictures: stated {100 * stated:.1f} %, right {100 * right:.1f} %'
            f'</title></rect><rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{bottom - top:.1f}" '
            'fill="var(--gap)" fill-opacity="0.45"></rect>'
        )
    parts.append(
        f'<line x1="{across(first):.1f}" y1="{down(first):.1f}" x2="{across(1):.1f}" y2="{down(1):.1f}" '
        'stroke="var(--ink)" stroke-dasharray="4 3"></line>'
    )
    parts += [
        f'<text x="{across(share):.1f}" y="{TOP + SIDE + 16}" text-anchor="middle">{100 * share:.0f} %</text>'
        for share in (first, (1 + first) / 2, 1)
    ]
    parts.append(
        f'<text x="{across((1 + first) / 2):.1f}" y="{TOP + SIDE + 34}" text-anchor="middle">stated probability</text>'
    )
    label = "share of right predictions by stated probability"
    return f'<svg viewBox="0 0 {WIDE} {TOP + SIDE + 42}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _edges(found: Reliability, first: float) -> Sequence[tuple[float, float]]:
    """Return the range of probabilities that each bin covers, without gaps between the bins."""
    middles = [stated for stated, _, _ in found.bins]
    between = [(low + high) / 2 for low, high in pairwise(middles)]
    return list(zip([first, *between], [*between, 1.0], strict=True))
