"""SSRF guard: refuses urls by their text, and addresses after a name is resolved.

The text is checked first (`refusal`). The addresses of a name are checked where the connection is made (`usable`), and
the connection goes to exactly one of those that passed, so the name cannot resolve differently in between.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from ipaddress import ip_address
from urllib.parse import urlsplit

from ..outcome import Failure, NotFetched
from . import public_addresses
from .url import InvalidUrl, normalised

_DEFAULT_PORTS = {"http": 80, "https": 443}


def refusal(url: str | None, allow_hosts: Collection[str] = ()) -> Failure | None:
    """Why `url` must not be fetched, judged by its text; None if it may.

    `allow_hosts` are accepted whatever their address: `HOST` or `HOST:PORT`, names or addresses.
    """
    if url is None or not url.strip():
        return Failure("invalid_url", "no url")
    try:
        parts = urlsplit(url)
        host = parts.hostname
        port = parts.port  # raises for an invalid port
    except ValueError as problem:
        return Failure("invalid_url", str(problem))
    if parts.scheme not in _DEFAULT_PORTS:
        return Failure("invalid_url", f"scheme {parts.scheme!r}: only http and https are fetched")
    if not host:
        return Failure("invalid_url", "no host")
    if any(character <= " " or character == "\x7f" for character in url):
        return Failure("invalid_url", "blanks or control characters in the url")
    if allows(host, port or _DEFAULT_PORTS[parts.scheme], allow_hosts) or not _spells_internal(host):
        return None
    return Failure("refused_address", f"{host} is not a public address (see `allow_hosts`)")


def requested(text: str | None, allow_hosts: Collection[str] = ()) -> str | Failure:
    """The url to request for a table's `text`, or why there is none."""
    try:
        url = normalised(text or "")
    except InvalidUrl as problem:
        return Failure("invalid_url", str(problem))
    return refusal(url, allow_hosts) or url


def usable(host: str, port: int, found: Sequence[str], allow_hosts: Collection[str] = ()) -> Sequence[str]:
    """The addresses in `found` for `host` that may be connected to. Raises NotFetched if there are none."""
    if allows(host, port, allow_hosts):
        return found
    public = [address for address in found if public_addresses.is_public(ip_address(address))]
    if not public:
        shown = ", ".join(found[:3])
        raise NotFetched(
            Failure("refused_address", f"{host} resolves to {shown}: not a public address (see `allow_hosts`)")
        )
    return public


def allows(host: str, port: int, allow_hosts: Collection[str]) -> bool:
    """Whether `allow_hosts` includes this host, on this port."""
    return any(
        name == _plain(host) and asked_port in (None, port) for name, asked_port in map(host_and_port, allow_hosts)
    )


@lru_cache(maxsize=1024)
def host_and_port(entry: str) -> tuple[str, int | None]:
    """Split `HOST`, `HOST:PORT`, `ADDRESS` or `[ADDRESS]:PORT`. Raises ValueError for anything else."""
    try:
        return _plain(str(ip_address(entry))), None
    except ValueError:
        pass
    parts = urlsplit(f"//{entry}")
    if not parts.hostname or parts.path or parts.query or parts.fragment or parts.username is not None:
        raise ValueError(f"{entry!r} is no host")
    return _plain(parts.hostname), parts.port


def _plain(host: str) -> str:
    return host.lower().rstrip(".")


def _spells_internal(host: str) -> bool:
    name = _plain(host)
    if name == "localhost" or name.endswith(".localhost"):
        return True
    address = public_addresses.spelled_by(name)
    return address is not None and not public_addresses.is_public(address)
