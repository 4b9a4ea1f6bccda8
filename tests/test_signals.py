"""Requests to stop: signals that are noted, signals that interrupt, and handlers that are restored."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from resnetkit.train.signals import Signals

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def handlers():
    """Restore pytest's own handlers after every test."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_noted(number, handlers):
    with Signals() as signals:
        assert signals.received == 0
        signal.raise_signal(number)
        assert signals.received == number
    assert {number: signal.getsignal(number) for number in SIGNALS} == handlers


def test_only_a_second_sigint_interrupts_at_once():
    with Signals() as signals:
        for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM):  # as when a terminal is closed
            signal.raise_signal(number)
        assert signals.received == signal.SIGHUP
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_what_nohup_ignores_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Signals() as signals:
        signal.raise_signal(signal.SIGHUP)
        assert signals.received == 0


def test_a_handler_of_c_code_stays():
    """In a separate process. libc's abs represents the handler of a program that embeds Python."""
    code = """
import ctypes, signal, sys
libc = ctypes.CDLL(None)
libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
handler = ctypes.cast(libc.abs, ctypes.c_void_p).value
libc.signal(signal.SIGTERM, handler)
del sys.modules["signal"], sys.modules["_signal"]
import signal  # Python learns anew who handles what
assert signal.getsignal(signal.SIGTERM) is None
from resnetkit.train.signals import Signals
with Signals() as signals:
    signal.raise_signal(signal.SIGTERM)
    assert not signals.received
assert libc.signal(signal.SIGTERM, handler) == handler, "it is still there"
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
