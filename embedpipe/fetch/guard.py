"""Which urls are not asked for at all.

Looks at the text of a url only: a name that resolves to a private address passes here.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from .outcome import Failure


def refusal(url: str | None, allow_hosts: Collection[str] = ()) -> Failure | None:
    """Why `url` must not be fetched, or None when it may. `allow_hosts` are hosts taken whatever their address."""
    if url is None or not url.strip():
        return Failure("invalid_url", "no url")
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port  # raises for a port that is none
    except ValueError as problem:
        return Failure("invalid_url", str(problem))
    if parts.scheme not in ("http", "https"):
        return Failure("invalid_url", f"scheme {parts.scheme!r}: only http and https are fetched")
    if not host:
        return Failure("invalid_url", "no host")
    if any(character <= " " or character == "\x7f" for character in url):
        return Failure("invalid_url", "blanks or control characters in the url")
    if host in allow_hosts or not _is_internal(host):
        return None
    return Failure("refused_address", f"{host} is not a public address (see --allow-host)")


def _is_internal(host: str) -> bool:
    name = host.rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    address = _literal_address(name)
    if address is None:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return not (mapped or address).is_global


def _literal_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that `host` spells, in any notation that the C library's inet_aton takes (2130706433, 0x7f.1)."""
    try:
        return ipaddress.ip_address(host.split("%")[0])
    except ValueError:
        pass
    pieces = host.split(".")
    try:
        numbers = [int(p, 16 if p[:2] == "0x" else 8 if len(p) > 1 and p[0] == "0" else 10) for p in pieces]
    except ValueError:
        return None
    tail_bytes = 5 - len(numbers)
    if not 1 <= tail_bytes <= 4 or any(not 0 <= n < 256 for n in numbers[:-1]) or numbers[-1] >= 256**tail_bytes:
        return None
    head = b"".join(n.to_bytes(1, "big") for n in numbers[:-1])
    return ipaddress.IPv4Address(head + numbers[-1].to_bytes(tail_bytes, "big"))
