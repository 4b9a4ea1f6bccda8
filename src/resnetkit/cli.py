"""The command line: one verb, one function, imported only when it runs, so that help and errors come at once."""

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from difflib import get_close_matches
from importlib import import_module
from io import UnsupportedOperation
from typing import TextIO

from resnetkit import __version__
from resnetkit.allocator import keep_memory
from resnetkit.commands.output import any_name_printed
from resnetkit.errors import ResnetkitError, UsageError

VERBS = {
    "models": ("the family: depth, parameters, GMACs, features", "resnetkit.commands.models"),
    "recipes": ("how networks are trained: the rows, and one of them in full", "resnetkit.commands.recipes"),
    "train": ("train a network on CIFAR, a folder or a CSV, or go on with a run", "resnetkit.commands.train"),
    "evaluate": ("error and loss of a model on labelled pictures", "resnetkit.commands.evaluate"),
    "predict": ("pictures to labelled probabilities", "resnetkit.commands.predict"),
    "convert": ("other people's weights to a model file, and the other way", "resnetkit.commands.convert"),
    "export": ("a model as a file for ONNX Runtime, OpenVINO or torch.export", "resnetkit.commands.export"),
    "tune": ("find the fastest way to compute a model here that keeps its accuracy", "resnetkit.commands.tune"),
    "data": ("get CIFAR, check a data set, write samples of it", "resnetkit.commands.data"),
    "doctor": ("what this machine can do, and what would make it faster", "resnetkit.commands.doctor"),
}
"""Verb -> what it does, and the module whose `run(argv)` does it and returns the exit code."""
COMPUTING = ("train", "evaluate", "predict", "export", "tune", "doctor")
"""Verbs for which `set_up` is called."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


@any_name_printed()
def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code: 0 done, 1 failed, 2 wrong use, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    verb = f"resnetkit {arguments[0]}" if arguments and arguments[0] in VERBS else "resnetkit"
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
    except SystemExit as stop:  # a parser that printed its help
        return int(stop.code or 0)
    except BrokenPipeError:  # the reader has gone, as in `resnetkit predict ... | head`
        _drop_output(sys.stdout)
        return 1
    except KeyboardInterrupt:
        _complain(f"\n{verb}: interrupted")
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        else:
            _complain(_explain(error, verb))
        if _is_full(error):
            _drop_output(sys.stdout)
        return error.exit_code if isinstance(error, ResnetkitError) else 1
    return code


def set_up() -> None:
    """Make the process ready to compute, before anything imports torch."""
    # OpenMP threads spin while they wait for each other, by default so long that beside one busy process they hold up
    # each other; without spinning they fall asleep between two kernels. ResNet-20 in training on two cores, images/s
    # alone and beside one busy process: 1000 turns 1,450 and 750, 6000 turns 1,535 and 600, 30,000 turns 1,580 and 355.
    os.environ.setdefault("GOMP_SPINCOUNT", "4000")
    keep_memory()


def _is_full(error: Exception) -> bool:
    """Whether standard output takes no more: files are written through `files.py`, whose errors name them."""
    return isinstance(error, OSError) and error.errno in FULL and not error.filename


def _complain(text: str) -> None:
    """Print an error; where its reader or its terminal has gone, the exit code alone has to say it."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        _drop_output(sys.stderr)


def _drop_output(stream: TextIO) -> None:
    """Let what is left in the buffer of a stream go nowhere, or Python complains about it when it ends."""
    with suppress(UnsupportedOperation):  # it may be no file, when `main` is called from Python
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _dispatch(arguments: list[str]) -> int:
    if not arguments:
        raise UsageError(f"give a verb: {', '.join(VERBS)}")
    verb, *rest = arguments
    if verb in ("-h", "--help", "help"):
        print(_help())
        return 0
    if verb == "--version":
        print(f"resnetkit {__version__}")
        return 0
    if verb not in VERBS:
        near = get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the verbs are {', '.join(VERBS)}"
        raise UsageError(f"there is no {'flag' if verb.startswith('-') else 'verb'} {verb}; {hint}")
    if verb in COMPUTING:
        set_up()
    return import_module(VERBS[verb][1]).run(rest)


def _help() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:{width}}  {does}" for verb, (does, _) in VERBS.items())
    return (
        "usage: resnetkit VERB [options]\n\n"
        "Residual networks, complete: from the paper to production.\n\n"
        f"{verbs}\n\n"
        "  resnetkit VERB --help says more; --debug shows tracebacks; --version prints the version."
    )


def _explain(error: Exception, verb: str) -> str:
    """One or two lines for the person who made the mistake, or who met ours."""
    if isinstance(error, UsageError):
        return f"{verb}: {error}\nSee {verb} --help."
    if isinstance(error, ResnetkitError):
        return f"{verb}: {error}"
    if isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error):
        return f"{verb}: out of memory; a smaller --batch-size, or a smaller network, needs less"
    if isinstance(error, OSError) and error.strerror:
        return f"{verb}: {error.filename or ('standard output' if _is_full(error) else 'a file')}: {error.strerror}"
    return f"{verb}: internal error: {type(error).__name__}: {error}; run again with --debug"
