"""Take secrets out of text: passwords, tokens and signatures in urls. What is stored or printed goes through it.

    ftp://me:SECRET@host/x                 ftp://***@host/x
    https://host/x.tar?X-Amz-Signature=…   https://host/x.tar?X-Amz-Signature=***

The run itself uses the url as it was given. A url that was signed anew is the same one without its secrets.
"""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "***"

# Up to the last @ of the authority. `abfs://container@account` and `ssh://user@host` hold no secret, a token may stand
# alone before the host of http and ftp.
_USER = re.compile(r"(?i)\b((?:https?|ftps?|webdavs?|wss?)://|[a-z][a-z0-9+.-]*://(?=[^/?#\s\"'<>@]*:))[^/?#\s\"'<>]*@")
# Parameters of urls that are secret, or belong to a signature and change with it.
_PARAMETER = re.compile(
    r"""(?ix) ([?&;\#] (?:
        [\w.-]* (?: token | secret | signature | password | passwd | credentials? )
      | [\w.-]* (?: api_?-?key | access_?-?key (?:_?-?id)? )
      | (?: [\w.-]*[_.-] )? (?: key | sig | auth | pwd | pass | jwt | hmac | policy )
      | x-(?: amz | goog | oss | obs | cos | bce | ms | tos )-[\w-]+
      | authorization | session_?-?id | sid | sas | sessid | googleaccessid | key-pair-id | expires | expiry
    ) = ) [^&;\#\s"'<>]+""",
)
# Azure's shared access signature: all of these change when it is made anew.
_SAS = re.compile(r"""(?i)([?&](?:s[vreptsi]|spr|sks|skv|ske|skt|skoid|sktid|saoid|sdd|ss|srt|sip)=)[^&\#\s"'<>]+""")
_HAS_SAS = re.compile(r"(?i)[?&]sig=")
# Besides urls, in messages of servers and libraries.
_HEADER = re.compile(r"(?i)\b(bearer|basic)\s+[\w+/=.~-]{8,}")
_ACCESS_KEY = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b")
_SETTING = re.compile(
    r"""(?ix) \b ( [\w-]* (?: secret | password | passwd | account_key | sas_token | access_key | session_token
        | access_token | accesskeyid )[\w-]* ["']? \s* [=:>] \s* ["']? ) (?!\*{3}) [^\s"',;&<>)}\]]+ """,
)
_USERINFO = re.compile(r"[A-Za-z][\w+.-]*://([^/?#\s]*)@")
_SUSPECT = re.compile(r"(?i)[@=]|bearer|basic|A[KS]IA|secret|passw|key|token")


def redacted(text: str) -> str:
    """`text` without secrets of urls and settings. Applying it twice changes nothing more."""
    if not _SUSPECT.search(text):
        return text
    text = _USER.sub(rf"\1{HIDDEN}@", text)
    if _HAS_SAS.search(text):
        text = _SAS.sub(rf"\1{HIDDEN}", text)
    text = _PARAMETER.sub(rf"\1{HIDDEN}", text)
    text = _HEADER.sub(rf"\1 {HIDDEN}", text)
    text = _ACCESS_KEY.sub(HIDDEN, text)
    return _SETTING.sub(rf"\1{HIDDEN}", text)


def without_user_of(location: str, text: str) -> str:
    """`text`, which somebody else's library says of `location`, without the user and password in that url."""
    found = _USERINFO.match(location)
    if found is None:
        return text
    for secret in (found[1], found[1].partition(":")[2]):
        text = text.replace(secret, HIDDEN) if secret else text
    return text


def redacted_values(value: Any) -> Any:
    """`value` with `redacted` strings, at any depth of dicts, lists and tuples; names of entries stay."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return {name: redacted_values(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(redacted_values, value)) if type(value) in (list, tuple) else value
    return value
