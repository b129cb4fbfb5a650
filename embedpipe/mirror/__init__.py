"""Work that needs a disk, for an output in an object store: done in a local folder, and committed to the store.

with at_work("s3://bucket/prior", Scope(own=("checkpoints",))) as place:
    ...write to place.folder...
    place.commit()      # what is there now is in the store, too
"""

from __future__ import annotations

from .copies import local_copy, local_file
from .mirror import Scope
from .paths import working_folder
from .workdir import Place, at_work

__all__ = ["Place", "Scope", "at_work", "local_copy", "local_file", "working_folder"]
