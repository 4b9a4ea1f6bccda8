"""The command line. Each verb is one function, imported only when it runs, so that help and errors appear quickly."""

import errno
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from importlib import import_module
from io import UnsupportedOperation
from pathlib import Path
from types import FrameType
from typing import TextIO

from resnetkit.allocator import keep_memory
from resnetkit.commands.printing import (
    MAX_PIXELS,
    any_name_printed,
    as_is,
    flags_printed,
    is_answer_lost,
    on_one_line,
)
from resnetkit.display import printable, wrong_name
from resnetkit.errors import ResnetkitError, UsageError
from resnetkit.version import __version__

VERBS = {
    "models": ("list the networks: depth, parameters, GMACs, weights", "resnetkit.commands.models"),
    "runs": ("list training runs: data, results, and where their recipes differ", "resnetkit.commands.runs"),
    "recipes": ("list the recipes for training, or print one in full", "resnetkit.commands.recipes"),
    "train": ("train a network on CIFAR, a folder or a CSV, or go on with a run", "resnetkit.commands.train"),
    "evaluate": ("measure error and loss of a model on labelled pictures", "resnetkit.commands.evaluate"),
    "predict": ("print the most probable classes of pictures", "resnetkit.commands.predict"),
    "convert": ("convert weights of other projects to a model file, or back", "resnetkit.commands.convert"),
    "export": ("write a model for ONNX Runtime, OpenVINO or torch.export", "resnetkit.commands.export"),
    "tune": ("find the fastest way to compute a model here without losing accuracy", "resnetkit.commands.tune"),
    "serve": ("answer requests for predictions over HTTP", "resnetkit.commands.serve"),
    "classes": ("add, merge, rename or remove classes of a trained model, in seconds", "resnetkit.commands.classes"),
    "detect": ("train a detector on pictures with boxes, measure it, find objects", "resnetkit.commands.detect"),
    "data": ("download CIFAR, check a data set, write some of its pictures", "resnetkit.commands.data"),
    "verify": ("compare training, predictions, exports and tuned graphs", "resnetkit.commands.verify"),
    "doctor": ("examine this machine, and show how to make it faster", "resnetkit.commands.doctor"),
}
"""Verb -> its help, and the module whose `run(argv)` runs it and returns the exit code."""
COMPUTING = ("train", "classes", "detect", "evaluate", "predict", "export", "tune", "verify", "serve", "doctor")
"""Verbs for which `set_up` is called."""

DECODING = ("train", "classes", "detect", "evaluate", "predict", "export", "tune", "verify", "data")
"""Verbs that read pictures, and so accept --max-pixels."""
STORING = ("train", "classes", "detect", "convert", "export", "tune")
"""Verbs that write names into files, or pass them to libraries, which accept UTF-8 only."""

# Texts in errors of the C++ library, the dynamic loader, torch and CUDA, which have different classes.
NO_MEMORY = ("allocate memory", "out of memory", "failed to map segment", "bad_alloc", "bad allocation")
NO_TEMPORARY = "No usable temporary directory"
NO_THREAD = "can't start new thread"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


@any_name_printed()
@flags_printed()
def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code: 0 done, 1 failed, 2 wrong use, 130 interrupted."""
    given = list(sys.argv[1:] if argv is None else argv)
    end = given.index("--") if "--" in given else len(given)  # there are no flags after it
    debug = "--debug" in given[:end]
    arguments = [*(argument for argument in given[:end] if argument != "--debug"), *given[end:]]
    verb = f"resnetkit {arguments[0]}" if arguments and arguments[0] in VERBS else "resnetkit"
    interrupts: list[int] = []
    try:
        with _noting(interrupts):
            code = _dispatch(arguments)
        sys.stdout.flush()
        if code == 0 and is_answer_lost(sys.stdout) and (verb.split()[-1] not in STORING or "--json" in arguments):
            _complain(f"{verb}: standard output is closed, so the result is lost; open it, for example with > FILE")
            return 1
    except SystemExit as stop:  # the parser printed its help
        return int(stop.code or 0)
    except BrokenPipeError:  # the reader has ended, as in `resnetkit predict ... | head`
        _drop_output(sys.stdout)
        return 1
    except KeyboardInterrupt:
        _complain(f"\n{verb}: interrupted")
        return 130
    except Exception as error:
        if interrupts and not isinstance(error, ResnetkitError):
            _complain(f"\n{verb}: interrupted")
            return 130
        if debug:
            traceback.print_exc(file=as_is(sys.stderr))
        else:
            _complain(_explain(error, verb))
        if _is_full(error):
            _drop_output(sys.stdout)
        return error.exit_code if isinstance(error, ResnetkitError) else 1
    return code


@contextmanager
def _noting(interrupts: list[int]) -> Iterator[None]:
    """Add each SIGINT to `interrupts`, since a library may raise another error if its import is interrupted."""

    def note(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        raise KeyboardInterrupt

    ours = threading.current_thread() is threading.main_thread()  # Python lets no other thread handle signals
    ours = ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def set_up() -> None:
    """Make the process ready to compute, before anything imports torch."""
    # OpenMP threads spin while they wait for each other. The default is so long that they block each other if another
    # process is busy; without spinning, they fall asleep between two kernels. Training ResNet-20 on two cores, images/s
    # alone and with one busy process: 1000 turns 1,450 and 750, 6000 turns 1,535 and 600, 30,000 turns 1,580 and 355.
    os.environ.setdefault("GOMP_SPINCOUNT", "4000")
    keep_memory()
    try:
        tempfile.gettempdir()
    except FileNotFoundError:  # torch creates a folder for compiled code when it is imported
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(os.sep).absolute()))


def _is_full(error: Exception) -> bool:
    """Return whether standard output is full. Errors of other files have a file name, since `files.py` writes them."""
    return isinstance(error, OSError) and error.errno in FULL and not error.filename


def _complain(text: str) -> None:
    """Print an error. If standard error is closed, only the exit code reports it."""
    try:
        print("\n".join(map(on_one_line, text.split("\n"))), file=sys.stderr, flush=True)
    except OSError:
        _drop_output(sys.stderr)


def _drop_output(stream: TextIO) -> None:
    """Drop the text in the buffer of a stream; else Python prints an error when it ends."""
    with suppress(UnsupportedOperation):  # the stream may not be a file, when `main` is called from Python
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
        if verb.partition("=")[0].replace("_", "-") == MAX_PIXELS:
            raise UsageError(f"{MAX_PIXELS} must come after the verb: resnetkit predict --max-pixels N ...")
        near = get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the verbs are {', '.join(VERBS)}"
        raise UsageError(f"there is no {'flag' if verb.startswith('-') else 'verb'} {verb}; {hint}")
    _check_folder()
    if verb in STORING and (wrong := next((text for text in rest if printable(text) != text), None)):
        raise UsageError(f"{wrong}: the name {wrong_name('; rename it, or give another')}")
    if verb in COMPUTING:
        set_up()
    rest, most_pixels = _taken(rest) if verb in DECODING else (rest, None)
    module = import_module(VERBS[verb][1])
    if most_pixels is None:
        return module.run(rest)
    from resnetkit.data.decoding.opening import accept_pixels

    with accept_pixels(most_pixels):
        return module.run(rest)


def _check_folder() -> None:
    """Raise UsageError if the current folder was removed: torch's libraries would end the process."""
    try:
        Path.cwd()
    except OSError as error:
        raise UsageError(f"the current folder is gone or can't be read ({error.strerror}); cd into another") from error


def _taken(arguments: list[str]) -> tuple[list[str], int | None]:
    """Return the arguments without --max-pixels, and its value (None if it is not given)."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    for place, argument in enumerate(arguments[:end]):
        flag, equals, value = argument.partition("=")
        if flag.replace("_", "-") != MAX_PIXELS:
            continue
        after = place + (1 if equals else 2)
        if not equals:
            value = arguments[place + 1] if after <= end else ""
        if not value.replace("_", "").isdecimal() or not int(value):
            raise UsageError(f"{MAX_PIXELS} needs a whole number over 0{f', not {value}' if value else ''}")
        return [*arguments[:place], *arguments[after:]], int(value)
    return arguments, None


def _help() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:{width}}  {does}" for verb, (does, _) in VERBS.items())
    return (
        "usage: resnetkit VERB [options]\n\n"
        "Residual networks, complete: from the paper to production.\n\n"
        f"{verbs}\n\n"
        "  resnetkit VERB --help shows its options; --debug shows tracebacks; --version prints the version;\n"
        "  --max-pixels N after the verb accepts pictures of up to N pixels (default 268,435,456)."
    )


def _explain(error: Exception, verb: str) -> str:
    """Return one or two lines about an error, for the person at the terminal."""
    if isinstance(error, UsageError):
        return f"{verb}: {error}\nSee {verb} --help."
    if isinstance(error, ResnetkitError):
        return f"{verb}: {error}"
    text = str(error)
    if isinstance(error, MemoryError) or any(words in text for words in NO_MEMORY):
        return f"{verb}: out of memory; give a smaller --batch-size or a smaller network"
    if NO_TEMPORARY in text:
        return f"{verb}: no folder for temporary files can be written; set TMPDIR to a folder that can be written"
    if NO_THREAD in text:
        return f"{verb}: no more threads can be started; give --workers 0 and OMP_NUM_THREADS=1, or raise ulimit -u"
    if (isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)) or "Too many open files" in text:
        return f"{verb}: too many open files; raise the limit, for example with ulimit -n 1024"
    if isinstance(error, ImportError):
        return f"{verb}: {error}; the installation is incomplete: pip install --force-reinstall resnetkit"
    if isinstance(error, OSError) and error.strerror:
        return f"{verb}: {error.filename or ('standard output' if _is_full(error) else 'a file')}: {error.strerror}"
    return f"{verb}: internal error: {type(error).__name__}: {error}; run again with --debug"
