"""Local working folders for outputs in an object store: work on disk, then commit to the store.

with at_work("s3://bucket/prior", Scope(own=("checkpoints",))) as place:
    ...write to place.folder...
    place.commit()      # the store now has the same files
"""

from __future__ import annotations

from .copies import local_copy, local_file
from .mirror import Scope
from .paths import working_folder
from .workdir import Place, at_work

__all__ = ["Place", "Scope", "at_work", "local_copy", "local_file", "working_folder"]
