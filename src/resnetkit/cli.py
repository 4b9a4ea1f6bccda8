"""The command line. Each verb is one function, imported only when it runs, so that help and errors come at once."""

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
"""Verb -> its help, and the module whose `run(argv)` runs it and returns the exit code."""
COMPUTING = ("train", "evaluate", "predict", "export", "tune", "doctor")
"""Verbs for which `set_up` is called."""

DECODING = ("train", "evaluate", "predict", "export", "tune", "data")
"""Verbs that read pictures, and so take --max-pixels."""
STORING = ("train", "convert", "export", "tune")
"""Verbs that write names into files, or hand them to libraries, in UTF-8 alone."""

# Words in the errors of the C++ library, the dynamic loader, torch and CUDA, whatever their class.
NO_MEMORY = ("allocate memory", "out of memory", "failed to map segment", "bad_alloc", "bad allocation")
NO_TEMPORARY = "No usable temporary directory"
NO_THREAD = "can't start new thread"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


@any_name_printed()
@flags_printed()
def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code: 0 done, 1 failed, 2 wrong use, 130 interrupted."""
    given = list(sys.argv[1:] if argv is None else argv)
    end = given.index("--") if "--" in given else len(given)  # behind it there are no flags
    debug = "--debug" in given[:end]
    arguments = [*(argument for argument in given[:end] if argument != "--debug"), *given[end:]]
    verb = f"resnetkit {arguments[0]}" if arguments and arguments[0] in VERBS else "resnetkit"
    interrupts: list[int] = []
    try:
        with _noting(interrupts):
            code = _dispatch(arguments)
        sys.stdout.flush()
        if code == 0 and is_answer_lost(sys.stdout) and (verb.split()[-1] not in STORING or "--json" in arguments):
            _complain(f"{verb}: standard output is closed, and so the answer is lost; open it, say by > FILE")
            return 1
    except SystemExit as stop:  # a parser that printed its help
        return int(stop.code or 0)
    except BrokenPipeError:  # the reader has gone, as in `resnetkit predict ... | head`
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
    """Add each SIGINT to `interrupts`: a library that is interrupted while it is imported may raise another error."""

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
    # OpenMP threads spin while they wait for each other, by default so long that beside one busy process they hold up
    # each other; without spinning they fall asleep between two kernels. ResNet-20 in training on two cores, images/s
    # alone and beside one busy process: 1000 turns 1,450 and 750, 6000 turns 1,535 and 600, 30,000 turns 1,580 and 355.
    os.environ.setdefault("GOMP_SPINCOUNT", "4000")
    keep_memory()
    try:
        tempfile.gettempdir()
    except FileNotFoundError:  # torch makes a folder for what it compiles as soon as it is imported
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(os.sep).absolute()))


def _is_full(error: Exception) -> bool:
    """Whether standard output is full. Errors of other files have a name: they are written through `files.py`."""
    return isinstance(error, OSError) and error.errno in FULL and not error.filename


def _complain(text: str) -> None:
    """Print an error. Where nobody reads standard error any more, only the exit code tells it."""
    try:
        print("\n".join(map(on_one_line, text.split("\n"))), file=sys.stderr, flush=True)
    except OSError:
        _drop_output(sys.stderr)


def _drop_output(stream: TextIO) -> None:
    """Drop what is left in the buffer of a stream; else Python complains when it ends."""
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
        if verb.partition("=")[0].replace("_", "-") == MAX_PIXELS:
            raise UsageError(f"{MAX_PIXELS} stands behind the verb: resnetkit predict --max-pixels N ...")
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
    """Raise UsageError where the current folder has been removed: torch's libraries would end the process."""
    try:
        Path.cwd()
    except OSError as error:
        raise UsageError(f"the current folder is gone or can't be read ({error.strerror}); cd into another") from error


def _taken(arguments: list[str]) -> tuple[list[str], int | None]:
    """The arguments without --max-pixels, which all verbs share, and its value."""
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
        "  resnetkit VERB --help says more; --debug shows tracebacks; --version prints the version;\n"
        "  --max-pixels N behind the verb takes pictures of up to N pixels (268,435,456 unless it is given)."
    )


def _explain(error: Exception, verb: str) -> str:
    """One or two lines about an error, for the person at the terminal."""
    if isinstance(error, UsageError):
        return f"{verb}: {error}\nSee {verb} --help."
    if isinstance(error, ResnetkitError):
        return f"{verb}: {error}"
    text = str(error)
    if isinstance(error, MemoryError) or any(words in text for words in NO_MEMORY):
        return f"{verb}: out of memory; a smaller --batch-size, or a smaller network, needs less"
    if NO_TEMPORARY in text:
        return f"{verb}: no folder for temporary files can be written; set TMPDIR to one that can"
    if NO_THREAD in text:
        return (
            f"{verb}: no more threads can be started; --workers 0 and OMP_NUM_THREADS=1 need fewer, or raise ulimit -u"
        )
    if (isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)) or "Too many open files" in text:
        return f"{verb}: too many open files; raise the limit, say by ulimit -n 1024"
    if isinstance(error, ImportError):
        return f"{verb}: {error}; the installation is incomplete: pip install --force-reinstall resnetkit"
    if isinstance(error, OSError) and error.strerror:
        return f"{verb}: {error.filename or ('standard output' if _is_full(error) else 'a file')}: {error.strerror}"
    return f"{verb}: internal error: {type(error).__name__}: {error}; run again with --debug"
