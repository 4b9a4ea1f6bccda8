"""The HTML page of `resnetkit data check`: classes with a picture of each, and every finding with its pictures."""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from resnetkit.data.check import Duplicate, Findings
from resnetkit.data.decoding.pictures import open_picture
from resnetkit.data.shortcuts import describe
from resnetkit.display import count, middle_cut, table
from resnetkit.errors import DataError
from resnetkit.files import write_whole
from resnetkit.page import image, page, scrolled

MOST_CLASSES = 200
"""Largest number of classes with a picture; the others are counted."""
MOST_GROUPS = 60
"""Largest number of groups of each kind that are shown."""
MOST_PICTURES = 12
"""Largest number of pictures of a group that are shown."""
MOST_FILES = 200
"""Largest number of files in a list."""
STYLE = """
td { vertical-align: middle; }
.group { display: flex; flex-wrap: wrap; gap: .8rem; padding: .6rem 0; border-top: 1px solid var(--rule); }
figure { width: 9rem; font-size: .8rem; line-height: 1.3; }
figure img, td img { display: block; max-width: 100%; height: auto; background: var(--stripe); }
td img { max-height: 3rem; }
@media (max-width: 40rem) { figure { width: calc(50% - .4rem); } }
"""
SIDE, SMALL = 144, 48
"""Height and width of a picture in a group, and of a class, in pixels."""


def write_overview(path: Path, findings: Findings) -> None:
    """Write the page of what `check` found to `path`; a file at `path` is replaced.

    It contains thumbnails, and needs no other file and no network.
    """
    of = findings.duplicates
    contradictions = [group for group in of if group.contradicts]
    leaks = [group for group in of if group.leaks and not group.contradicts]
    within = [group for group in of if not group.leaks and not group.contradicts]
    parts = [
        f"<p>{escape(_summary(findings))}</p>",
        *(f'<p class="note">To fix: {escape(problem)}.</p>' for problem in findings.problems),
        "<h2>Classes</h2>",
        scrolled(_classes(findings)),
        *(f"<p>{escape(note[0].upper() + note[1:])}.</p>" for note in findings.notes),
        *_together(findings),
        *_files("Unreadable files", findings.unreadable),
        *groups_section(
            "Other labels for the same or nearly the same picture",
            "One of the labels is wrong, or the classes differ in details that are smaller than 1/32 of a picture.",
            map(_group, contradictions),
        ),
        *groups_section(
            "Leaks between parts",
            "An error that is measured on these pictures is too low: training has seen them, or nearly the same ones.",
            map(_group, leaks),
        ),
        *_shortcuts(findings),
        *groups_section(
            "Copies and near copies", "They are in one class and part, and each of them counts.", map(_group, within)
        ),
        *_files("Left out", findings.skipped),
    ]
    write_whole(path, page(f"Check of {Path(findings.name).name}", parts, style=STYLE))


def _summary(findings: Findings) -> str:
    pictures = ", ".join(f"{part} {number:,}" for part, number in findings.pictures.items())
    classes = count(len(next(iter(findings.counts.values()))), "class")
    sizes = f"{findings.widths[0]:,} to {findings.widths[2]:,} (median {findings.widths[1]:,})"
    tall = f"{findings.heights[0]:,} to {findings.heights[2]:,} (median {findings.heights[1]:,})"
    verdict = "Nothing to fix." if findings.sound else "There is something to fix."
    return f"{classes}; pictures: {pictures}. {sizes} pixels wide and {tall} high. {verdict}"


def _classes(findings: Findings) -> str:
    names = list(next(iter(findings.counts.values())))
    head = "".join(f"<th>{escape(text)}</th>" for text in ("class", "", *findings.counts))
    rows = [f"<tr>{head}</tr>"]
    for name in names[:MOST_CLASSES]:
        cells = "".join(f"<td>{of[name]:,}</td>" for of in findings.counts.values())
        example = _image(findings.examples[name], SMALL) if name in findings.examples else ""
        rows.append(f"<tr><td>{escape(name)}</td><td>{example}</td>{cells}</tr>")
    if more := len(names) - MOST_CLASSES:
        rows += [f"<tr><td>and {more:,} more</td></tr>"] if more > 0 else []
    ends = {"pictures" if findings.labels == "several" else "total": findings.pictures}
    if findings.labels == "several":
        ends = {"no label": findings.without_label} | ends
    for name, numbers in ends.items():
        cells = "".join(f"<td>{numbers[part]:,}</td>" for part in findings.counts)
        rows.append(f"<tr><td>{name}</td><td></td>{cells}</tr>")
    return f"<table>{''.join(rows)}</table>"


def _together(findings: Findings) -> list[str]:
    """Return a section on the labels that come together; nothing if pictures have one label."""
    if not findings.together:
        return []
    rows = [(*pair.labels, f"{pair.pictures:,}", f"{pair.first:,}", f"{pair.second:,}") for pair in findings.together]
    return ["<h2>Labels that come together</h2>", scrolled(table(("", "", "both", "the first", "the second"), rows))]


class Group(NamedTuple):
    """Pictures that are shown side by side."""

    pictures: Sequence[tuple[str, str]]
    """The path of each, and what stands above it, such as its part."""
    kind: str = ""


def groups_section(title: str, why: str, groups: Iterable[Group]) -> list[str]:
    """Return a section with the pictures of groups, side by side; nothing without groups."""
    groups = list(groups)
    if not groups:
        return []
    shown = [_shown(group) for group in groups[:MOST_GROUPS]]
    more = [f"<p>and {len(groups) - MOST_GROUPS:,} more groups</p>"] if len(groups) > MOST_GROUPS else []
    return [f"<h2>{escape(title)}: {count(len(groups), 'group')}</h2>", f"<p>{escape(why)}</p>", *shown, *more]


def _group(group: Duplicate) -> Group:
    named = zip(group.paths, group.parts, group.labels, strict=True)
    return Group([(path, f"{label}, {part}") for path, part, label in named], group.kind)


def _shown(group: Group) -> str:
    figures = [
        f"<figure>{_image(Path(path), SIDE)}<figcaption>{escape(above)}<br>"
        f"{escape(middle_cut(path, 60))}</figcaption></figure>"
        for path, above in group.pictures[:MOST_PICTURES]
    ]
    more = len(group.pictures) - MOST_PICTURES
    rest = [f"<figure>and {count(more, 'picture')} more</figure>"] if more > 0 else []
    kind = [f'<figure class="note">{group.kind}</figure>'] if group.kind else []
    return f'<div class="group">{"".join([*figures, *rest, *kind])}</div>'


def _shortcuts(findings: Findings) -> list[str]:
    if not findings.shortcuts:
        return []
    return ["<h2>Shortcuts</h2>", *(f'<p class="note">{escape(text)}.</p>' for text in describe(findings.shortcuts))]


def _files(title: str, files: Sequence[tuple[Path, str]]) -> list[str]:
    if not files:
        return []
    rows = [(str(file), reason) for file, reason in files[:MOST_FILES]]
    more = [f"<p>and {len(files) - MOST_FILES:,} more</p>"] if len(files) > MOST_FILES else []
    return [f"<h2>{title}: {len(files):,}</h2>", scrolled(table(("file", "reason"), rows, kind="words")), *more]


def _image(path: Path, side: int) -> str:
    """Return a thumbnail; nothing for a picture in memory or one that can't be read any more."""
    try:
        return image(open_picture(path, at_least=side), side=side, alt=path.name)
    except DataError:
        return ""
