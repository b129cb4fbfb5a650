"""Commits to an object store.

    OUT/.commits/00000012.json     names every file with its checksum
    OUT/.commits/<sha256>          the bytes of a file that is not yet at its final path

Where several jobs share a folder, their names are prefixes: `image-00000012.json`.

First the bytes are uploaded under their hash, so that two writers cannot interfere. Then the commit is written under
the next number, by a conditional request that only one writer can win. Then every file is copied to its final path;
any process can finish that step.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

import pydantic

from .. import files
from ..errors import DatasetError
from ..files import Written

FOLDER = ".commits"
_FORMAT_VERSION = 1
_FILES: pydantic.TypeAdapter[dict[str, Written]] = pydantic.TypeAdapter(dict[str, Written])


@dataclass(frozen=True, slots=True)
class Commit:
    """The files of a job after its `number`th commit, by path relative to the output."""

    number: int
    files: Mapping[str, Written]

    def encoded(self) -> bytes:
        """The commit as stored bytes."""
        entries = {path: dataclasses.asdict(self.files[path]) for path in sorted(self.files)}
        return (json.dumps({"format_version": _FORMAT_VERSION, "files": entries}, indent=1) + "\n").encode()

    def mark(self) -> str:
        """A unique identifier from its number and content."""
        return f"{self.number}:{hashlib.sha256(self.encoded()).hexdigest()}"


def newest_commit(url: str, name: str) -> Commit | None:
    """The last commit of the job `name` in the store; None before the first. Raises DatasetError if it is damaged."""
    while numbers := _numbers(url, name):
        data = files.read_if_there(_location(url, name, numbers[-1]))
        if data is not None:  # else it has just been replaced by the next one
            return _decoded(_location(url, name, numbers[-1]), numbers[-1], data)
    return None


def add_commit(url: str, name: str, commit: Commit) -> bool:
    """Write a commit; returns False if another writer has taken that number, or a later one."""
    if not files.create(_location(url, name, commit.number), commit.encoded()):
        return False
    return _numbers(url, name)[-1:] == [commit.number]


def forget_before(url: str, name: str, number: int) -> None:
    """Remove superseded commits."""
    for older in _numbers(url, name):
        if older < number:
            files.remove(_location(url, name, older))


def waiting_commits(url: str, name: str) -> dict[str, int]:
    """Checksums and sizes of the files not yet at their final path."""
    found = files.sizes(files.join(url, FOLDER)).items()
    return {it.removeprefix(name): size for it, size in found if re.fullmatch(rf"{re.escape(name)}[0-9a-f]{{64}}", it)}


def waits_at(url: str, name: str, checksum: str) -> str:
    """The location of a file's bytes before they are copied to their final path."""
    return files.join(url, FOLDER, f"{name}{checksum}")


def _location(url: str, name: str, number: int) -> str:
    return files.join(url, FOLDER, f"{name}{number:08d}.json")


def _numbers(url: str, name: str) -> list[int]:
    found = (re.fullmatch(rf"{re.escape(name)}(\d+)\.json", it) for it in files.names(files.join(url, FOLDER)))
    return sorted(int(match[1]) for match in found if match)


def _decoded(location: str, number: int, data: bytes) -> Commit:
    try:
        document = json.loads(data)
        version = document["format_version"]
        if version != _FORMAT_VERSION:
            raise DatasetError(
                f"{location}: format version {version}; this embedpipe reads {_FORMAT_VERSION}", "Upgrade embedpipe"
            )
        return Commit(number, _FILES.validate_python(document["files"]))
    except (ValueError, KeyError, TypeError) as problem:  # pydantic's errors among them
        raise DatasetError(f"{location}: damaged: {str(problem).splitlines()[0]}", "Give another output") from problem
