"""A Pillow that crashes on marked images, in every process that a test starts: the decoder's bug that nobody knows yet.

Python imports a module named sitecustomize at its start, if there is one on PYTHONPATH, so that workers and the
processes they decode in have the fault whatever starts them.
"""

import io
import os

import pytest

from embedpipe.images import guarded
from tests import shards

_SITECUSTOMIZE = """
import ctypes, os, time
from PIL import ImageFile

def opened(self, stream=None, *arguments, _init=ImageFile.ImageFile.__init__, **options):
    data = stream.getvalue() if hasattr(stream, "getvalue") else b""
    for mark, crash in CRASHES.items():
        if mark in data:
            crash()
    _init(self, stream, *arguments, **options)

def spin():
    while True:
        pass

CRASHES = {
    b"mark:segfault": lambda: ctypes.string_at(0),
    b"mark:abort": os.abort,
    b"mark:leave": lambda: os._exit(0),
    b"mark:spin": spin,
    b"mark:sleep": lambda: time.sleep(3600),
}
ImageFile.ImageFile.__init__ = opened
"""


def marked(how, format="TIFF"):
    """An image that Pillow crashes on: a TIFF, which is decoded in a child, or a PNG, which is not."""
    from PIL.PngImagePlugin import PngInfo

    stream = io.BytesIO()
    if format == "PNG":
        info = PngInfo()
        info.add_text("Comment", f"mark:{how}")
        shards.pixels(9).save(stream, "PNG", pnginfo=info)
    else:
        shards.pixels(9).save(stream, format, description=f"mark:{how}")
    return stream.getvalue()


@pytest.fixture
def faulty_pillow(tmp_path_factory, monkeypatch):
    """Processes started within the test have a Pillow that crashes on `marked` images."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(_SITECUSTOMIZE)
    before = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep + before if before else ''}")
    guarded._CALLS.close()  # the next children have the fault
    yield
    guarded._CALLS.close()
