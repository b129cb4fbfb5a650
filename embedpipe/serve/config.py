"""What `serve` is asked for."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from ..clip_model.spec import ModelOptions
from ..errors import OptionError
from ..load.images.source import Images

LEAST_TOKEN = 16
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """Where to serve, to whom, and with what.

    host, port: to listen on; 0 is any free port. token: a secret that every request must carry. allow_origin: the
    addresses (http://name:port) under which browsers may use the server, besides loopback. A host that is not loopback
    needs both. no_model: search by key, row and embedding only. model, pretrained, options: where the encoder is now,
    see `query_encoder`. images: where the image shards are now, see `Images`. selections: the folder that named
    selections are saved in. exact: use no index. thumbnail_mb: of thumbnails kept in memory, MiB.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    allow_origin: tuple[str, ...] = ()
    no_model: bool = False
    model: str | None = None
    pretrained: str | None = None
    options: ModelOptions = field(default_factory=ModelOptions)
    images: Images = None
    selections: str = "selections"
    exact: bool = False
    thumbnail_mb: int = 128

    def __post_init__(self) -> None:
        if self.token is not None and len(self.token) < LEAST_TOKEN:
            raise OptionError(
                f"`token` has {len(self.token)} characters: it must have at least {LEAST_TOKEN}",
                'Make one: python -c "import secrets; print(secrets.token_urlsafe())"',
            )
        if self.token is not None and not (self.token.isascii() and self.token.isprintable()):
            raise OptionError("`token` must be printable ASCII", "Letters, digits, - and _ go through every client")
        for origin in self.allow_origin:
            if not _is_origin(origin):
                raise OptionError(f"`allow_origin={origin!r}`: is no origin", "Write it like http://gpu7:8000")
        if not is_loopback(self.host) and not (self.token and self.allow_origin):
            raise OptionError(
                f"`host={self.host!r}`: others can reach it, so it needs a `token`, and an `allow_origin` for each "
                "address under which it is opened",
                "Or leave it on this machine, and reach it through ssh -L 8000:localhost:8000",
            )
        if self.no_model and (self.model or self.pretrained):
            raise OptionError("`no_model` loads no model, so `model` and `pretrained` say nothing", "Drop one of them")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _is_origin(text: str) -> bool:
    try:
        parts = urlsplit(text)
        named = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return False
    return named and text == f"{parts.scheme}://{parts.netloc}" and "@" not in parts.netloc and "*" not in text
