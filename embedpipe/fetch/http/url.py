"""Urls as browsers read them: the parser of the URL standard (https://url.spec.whatwg.org), for http and https.

Blanks around a url, tabs and line breaks in it are dropped; other blanks and characters outside ASCII are
percent-encoded; host names follow UTS 46 (IDNA 2008, without transitional processing); `\\` is `/`; dot segments are
resolved; the default port and the fragment are dropped.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import unicodedata
from urllib.parse import unquote_to_bytes, urlsplit

import idna

_AROUND = "".join(map(chr, range(0x21)))
_DROPPED = str.maketrans("", "", "\t\n\r")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_CONTROLS = frozenset(map(chr, [*range(0x20), 0x7F]))
# Most urls are normal already; the two patterns of `normalised` may miss some that are.
_NORMAL = re.compile(r"https?://(?:[a-z0-9-]+\.)+[a-z]{2,}/[A-Za-z0-9\-._~!$&()*+,;=:@%/?]*")
# The standard's percent-encode sets; characters outside ASCII are in all of them.
_QUERY = _CONTROLS | set(" \"#<>'")
_PATH = _CONTROLS | set(' "#<>?^`{}')
_USERINFO = _PATH | set("/:;=@[\\]|")
_FORBIDDEN_IN_DOMAINS = _CONTROLS | set(" #/:<>?@[\\]^|%")
_SINGLE_DOT = frozenset({".", "%2e"})
_DOUBLE_DOT = frozenset({"..", ".%2e", "%2e.", "%2e%2e"})


class InvalidUrl(ValueError):
    """Text that is no http or https url; the message says why."""


def normalised(text: str) -> str:
    """The url that a browser would request for `text`, in ASCII and without a fragment. Raises InvalidUrl."""
    if _NORMAL.fullmatch(text) and "/." not in text and "/%2" not in text:
        return text
    text = text.strip(_AROUND).translate(_DROPPED)
    found = _SCHEME.match(text)
    if found is None:
        raise InvalidUrl("no scheme: urls begin with http:// or https://" if text else "no url")
    scheme = found[1].lower()
    if scheme not in _DEFAULT_PORTS:
        raise InvalidUrl(f"scheme {scheme!r}: only http and https are fetched")
    rest = text[found.end() :].partition("#")[0].lstrip("/\\")
    rest, asked, query = rest.partition("?")
    rest = rest.replace("\\", "/")
    authority, _, path = rest.partition("/")
    origin = f"{scheme}://{_authority(authority, _DEFAULT_PORTS[scheme])}"
    query = _encoded(query, _QUERY) if asked else ""
    return f"{origin}{_path(path)}{asked}{query}"


def is_url(text: str | None) -> bool:
    """Whether `text` is an http or https url."""
    try:
        return bool(normalised(text or ""))
    except InvalidUrl:
        return False


def host_of(text: str | None) -> str | None:
    """The host of a url, as `normalised` writes it, or that of a url which is none of http; None if it has none."""
    try:
        authority = normalised(text or "").split("/")[2]
    except InvalidUrl:
        with contextlib.suppress(ValueError):
            return urlsplit(text or "").hostname
        return None
    host = authority.rpartition("@")[2]
    return host.partition("]")[0][1:] if host.startswith("[") else host.partition(":")[0]


def _authority(text: str, default_port: str) -> str:
    credentials, at, place = text.rpartition("@")
    host, port = place, ""
    if ":" in place and not place.endswith("]"):
        host, _, port = place.rpartition(":")
    if not host:
        raise InvalidUrl("no host")
    if port and not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise InvalidUrl(f"port {port[:20]!r}: must be a number below 65536")
    port = str(int(port)) if port else ""
    shown = f":{port}" if port and port != default_port else ""
    return f"{_credentials(credentials) if at else ''}{_host(host)}{shown}"


def _credentials(text: str) -> str:
    name, _, password = text.partition(":")
    name, password = _encoded(name, _USERINFO), _encoded(password, _USERINFO)
    return f"{name}{':' if password else ''}{password}@" if name or password else ""


def _host(text: str) -> str:
    if text.startswith("["):
        return _ipv6(text)
    try:
        name = unquote_to_bytes(text).decode() if "%" in text else text
    except UnicodeDecodeError:
        raise InvalidUrl(f"host {text[:80]!r}: not UTF-8") from None
    name = _domain(name)
    if not name or any(character in _FORBIDDEN_IN_DOMAINS for character in name):
        raise InvalidUrl(f"host {text[:80]!r}: not a host name")
    return _ipv4(name) if _ends_in_number(name) else name


def _ipv6(text: str) -> str:
    try:
        if not text.endswith("]") or "%" in text:
            raise ValueError
        address = ipaddress.IPv6Address(text[1:-1])
    except ValueError:
        raise InvalidUrl(f"host {text[:80]!r}: not an IPv6 address") from None
    # Always in hexadecimal: Python writes some addresses with a dotted end.
    return f"[{ipaddress.IPv6Address(int(address)).compressed if address.ipv4_mapped is None else _mapped(address)}]"


def _mapped(address: ipaddress.IPv6Address) -> str:
    low = int(address) & 0xFFFFFFFF
    return f"::ffff:{low >> 16:x}:{low & 0xFFFF:x}"


def _domain(name: str) -> str:
    """A name in ASCII, as UTS 46 maps it. Raises InvalidUrl for labels that it does not allow."""
    if name.isascii():  # also one that is no valid punycode: the resolver will tell
        return name.lower()
    try:
        labels = idna.uts46_remap(name, std3_rules=False, transitional=False).split(".")
        return ".".join(map(_label, labels))
    except InvalidUrl:
        raise
    except (ValueError, IndexError, OverflowError) as problem:  # idna's own errors are ValueErrors
        raise InvalidUrl(f"host {name[:80]!r}: {problem}") from None


def _label(label: str) -> str:
    """One label in ASCII; UTS 46's validity criteria, which allow more characters (emoji) than idna's own check."""
    if label.startswith("xn--"):
        text = label[4:].encode("ascii").decode("punycode")
        if not text or text.isascii() or idna.uts46_remap(text, std3_rules=False, transitional=False) != text:
            raise InvalidUrl(f"host: {label!r} is no valid label")
        _require_valid(text)
        if text.encode("punycode").decode("ascii") != label[4:]:
            raise InvalidUrl(f"host: {label!r} is no valid label")
        return label
    if label.isascii():
        return label
    _require_valid(label)
    return "xn--" + label.encode("punycode").decode("ascii")


def _require_valid(label: str) -> None:
    if unicodedata.category(label[0]).startswith("M"):
        raise InvalidUrl(f"host: {label!r} begins with a combining mark")
    if any(unicodedata.category(character) == "Cn" for character in label):
        raise InvalidUrl(f"host: {label!r} has a character that is not assigned")
    if any(unicodedata.bidirectional(character) in ("R", "AL", "AN") for character in label):
        idna.check_bidi(label)
    for position, character in enumerate(label):
        if character in "\u200c\u200d" and not idna.valid_contextj(label, position):
            raise InvalidUrl(f"host: {label!r} has a joiner where none may be")


def _ends_in_number(name: str) -> bool:
    labels = name.removesuffix(".").split(".")
    return labels[-1].isdigit() or re.fullmatch(r"0[xX][0-9A-Fa-f]*", labels[-1]) is not None


def _ipv4(name: str) -> str:
    labels = name.removesuffix(".").split(".")
    try:
        numbers = [_number(label) for label in labels]
        if len(numbers) > 4 or max(numbers[:-1], default=0) > 255 or numbers[-1] >= 256 ** (5 - len(numbers)):
            raise ValueError
    except ValueError:
        raise InvalidUrl(f"host {name[:80]!r}: not an IPv4 address") from None
    head = sum(number << 8 * (3 - place) for place, number in enumerate(numbers[:-1]))
    return str(ipaddress.IPv4Address(head + numbers[-1]))


def _number(label: str) -> int:
    if not label or not label.isalnum() or not label.isascii():
        raise ValueError
    if label[:2].lower() == "0x":
        return int(label[2:] or "0", 16)
    return int(label, 8) if len(label) > 1 and label[0] == "0" else int(label, 10)


def _path(text: str) -> str:
    kept: list[str] = []
    segments = text.split("/")
    for place, segment in enumerate(segments):
        last = place == len(segments) - 1
        if segment.lower() in _DOUBLE_DOT:
            del kept[-1:]
            segment = ""
        elif segment.lower() in _SINGLE_DOT:
            segment = ""
        else:
            kept.append(_encoded(segment, _PATH))
            continue
        if last:
            kept.append(segment)
    return "/" + "/".join(kept)


def _encoded(text: str, encoded: frozenset[str]) -> str:
    if text.isascii() and encoded.isdisjoint(text):
        return text
    return "".join(
        "".join(f"%{byte:02X}" for byte in character.encode()) if character > "~" or character in encoded else character
        for character in text
    )
