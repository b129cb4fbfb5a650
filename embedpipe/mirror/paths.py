"""Local paths for remote locations: below `$EMBEDPIPE_CACHE`, or else `~/.cache/embedpipe`.

work/<hash of the url>/<its last name>     the working folder of one output
copies/<hash of the url>/<its last name>   a read-only copy of a run folder
files/<sha256>                             a read-only file, by its content
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from .. import files

_VARIABLE = "EMBEDPIPE_CACHE"


def cache_root() -> str:
    """The root of all local copies. It may be deleted whenever no command is running."""
    said = os.environ.get(_VARIABLE)
    usual = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return said or files.join(usual, "embedpipe")


def working_folder(out: str) -> str:
    """The local working folder for `out`: `out` itself if that is local."""
    return str(files.local_path(out)) if files.is_local(out) else folder_for(out, "work")


def folder_for(url: str, use: str) -> str:
    """The local folder for a url, by use; its name ends with that of the url."""
    url = url.rstrip("/")
    return files.join(cache_root(), use, hashlib.sha256(url.encode()).hexdigest()[:16], url.rpartition("/")[2])
