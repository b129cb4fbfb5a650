"""Text of data for people to see: what would act on a terminal, reorder a line or hide in it is written out.

Captions, keys, urls, column and model names and the answers of servers may hold anything: escape sequences that write
the clipboard, marks that turn a line around, characters of no width.
"""

from __future__ import annotations

import re

# Unicode's control and format characters, lone surrogates, line and paragraph separators: Cc, Cf, Cs, Zl, Zp.
_HIDDEN = (
    "\x00-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    "\ud800-\udfff\ufeff\ufff9-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff"
)
# Letters and a pattern that are drawn as nothing, and selectors of other drawings.
_BLANK = "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u2800\u3164\ufe00-\ufe0e\uffa0"
_ALL = re.compile(f"[{_HIDDEN}{_BLANK}]")
_BUT_LINES = re.compile(f"(?![\n\t])[{_HIDDEN}{_BLANK}]")


def visible(text: str, one_line: bool = True) -> str:
    r"""`text` with hidden characters as Python writes them.

    one_line: line feeds and tabs too; else they stay.

    >>> visible("a\x1b[2Jb\u202ec\nd")
    'a\\x1b[2Jb\\u202ec\\nd'
    """
    if text.isascii() and text.isprintable():
        return text
    return (_ALL if one_line else _BUT_LINES).sub(lambda found: _written(found[0]), text)


def _written(character: str) -> str:
    short = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(character)
    if short is not None:
        return short
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
