"""`resnetkit data`: download CIFAR, check a data set, write some of its pictures, choose pictures, convert boxes."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from resnetkit.commands import data_boxes, data_next
from resnetkit.commands.parser import DATA, Parser, nearest
from resnetkit.commands.printing import free_file, on_one_line, print_json, print_table
from resnetkit.commands.recipe_flags import add_recipe, read_recipe_flags
from resnetkit.data.asides import put_back, set_aside
from resnetkit.data.check import Findings, to_move
from resnetkit.data.check import check as check_data
from resnetkit.data.dataset import open_read
from resnetkit.data.lists.mending import write_fixed
from resnetkit.data.overview import write_overview
from resnetkit.data.published.cifar import get_cifar
from resnetkit.data.reading import LISTS, Reading, reading_of
from resnetkit.data.samples import write_pictures
from resnetkit.data.shortcuts import describe
from resnetkit.display import count, shell
from resnetkit.errors import UsageError
from resnetkit.files import expanded
from resnetkit.progress import bar

MOST_SKIPPED = 20
"""Largest number of left-out files that are printed."""
MOST_TOGETHER = 5
"""Largest number of pairs of labels that are printed."""
MOST_COPIES = 10
"""Largest number of groups of copies, and of alike pictures, that are printed."""

HELP = """usage: resnetkit data ACTION [options]

  get NAME          download cifar10 or cifar100 to this machine
  check DATA        count the pictures of each class, find faults
  samples DATA DIR  write a few pictures as PNG files
  next MODEL DIR    choose the pictures without a label to label next
  convert DATA DIR  write pictures with boxes as PASCAL VOC, COCO or YOLO

For the options: resnetkit data ACTION --help"""


def run(argv: Sequence[str]) -> int:
    """Run get, check, samples, next or convert."""
    actions = {"get": get, "check": check, "samples": samples, "next": data_next.run, "convert": data_boxes.convert}
    action, *rest = argv or [""]
    if action in ("-h", "--help"):
        print(HELP)
        return 0
    if action not in actions:
        raise UsageError(
            f"unknown action {action}{nearest(action, list(actions))}"
            if action
            else "give get, check, samples, next or convert"
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
        "DATA [options], or resnetkit data check --undo LIST",
        "Count the pictures of each class; find unreadable files, same and alike pictures in several classes or parts, "
        "and facts such as file sizes or backgrounds that give the label away. If DATA has boxes (PASCAL VOC, COCO, "
        "YOLO), name every wrong annotation with its place.",
    )
    parser.add_argument("data", nargs="?", metavar="DATA", help=DATA)
    parser.add_argument("--workers", type=int, default=4, help="threads that decode pictures")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--page", type=str, metavar="FILE", help="also write an HTML page with thumbnails")
    parser.add_argument("--force", action="store_true", help="replace an existing file of --page")
    parser.add_argument(
        "--fix",
        action="store_true",
        help="move aside what is wrong, into a folder next to DATA: unreadable files, equal pictures with several "
        "labels, and training pictures that are also in val or test. Nothing is deleted. Of a list, write a new one "
        "beside it without them",
    )
    parser.add_argument("--undo", type=str, metavar="LIST", help="move the files of a list of --fix back")
    parser.add_argument(
        "--annotations",
        type=Literal["voc", "coco", "yolo", "none"],
        help="form of the boxes if DATA has several, or none to check class folders; unset: what DATA has",
    )
    parser.add_reading()
    given = parser.read(argv)
    if given["workers"] < 1:
        raise UsageError(f"--workers is {given['workers']}; it must be at least 1")
    if given["undo"]:
        if given["data"] or given["fix"]:
            raise UsageError("--undo takes a list alone; leave out DATA and --fix")
        print(f"{count(put_back(expanded(given['undo'])), 'file')} moved back")
        return 0
    if not given["data"]:
        raise UsageError(f"DATA missing: {DATA}")
    if (found := data_boxes.check(given)) is not None:
        return found
    overview = free_file(given["page"], "--page", force=given["force"]) if given["page"] else None
    root = expanded(given["data"])
    if given["fix"] and not root.is_dir() and not (root.is_file() and root.suffix.lower() in LISTS):
        raise UsageError(f"--fix moves files of a folder, or writes a list once more; {given['data']} is neither")
    reading = reading_of(given)
    pictures = sum(map(len, open_read(given["data"], reading).parts.values()))
    with bar("checking", pictures) as advance:
        report = check_data(given["data"], reading, workers=given["workers"], advance=advance)
    if overview:
        write_overview(overview, report)
    if given["json"]:
        print_json(report.to_dict())
    else:
        _print(report)
        if overview:
            print(on_one_line(f"page: {overview}"))
    if given["fix"] and ((files := to_move(report)) or report.missing):
        _fix(root, reading, files)
    return 0 if report.sound else 1


def _fix(root: Path, reading: Reading, files: Mapping[Path, str]) -> None:
    """Move the files of a folder aside, or write a list without them; say so on standard error."""
    if root.is_dir():
        if files:
            listed = set_aside(root, files)
            _say(f"{count(len(files), 'file')} moved to {listed.parent}")
            _say(f"to move them back: resnetkit data check --undo {shell(listed)}")
        return
    for goal, left_out in write_fixed(root, reading, set(files)).items():
        _say(f"{goal}: the list without {count(left_out, 'picture')}; the files stay where they are")


def _say(text: str) -> None:
    print(on_one_line(text), file=sys.stderr)


def _print(report: Findings) -> None:
    classes = list(next(iter(report.counts.values())))
    several = report.labels == "several"
    ends = [["no label", *(f"{report.without_label[part]:,}" for part in report.counts)]] if several else []
    ends.append(["pictures" if several else "total", *(f"{report.pictures[part]:,}" for part in report.counts)])
    print_table(
        ("label" if several else "class", *report.counts),
        [[n, *(f"{c[n]:,}" for c in report.counts.values())] for n in classes] + ends,
    )
    for pair in report.together[:MOST_TOGETHER]:
        first, second = pair.labels
        print(
            on_one_line(
                f"together in {count(pair.pictures, 'picture')}: {first} ({pair.first:,} in all) and {second} "
                f"({pair.second:,})"
            )
        )
    print(
        "width {}, {}, {} and height {}, {}, {} pixels: smallest, median, largest".format(
            *report.widths, *report.heights
        )
    )
    for note in report.notes:
        print(on_one_line(f"note: {note}"))
    for text in describe(report.shortcuts):
        print(on_one_line(f"warning: {text}"))
    _print_some("skipped", [f"{path}: {reason}" for path, reason in report.skipped], MOST_SKIPPED)
    within = [group for group in report.duplicates if not group.leaks and not group.contradicts]
    for kind in ("same", "alike"):
        texts = [", ".join(group.named()) for group in within if group.kind == kind]
        _print_some("copies" if kind == "same" else "alike", texts, MOST_COPIES)
    for path, reason in report.unreadable:
        print(on_one_line(f"unreadable: {path}: {reason}"))
    for problem in report.problems:
        print(on_one_line(f"to fix: {problem}"))
    for group in report.duplicates:
        if group.contradicts:
            what = "one picture" if group.kind == "same" else "alike pictures"
            print(on_one_line(f"{what}, several classes: {', '.join(group.named(with_class=True))}"))
    for group in report.duplicates:
        if group.leaks:
            what = "the same picture" if group.kind == "same" else "alike pictures"
            print(on_one_line(f"{what} in several parts: {', '.join(group.named())}"))
    if report.sound:
        print("nothing to fix")
    elif counts := _to_fix(report):
        print(counts)


def _print_some(kind: str, texts: Sequence[str], most: int) -> None:
    """Print the first texts, and the number of the others."""
    for text in texts[:most]:
        print(on_one_line(f"{kind}: {text}"))
    if more := len(texts[most:]):
        print(f"{kind}: {more:,} more; --json names them")


def _to_fix(report: Findings) -> str:
    """Return a line with the number of faulty pictures of each kind; empty if only the whole set is faulty."""
    counts = {
        "unreadable": len(report.unreadable),
        "in several classes": sum(group.contradicts for group in report.duplicates),
        "in several parts": sum(group.leaks for group in report.duplicates),
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
