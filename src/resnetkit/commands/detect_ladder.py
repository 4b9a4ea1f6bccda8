"""The flags of the paper's ladder: box refinement, scales, ensembles."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from resnetkit.commands.detect_computing import COMPUTING
from resnetkit.commands.parser import Parser
from resnetkit.errors import UsageError

if TYPE_CHECKING:
    from resnetkit.detect.inference.opening import ReadyDetector

LADDER = ("refine", "scales", "with")


def add_ladder(parser: Parser) -> None:
    """Add the flags to a parser."""
    parser.add_argument(
        "--refine",
        action="store_true",
        help="judge each regressed box once more, and let the boxes of both passes vote; by torch",
    )
    parser.add_argument(
        "--scales",
        type=tuple[int, ...],
        default=(),
        metavar="PX,PX,...",
        help="shorter sides of the picture; each region is judged at two adjacent ones; by torch",
    )
    parser.add_argument(
        "--with",
        type=tuple[str, ...],
        default=(),
        metavar="MODEL,...",
        help="detectors of the same classes, whose regions, probabilities and boxes are combined; by torch",
    )


def ladder_detector(given: Mapping[str, Any]) -> "ReadyDetector | None":
    """Return the detector with the ladder's flags, and `threads`, of the command's values; None without any of them.

    Raises UsageError for values that do not go together.
    """
    if not any(given[name] for name in LADDER):
        return None
    for name in COMPUTING:
        if name != "threads" and given[name] not in (None, "torch" if name == "backend" else None):
            raise UsageError(
                f"--{name} has no effect with --refine, --scales and --with, which torch computes; leave it out"
            )
    import torch

    from resnetkit.detect.ladder import Ladder, open_ladder

    if given["threads"]:
        torch.set_num_threads(given["threads"])
    return open_ladder([given["model"], *given["with"]], Ladder(refine=given["refine"], scales=tuple(given["scales"])))
