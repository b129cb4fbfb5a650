"""One writer per output: a lock that ends with its owner, however that dies."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator

from . import files
from .errors import OutputBusy

_LOCK_FILE = ".lock"


@contextlib.contextmanager
def exclusive(root: str) -> Iterator[None]:
    """Hold `root` for this process. Raises OutputBusy, naming the owner, while another holds it.

    The kernel drops the lock with the process, so a killed run leaves nothing to break by hand. Object stores have no
    such lock; there the manifests alone keep two writers from harm (same input and options give the same bytes).
    """
    if not files.is_local(root):
        yield
        return
    path = files.local_path(root) / _LOCK_FILE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as problem:
        raise files.unwritable(root, problem) from problem
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as problem:
            raise OutputBusy(
                f"{root}: in use by {_owner(descriptor)}", "Wait for it to end, or give another output folder"
            ) from problem
        os.ftruncate(descriptor, 0)
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": int(time.time())}
        os.pwrite(descriptor, json.dumps(owner).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _owner(descriptor: int) -> str:
    try:
        owner = json.loads(os.pread(descriptor, 4096, 0))
        seconds = max(0, round(time.time() - owner["since"]))
        age = f"{seconds} s" if seconds < 120 else f"{seconds // 60} min"
        return f"process {owner['pid']} on {owner['host']} for {age}"
    except (ValueError, KeyError, TypeError):
        return "another process"
