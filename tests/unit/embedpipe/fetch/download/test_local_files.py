"""Images from local files: what the file is to blame for, and what this machine is."""

import contextlib
import os
import resource

import pytest

from embedpipe.errors import OutOfResources
from embedpipe.fetch.download.local_files import read_files_below, read_local_files
from tests.bodies import photo


@contextlib.contextmanager
def no_more_open_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    descriptor = os.open(os.devnull, os.O_RDONLY)
    os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptor, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("read", [read_files_below, read_local_files])
def test_a_lack_of_open_files_is_no_failure_of_an_image(tmp_path, read):
    (tmp_path / "a.jpg").write_bytes(photo(1))
    path = str(tmp_path / "a.jpg").encode()
    with no_more_open_files(), pytest.raises(OutOfResources, match="open files"):
        list(read(str(tmp_path), [path], 10_000_000))
    ((_, answer),) = read(str(tmp_path), [path], 10_000_000)
    assert answer.body == photo(1)
