"""`resnetkit data`: download CIFAR, check a data set, write some of its pictures."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resnetkit.commands.parser import DATA, Parser, nearest
from resnetkit.commands.printing import on_one_line, print_json, print_table
from resnetkit.commands.recipe_flags import add_recipe, read_recipe_flags
from resnetkit.data.check import Findings
from resnetkit.data.check import check as check_data
from resnetkit.data.dataset import open_read
from resnetkit.data.published.cifar import get_cifar
from resnetkit.data.reading import reading_of
from resnetkit.data.samples import write_pictures
from resnetkit.errors import UsageError
from resnetkit.files import expanded
from resnetkit.progress import bar

MOST_SKIPPED = 20
"""Largest number of left-out files that are printed."""
MOST_COPIES = 10
"""Largest number of groups of copies that are printed."""

HELP = """usage: resnetkit data ACTION [options]

  get NAME          download cifar10 or cifar100 to this machine
  check DATA        count the pictures of each class, find faults
  samples DATA DIR  write a few pictures as PNG files

For the options: resnetkit data ACTION --help"""


def run(argv: Sequence[str]) -> int:
    """Run get, check or samples."""
    actions = {"get": get, "check": check, "samples": samples}
    action, *rest = argv or [""]
    if action in ("-h", "--help"):
        print(HELP)
        return 0
    if action not in actions:
        raise UsageError(
            f"unknown action {action}{nearest(action, list(actions))}" if action else "give get, check or samples"
        )
    return actions[action](rest)


def get(argv: Sequence[str]) -> int:
    """Download and decode cifar10 or cifar100, unless it is in the cache already."""
    parser = Parser("data get", "NAME [options]", "Download a data set to the cache folder.")
    parser.add_argument("name", metavar="NAME", help="cifar10 or cifar100")
    parser.add_argument(
        "--from", type=str, metavar="DIR", help="folder that contains the official archive; unset: download it"
    )
    given = parser.read(argv)
    folder = get_cifar(given["name"], folder=expanded(given["from"]) if given["from"] else None)
    print(f"{given['name']} is in {folder}")
    return 0


def check(argv: Sequence[str]) -> int:
    """Open every picture of a set; return 1 if there is something to fix."""
    parser = Parser(
        "data check",
        "DATA [options]",
        "Count the pictures of each class; find unreadable files, pictures in several classes, and pictures in several "
        "parts.",
    )
    parser.add_argument("data", metavar="DATA", help=DATA)
    parser.add_argument("--workers", type=int, default=4, help="threads that decode pictures")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_reading()
    given = parser.read(argv)
    if given["workers"] < 1:
        raise UsageError(f"--workers is {given['workers']}; it must be at least 1")
    dataset = open_read(given["data"], reading_of(given))
    with bar("checking", sum(map(len, dataset.parts.values()))) as advance:
        report = check_data(dataset, workers=given["workers"], advance=advance)
    if given["json"]:
        print_json(
            vars(report)
            | {
                "problems": report.problems,
                "unreadable": {str(path): reason for path, reason in report.unreadable},
                "skipped": {str(path): reason for path, reason in report.skipped},
            }
        )
    else:
        _print(report)
    return 0 if report.sound else 1


def _print(report: Findings) -> None:
    classes = list(next(iter(report.counts.values())))
    totals = ["total", *(f"{sum(count.values()):,}" for count in report.counts.values())]
    print_table(
        ("class", *report.counts), [[n, *(f"{c[n]:,}" for c in report.counts.values())] for n in classes] + [totals]
    )
    print(
        "width {}, {}, {} and height {}, {}, {} pixels: smallest, median, largest".format(
            *report.widths, *report.heights
        )
    )
    for note in report.notes:
        print(on_one_line(f"note: {note}"))
    for path, reason in report.skipped[:MOST_SKIPPED]:
        print(on_one_line(f"skipped: {path}: {reason}"))
    if more := len(report.skipped[MOST_SKIPPED:]):
        print(f"skipped: {more:,} more; --json names them")
    for pictures in report.copies[:MOST_COPIES]:
        print(on_one_line(f"copies: {', '.join(pictures)}"))
    if more := len(report.copies[MOST_COPIES:]):
        print(f"copies: {more} more groups; --json names them")
    for path, reason in report.unreadable:
        print(on_one_line(f"unreadable: {path}: {reason}"))
    for problem in report.problems:
        print(on_one_line(f"to fix: {problem}"))
    for pictures in report.contradictions:
        print(on_one_line(f"one picture, several classes: {', '.join(pictures)}"))
    for pictures in report.leaks:
        print(on_one_line(f"the same picture: {', '.join(pictures)}"))
    if report.sound:
        print("nothing to fix")
    elif counts := _to_fix(report):
        print(counts)


def _to_fix(report: Findings) -> str:
    """Return a line with the number of faulty pictures of each kind; empty if only the whole set is faulty."""
    counts = {
        "unreadable": len(report.unreadable),
        "in several classes": len(report.contradictions),
        "in several parts": len(report.leaks),
    }
    faults = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    return f"to fix: {faults}" if faults else ""


def samples(argv: Sequence[str]) -> int:
    """Write some pictures of a set as PNG files."""
    parser = Parser(
        "data samples",
        "DATA DIR [options]",
        "Write pictures of a data set as PNG files, from each class in turn; or, with --augmented, the first training "
        "batch as the network sees it, with the flags of resnetkit train (see data samples --augmented --help).",
    )
    parser.add_argument("data", metavar="DATA", help=DATA)
    parser.add_argument("folder", metavar="DIR", help="folder for the files")
    parser.add_argument("--count", type=int, help="number of pictures; unset: 6, or 16 with --augmented")
    parser.add_argument(
        "--augmented",
        action="store_true",
        help="write training pictures after the random crops and changes of the recipe, and a sheet of all",
    )
    parser.add_reading()
    augmented = "--augmented" in argv and "--augmented" in argv[: list(argv).index("--") if "--" in argv else None]
    if augmented:
        add_recipe(parser)
    given = parser.read(argv, defaults=False)
    count = given.get("count", 16 if augmented else 6)
    if count < 1:
        raise UsageError(f"--count is {count}; it must be at least 1")
    if augmented:
        return _preview(given, count=count)
    _, part = open_read(given["data"], reading_of(given)).part("auto")
    written, unreadable = write_pictures(part, expanded(given["folder"]), count=count)
    _name_files(written, unreadable)
    return 0


def _preview(given: dict[str, Any], *, count: int) -> int:
    """Write the first training batch of a recipe."""
    recipe, asked = read_recipe_flags(given)
    from resnetkit.train.effects import check_effects
    from resnetkit.train.preview import write_preview
    from resnetkit.train.run import open_for

    dataset = open_for(recipe, given["data"], reading_of(given))
    for remark in check_effects(recipe, dataset, asked):
        print(on_one_line(f"resnetkit data samples: {remark}"), file=sys.stderr)
    done = write_preview(recipe, dataset, expanded(given["folder"]), count=count)
    _name_files([*done.pictures, done.sheet], done.unreadable)
    return 0


def _name_files(written: Sequence[Path], unreadable: Mapping[Path, str]) -> None:
    for path in written:
        print(on_one_line(path))
    for path, reason in unreadable.items():
        print(on_one_line(f"resnetkit data samples: unreadable: {path}: {reason}"), file=sys.stderr)
