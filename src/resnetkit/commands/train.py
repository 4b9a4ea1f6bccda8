"""`resnetkit train`: start a run with a recipe, changed by a YAML file and flags, or resume a run."""

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from resnetkit.commands.parser import DATA, Parser, dashed
from resnetkit.commands.printing import on_one_line, print_json
from resnetkit.commands.recipe_flags import FIELDS, add_recipe, read_recipe_flags
from resnetkit.data.reading import reading_of
from resnetkit.display import count
from resnetkit.errors import UsageError
from resnetkit.files import expanded
from resnetkit.progress import bar
from resnetkit.train.recipe import LENGTHS, Recipe

if TYPE_CHECKING:
    from resnetkit.finetune.repeats import Repeated

Kind = Literal["folds", "seeds"]
LINES, BAR = 25, 50
"""Number of lines of a printed curve, and characters of its longest bar."""


def run(argv: Sequence[str]) -> int:
    """Train, or resume a run."""
    began = time.monotonic()  # before torch is imported: its import takes seconds, which count as part of --minutes
    parser = Parser(
        "train",
        "DATA [options], or resnetkit train --resume RUN [DATA, if it moved]",
        "Train a network. DATA is cifar10, cifar100, a folder (<class>/<picture>, or train, val and test folders that "
        "contain class folders) or a list (path,label). A recipe sets all fields; --config changes it, and flags "
        "change it after that.",
    )
    parser.add_argument("data", nargs="?", metavar="DATA", help="data to train on")
    parser.add_argument("--out", type=str, metavar="DIR", help="new run folder; unset: runs/<model>-<data>-<time>")
    parser.add_argument(
        "--folds",
        type=int,
        metavar="K",
        help="cross-validation: train K times, each time with another K-th of the training and validation pictures for "
        "validation; one report with mean and deviation",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        metavar="N",
        help="train N times on the same pictures, with the seeds --seed, --seed + 1, ...; one report with mean and "
        "deviation",
    )
    parser.add_argument(
        "--find_lr",
        action="store_true",
        help="train no model, but look for a learning rate: a hundred steps with a rising rate, a curve, a suggestion",
    )
    parser.add_argument(
        "--resume",
        type=str,
        metavar="RUN",
        help="go on with this run as if it had never stopped. --epochs, --iterations or --minutes gives it another "
        "length; if the schedule depends on the length, it goes on as that of a run of the new length",
    )
    parser.add_argument(
        "--allow_other_arithmetic",
        action="store_true",
        help="with --resume: go on even if this machine computes the network in another way, such as without our "
        "kernels; the weights then differ slightly",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document at the end")
    parser.add_reading()
    add_recipe(parser)
    given = {name: value for name, value in parser.read(argv, defaults=False).items() if name != "data" or value}

    if resumed := given.get("resume"):
        own = {*FIELDS, "recipe", "config", "out", "folds", "seeds", "find_lr"} - {*LENGTHS}
        if others := [dashed(f"--{name}") for name in given if name in own]:
            raise UsageError(f"--resume uses the run's own recipe; leave out {' '.join(others)}")
        from resnetkit.detect.run import is_detection
        from resnetkit.finetune.ladder import resume
        from resnetkit.finetune.repeats import go_on, is_repeated

        if is_detection(resumed):
            from resnetkit.commands import detect_train

            return detect_train.run(argv)
        if is_repeated(expanded(resumed)):
            if others := [f"--{name}" for name in ("allow_other_arithmetic", *LENGTHS) if given.get(name)]:
                raise UsageError(f"{resumed} contains several runs; leave out {' '.join(map(dashed, others))}")
            return _print_repeated(go_on(resumed, given.get("data")), as_json=bool(given.get("json")))
        reading = reading_of(given)
        lengths = {name: given[name] for name in LENGTHS if name in given}
        result = resume(
            resumed,
            given.get("data"),
            allow_other_arithmetic=bool(given.get("allow_other_arithmetic")),
            reading=reading if reading.given() else None,
            **lengths,
        )
    else:
        if "data" not in given:
            raise UsageError(f"DATA missing: {DATA}")
        if given.get("allow_other_arithmetic"):
            raise UsageError("--allow-other-arithmetic needs --resume; leave it out")
        recipe, asked = read_recipe_flags(given)
        if given.get("find_lr"):
            if others := [f"--{name}" for name in ("out", *get_args(Kind)) if name in given]:
                raise UsageError(f"--find-lr writes nothing; leave out {' '.join(others)}")
            return _find_lr(recipe, given, asked)
        kinds: list[Kind] = [kind for kind in get_args(Kind) if given.get(kind) is not None]
        if len(kinds) > 1:
            raise UsageError("--folds and --seeds can't be given together; leave one out")
        if kinds:
            from resnetkit.finetune.repeats import train_repeatedly

            done = train_repeatedly(
                recipe,
                given["data"],
                kind=kinds[0],
                count=given[kinds[0]],
                out=given.get("out"),
                asked=asked,
                reading=reading_of(given),
            )
            return _print_repeated(done, as_json=bool(given.get("json")))
        from resnetkit.finetune.ladder import start

        result = start(
            recipe,
            given["data"],
            out=given.get("out"),
            asked=asked,
            began=began,
            reading=reading_of(given),
            command=shlex.join(["resnetkit", "train", *argv]),
        )

    if given.get("json"):
        print_json(result.to_dict())
        return 0
    for rung in result.rungs:
        error = rung.get("top1_error_percent", rung.get("error_percent"))
        shown = "not validated" if error is None else f"{error:.2f} % error"
        print(f"rung {rung['rung']:13}{shown}, {rung['seconds']:,.0f} s, {'kept' if rung['kept'] else 'not kept'}")
    if "error_percent" in result.best:
        print(f"validation error  {result.best['error_percent']:.2f} %, after step {result.best['step']:,}")
    if "macro_f1_percent" in result.best:
        f1 = result.best["macro_f1_percent"]
        print(f"mAP               {100 - result.best['error_percent']:.2f} %, macro F1 {f1:.2f} %")
    rate = f"{result.images_per_second:,.0f} images/s, " if result.images_per_second else ""  # a head has no steps
    print(f"training          {rate}{result.seconds:,.0f} s in total")
    print(f"model             {result.model}")
    print(f"curves            {result.run / 'curves.png'}")
    print(f"report            {result.run / 'report.html'}")
    return 0


def _find_lr(recipe: Recipe, given: Mapping[str, Any], asked: Mapping[str, str]) -> int:
    """Look for a learning rate, and print the curve with a bar for each loss."""
    from resnetkit.train.effects import check_effects
    from resnetkit.train.finder import STEPS, find_learning_rate
    from resnetkit.train.run import open_for

    dataset = open_for(recipe, given["data"], reading_of(given))
    for remark in check_effects(recipe, dataset, {name: place for name, place in asked.items() if name != "lr"}):
        print(on_one_line(f"resnetkit train: {remark}"), file=sys.stderr)
    with bar("looking for a learning rate", STEPS, "steps") as advance:
        found = find_learning_rate(recipe, dataset, advance=advance)
    if given.get("json"):
        print_json(vars(found) | {"curve": [{"lr": rate, "loss": loss} for rate, loss in found.curve]})
        return 0
    shown = found.curve[:: max(1, len(found.curve) // LINES)]
    highest = max(loss for _, loss in shown)
    print("learning rate    loss")
    for rate, loss in shown:
        print(f"{rate:13.2g}  {loss:6.3f}  {'#' * round(BAR * loss / highest)}")
    print(f"lowest loss at {found.lowest_at:.2g}, steepest fall at {found.steepest_at:.2g}")
    print(f"suggestion, for {count(found.batch_size, 'picture')} in a step: --lr {found.suggestion:g}")
    return 0


def _print_repeated(done: "Repeated", *, as_json: bool) -> int:
    """Print the results of several runs."""
    if as_json:
        print_json(done.to_dict())
        return 0
    for result, error in zip(done.runs, done.errors, strict=True):
        place = f"rung {result.best['rung']}" if result.rungs else f"after step {result.best['step']:,}"
        print(f"{result.run.name:<17} {error:.2f} % validation error, {place}")
    print(f"{'mean':<17} {done.mean:.2f} ± {done.deviation:.2f} % (standard deviation of {len(done.runs)} runs)")
    if done.out_of_fold:
        error, pictures = done.out_of_fold.top1_error_percent, done.out_of_fold.images
        print(f"{'all folds':<17} {error:.2f} % of {pictures:,} pictures, each by the model not trained on it")
    print(f"{'report':<17} {done.path / 'report.html'}")
    return 0
