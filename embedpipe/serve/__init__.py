"""A page and an API over embedding data sets. `embedpipe.serve(...)` is `embedpipe.serve.job.serve`.

Needs the extra `serve`: Starlette and uvicorn are imported when a server is opened, not with this package.
"""

from __future__ import annotations

from ..callable_package import callable_as
from .config import ServeConfig

__all__ = ["ServeConfig"]

callable_as(__name__, ".job:serve")
