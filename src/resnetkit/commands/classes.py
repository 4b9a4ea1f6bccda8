"""`resnetkit classes`: add, merge, rename or remove the classes of a trained model, without training it again."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from resnetkit.commands.parser import Parser
from resnetkit.commands.printing import print_json
from resnetkit.errors import UsageError
from resnetkit.progress import Display


def run(argv: Sequence[str]) -> int:
    """Change the classes, and print the new model."""
    parser = Parser(
        "classes",
        "RUN [--add DIR...] [--merge CLASS CLASS...] [--rename OLD=NEW...] [--remove CLASS...] [options]",
        "Change the classes of a trained model. Features that are kept on disk are used again, and only the last layer "
        "is fitted, so it takes seconds. A new run folder is written; RUN stays as it is.",
    )
    parser.add_argument("run", metavar="RUN", help="run folder of resnetkit train")
    parser.add_argument(
        "--add",
        type=str,
        nargs="+",
        metavar="DIR",
        help="folders of pictures: each is a new class of this name, or contains class folders. A class that is there "
        "already gets more pictures",
    )
    parser.add_argument("--merge", type=str, nargs="+", metavar="CLASS", help="make these classes one")
    parser.add_argument("--into", type=str, metavar="NAME", help="with --merge: its name; unset: that of the first")
    parser.add_argument("--rename", type=str, nargs="+", metavar="OLD=NEW", help="give classes other names")
    parser.add_argument("--remove", type=str, nargs="+", metavar="CLASS", help="remove classes")
    parser.add_argument("--out", type=str, metavar="DIR", help="new run folder; unset: RUN-classes")
    parser.add_argument("--in_place", action="store_true", help="change RUN itself")
    parser.add_argument("--data", type=str, metavar="DATA", help="the pictures of RUN, if they have moved")
    parser.add_argument(
        "--cache_gb", type=float, default=4.0, help="largest size of the kept features on disk, in 10⁹ bytes"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    given = parser.read(argv)
    pairs = [pair.partition("=") for pair in given["rename"] or ()]
    if wrong := [old for old, equals, _ in pairs if not equals]:
        raise UsageError(f"`rename` takes OLD=NEW, and {wrong[0]!r} has no =")

    from resnetkit.finetune.classes import change_classes

    with Display() as display:
        result = change_classes(
            given["run"],
            rename={old: new for old, _, new in pairs},
            merge=given["merge"] or (),
            into=given["into"],
            remove=given["remove"] or (),
            add=given["add"] or (),
            out=given["out"],
            in_place=given["in_place"],
            data=given["data"],
            cache_gb=given["cache_gb"],
            progress=lambda doing, total: display.counter(doing, total, "pictures"),
        )
    if given["json"]:
        print_json({name: str(v) if isinstance(v, Path) else v for name, v in asdict(result).items()})
        return 0
    named = ", ".join(result.classes[:10])
    print(f"classes           {len(result.classes)}: {named}{', ...' if len(result.classes) > 10 else ''}")
    if result.top1_error_percent is not None:
        print(f"validation error  {result.top1_error_percent:.2f} %")
    print(f"new features      of {result.computed:,} pictures, {result.seconds:,.0f} s in total")
    print(f"model             {result.model}")
    sys.stdout.flush()
    return 0
