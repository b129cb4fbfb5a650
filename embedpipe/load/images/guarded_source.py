"""Whether the location of the images that a data set names may be opened."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from ... import files
from ...consent import gave_source, remember_source
from ...redact import redacted
from ...types import SourceShard

logger = logging.getLogger("embedpipe")


def guarded_source(dataset: str, source: str, shards: Sequence[SourceShard]) -> str:
    """`source` if it may be opened, else an empty string, with a warning that says how to have it opened.

    dataset: the location of the data set that names `source` as where its input shards `shards` were. It may be opened
    if this user encoded these shards from there, or if it lies in the data set itself, or in the same bucket or server.
    A location that the user gives is not guarded: pass it to `given_source`.
    """
    if not source or _inside(dataset, source) or gave_source(source, shards):
        return source
    logger.warning("%s: its pictures are said to lie in %s; give it with `images` to use it", dataset, source)
    return ""


def given_source(source: str, recorded: str, shards: Sequence[SourceShard]) -> str:
    """`source`, which the user gave; remembered if it is also the recorded one."""
    if redacted(files.absolute(source)) == redacted(recorded):
        remember_source(recorded, shards)
    return source


def _inside(dataset: str, source: str) -> bool:
    """Whether opening `source` opens nothing that the user did not give with the data set."""
    if files.is_local(dataset) != files.is_local(source):
        return False
    if files.is_local(dataset):
        inner, outer = (os.path.realpath(files.local_path(it)) for it in (source, dataset))
        return os.path.commonpath([inner, outer]) == outer
    return _store(dataset) == _store(source)


def _store(url: str) -> tuple[str, str]:
    """Protocol and bucket or server of a url; of a chained one (`zip::…`) nothing that another could equal."""
    protocol, _, rest = url.partition("://")
    return protocol, url if "::" in url else rest.partition("/")[0]
