"""`resnetkit detect`: train a detector, measure it, find objects in pictures."""

from collections.abc import Sequence

from resnetkit.commands import detect_evaluate, detect_predict, detect_train
from resnetkit.commands.parser import nearest
from resnetkit.errors import UsageError

HELP = """usage: resnetkit detect ACTION [options]

  train DATA             train a detector on pictures with boxes
  evaluate MODEL DATA    measure its average precision
  predict MODEL PATH...  find objects in pictures

For the options: resnetkit detect ACTION --help"""


def run(argv: Sequence[str]) -> int:
    """Run train, evaluate or predict."""
    actions = {"train": detect_train.run, "evaluate": detect_evaluate.run, "predict": detect_predict.run}
    action, *rest = argv or [""]
    if action in ("-h", "--help"):
        print(HELP)
        return 0
    if action not in actions:
        raise UsageError(
            f"unknown action {action}{nearest(action, list(actions))}" if action else "give train, evaluate or predict"
        )
    return actions[action](rest)
