"""A self-contained HTML page: its frame and style, pictures as data URIs. It needs no other file and no network."""

import base64
import io
from collections.abc import Sequence
from html import escape

from PIL import Image

STYLE = """
:root { color-scheme: light dark; --ink: #222; --faint: #666; --paper: #fff; --stripe: #f4f4f4; --rule: #ccc;
  --note: #8a5a00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ddd; --faint: #999; --paper: #161616; --stripe: #232323; --rule: #444; --note: #e0b050; }
}
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: var(--ink); background: var(--paper); overflow-wrap: anywhere; }
h1 { margin-bottom: 0; line-height: 1.2; }
h2 { margin: 2.2rem 0 .5rem; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; }
td, th { padding: .2rem .6rem; text-align: right; vertical-align: bottom; overflow-wrap: normal; }
td { white-space: nowrap; }
th:first-child, td:first-child, .words td, .words th { text-align: left; }
td:first-child, .words td { white-space: normal; overflow-wrap: anywhere; min-width: min(12rem, 30vw); }
table:not(.confusion) tr:nth-child(even) { background: var(--stripe); }
.note { color: var(--note); }
.faint { color: var(--faint); }
figure { margin: 0; break-inside: avoid; }
@media (max-width: 40rem) {
  body { margin: 1rem auto; } h1 { font-size: 1.4rem; } h2 { font-size: 1.15rem; }
  td, th { padding: .2rem .35rem; }
}
@media print {
  :root { --ink: #000; --faint: #444; --paper: #fff; --stripe: #f4f4f4; --rule: #bbb; --note: #6b4500;
    color-scheme: light; }
  body { max-width: none; margin: 0; font-size: 11px; print-color-adjust: exact; }
  .scroll { overflow: visible; } h2 { break-after: avoid; } tr { break-inside: avoid; }
}
"""
"""Style of every page: light and dark, for a phone and for print."""


def page(title: str, parts: Sequence[str], *, style: str) -> str:
    """Return a whole page from pieces of HTML; `style` has the CSS of this kind of page."""
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style><h1>{escape(title)}</h1>"
        + "\n".join(parts)
        + "</html>\n"
    )


def scrolled(table: str) -> str:
    """Return a table in a box that scrolls, so that a wide table does not make the page scroll."""
    return f'<div class="scroll">{table}</div>'


def image(picture: Image.Image, *, side: int, alt: str = "") -> str:
    """Return a picture as an <img> with its content in it, at most `side` pixels high and wide."""
    small = picture.copy()
    small.thumbnail((side, side))
    file = io.BytesIO()
    small.convert("RGB").save(file, "JPEG", quality=80)
    encoded = base64.b64encode(file.getvalue()).decode()
    size = f'width="{small.width}" height="{small.height}"'
    return f'<img alt="{escape(alt)}" {size} src="data:image/jpeg;base64,{encoded}">'
