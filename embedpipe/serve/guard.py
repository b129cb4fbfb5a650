"""Who may ask: the first thing that a request meets, before anything of it is read.

A page of another site, open in the same browser, must neither read nor write here: names of other hosts are refused
(or a name that is made to point at 127.0.0.1 would do, which is DNS rebinding), and so are other origins.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .config import LOOPBACK_NAMES, ServeConfig

MAX_BODY_BYTES = 32 << 20
BODY_SECONDS = 30.0  # for the whole body of a request to arrive
_COOKIE_DAYS = 30
_SECURITY = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
_CORS = {
    "access-control-allow-methods": "GET, POST",
    "access-control-allow-headers": "authorization, content-type",
    "access-control-max-age": "600",
}


class Guard:
    """ASGI middleware that lets a request through or answers it with a refusal."""

    def __init__(self, app: ASGIApp, config: ServeConfig) -> None:
        self._app = app
        self._token = config.token
        self._origins = frozenset(origin.lower() for origin in config.allow_origin)
        self._hosts = {name.lower() for name in LOOPBACK_NAMES}
        self._hosts |= {_host_name(urlsplit(origin).netloc) for origin in self._origins}
        # A cookie goes to all ports of a host: servers with other tokens must not overwrite it.
        digest = hashlib.sha256((self._token or "").encode()).hexdigest()
        self._cookie = f"embedpipe_{digest[:12]}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            return  # no websockets here, and nothing to start or to end
        headers = Headers(scope=scope)
        origin = headers.get("origin", "").lower()
        sending = _with_headers(send, self._headers_for(origin))
        answer = self._refusal(scope, headers, origin) or self._login(scope, headers)
        if answer is not None:
            await answer(scope, receive, sending)
            return
        await self._app(scope, _bounded(receive), sending)

    def _headers_for(self, origin: str) -> Mapping[str, str]:
        if origin not in self._origins:
            return _SECURITY
        shared = {
            "cross-origin-resource-policy": "cross-origin",
            "access-control-allow-origin": origin,
            "vary": "Origin",
        }
        return {**_SECURITY, **shared}

    def _refusal(self, scope: Scope, headers: Headers, origin: str) -> Response | None:
        host = headers.get("host", "").lower()
        if len(headers.getlist("host")) != 1 or _host_name(host) not in self._hosts:
            return _said(403, "this server does not answer to that host name; see allow_origin")
        own = origin in (f"http://{host}", f"https://{host}")
        if origin and not own and origin not in self._origins:
            return _said(403, "pages of that origin may not use this server; see allow_origin")
        if headers.get("sec-fetch-site") == "cross-site" and not origin and headers.get("sec-fetch-mode") != "navigate":
            return _said(403, "pages of other sites may not use this server")
        if scope["method"] == "OPTIONS":
            return Response(status_code=204, headers=_CORS if origin in self._origins else {"allow": "GET, POST"})
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return _said(405, "only GET and POST")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
            return _said(413, f"a request may have {MAX_BODY_BYTES >> 20} MiB")
        return None

    def _login(self, scope: Scope, headers: Headers) -> Response | None:
        """A refusal where the token is missing; a redirect that leaves it out of the address, where that held it."""
        if self._token is None:
            return None
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._is_token(bearer):
            return None
        given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [])
        if given and self._is_token(given[-1]):
            if scope["path"] != "/":
                return None
            answer = RedirectResponse("/", status_code=303)
            age = _COOKIE_DAYS * 86_400
            secure = scope.get("scheme") == "https"
            answer.set_cookie(self._cookie, given[-1], age, httponly=True, samesite="lax", secure=secure)
            return answer
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(self._cookie)
        except CookieError:
            cookie = None
        if cookie is not None and self._is_token(cookie.value):
            return None
        return _said(401, "this server wants its token: open /?token=…, or send Authorization: Bearer …")

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), (self._token or "").encode())


def _said(status: int, text: str) -> Response:
    # The body of the request is not read.
    return PlainTextResponse(f"{text}\n", status, headers={"connection": "close"})


def _host_name(host: str) -> str:
    """The name in a Host header, without the port."""
    name, colon, port = host.rpartition(":")
    return name.lower() if colon and port.isdecimal() else host.lower()


def _with_headers(send: Send, headers: Mapping[str, str]) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            there = MutableHeaders(scope=message)
            for name, value in headers.items():
                there[name] = value
            there.setdefault("cache-control", "no-store")
        await send(message)

    return sending


def _bounded(receive: Receive) -> Receive:
    """`receive`, for so many bytes and seconds in all."""
    deadline = asyncio.get_running_loop().time() + BODY_SECONDS
    seen, whole = 0, False

    async def receiving() -> Message:
        nonlocal seen, whole
        if whole:  # what comes now is the end of the connection, whenever that is
            return await receive()
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            raise HTTPException(408, "the request took too long to arrive", {"connection": "close"}) from None
        seen += len(message.get("body", b""))
        if seen > MAX_BODY_BYTES:
            raise HTTPException(413, f"a request may have {MAX_BODY_BYTES >> 20} MiB", {"connection": "close"})
        whole = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    return receiving
