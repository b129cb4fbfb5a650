"""Functions for a limited child process that end badly: at the top of a module, so that the child can import them."""

import ctypes
import os
import signal
import time


def echo(data, *arguments):
    return data, arguments, os.getpid()


def segfault(data):
    ctypes.string_at(0)


def abort(data):
    os.abort()


def leave(data):
    os._exit(0)


def raise_exit(data):
    raise SystemExit(3)


def kill(data):
    os.kill(os.getpid(), signal.SIGKILL)


def spin(data):
    while True:
        pass


def sleep(data):
    time.sleep(3600)


def hoard(data, size=1 << 29):
    return len(bytearray(size))


def hoard_natively(data):
    import numpy

    return numpy.ones(1 << 27).sum()


def mistake(data):
    return 1 / 0


_POISONED = []


def poison(data):
    _POISONED.append(True)


def suffer(data):
    """Crashes in a process that `poison` was called in."""
    if _POISONED:
        os.abort()
    return data


def nap(data, seconds):
    begun = time.monotonic()
    time.sleep(seconds)
    return begun, time.monotonic()


def prepare():
    import numpy  # noqa: F401


def unprepared():
    raise RuntimeError("not here")
