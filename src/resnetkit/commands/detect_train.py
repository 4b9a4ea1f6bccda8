"""`resnetkit detect train`: train a detector on pictures with boxes, or go on with a run."""

import shlex
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from resnetkit.commands.parser import Parser, dashed
from resnetkit.commands.printing import print_json
from resnetkit.detect.recipe import DetectionRecipe
from resnetkit.errors import UsageError
from resnetkit.train.recipe import LENGTHS

BOXES = "a folder with PASCAL VOC, COCO or YOLO annotations, or a JSON or YAML file of them"
FIELDS = [field.name for field in fields(DetectionRecipe)]


def run(argv: Sequence[str]) -> int:
    """Train, or resume a run."""
    began = time.monotonic()  # before torch is imported: its import counts as part of --minutes
    parser = Parser(
        "detect train",
        "DATA [options], or resnetkit detect train --resume RUN [DATA, if it moved]",
        f"Train a detector, Faster R-CNN on a residual network. DATA is {BOXES}.",
    )
    parser.add_argument("data", nargs="?", metavar="DATA", help="pictures with boxes to train on")
    parser.add_argument("--out", type=str, metavar="DIR", help="new run folder; unset: runs/<model>-<data>-<time>")
    parser.add_argument(
        "--resume",
        type=str,
        metavar="RUN",
        help="go on with this run as if it had never stopped. --epochs, --iterations or --minutes gives it another "
        "length",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document at the end")
    parser.add_class_arguments(DetectionRecipe)
    (parser.groups or {})["DetectionRecipe"].title = "how it is trained"
    given = {name: value for name, value in parser.read(argv, defaults=False).items() if name != "data" or value}

    if resumed := given.get("resume"):
        if others := [dashed(f"--{name}") for name in given if name in {*FIELDS, "out"} - {*LENGTHS}]:
            raise UsageError(f"--resume uses the run's own settings; leave out {' '.join(others)}")
        from resnetkit.detect.run import resume

        result = resume(resumed, given.get("data"), lengths={n: given[n] for n in LENGTHS if n in given})
    else:
        if "data" not in given:
            raise UsageError(f"DATA missing: {BOXES}")
        fields_given = {name: given[name] for name in FIELDS if name in given}
        from resnetkit.detect.run import start
        from resnetkit.train.network import network_of

        if fields_given.get("init") and "model" not in given and (network := network_of(given["init"])):
            fields_given["model"] = network
        recipe = DetectionRecipe().replace(**fields_given)

        command = shlex.join(["resnetkit", "detect", "train", *argv])
        result = start(recipe, given["data"], out=given.get("out"), began=began, command=command)

    if given.get("json"):
        values = {
            name: value
            for name, value in vars(result).items()
            if name in ("run", "model", "best", "images_per_second", "seconds")
        }
        print_json({name: str(value) if isinstance(value, Path) else value for name, value in values.items()})
        return 0
    if "ap50_percent" in result.best:
        print(f"validation AP50   {result.best['ap50_percent']:.2f} %, after step {result.best['step']:,}")
    print(f"training          {result.images_per_second:,.1f} images/s, {result.seconds:,.0f} s in total")
    print(f"model             {result.model}")
    print(f"curves            {result.run / 'curves.png'}")
    print(f"report            {result.run / 'report.html'}")
    return 0
