"""The parts that docs/extending.md adds, made and registered from its code blocks.

As a pytest plugin (`-p tests.extending`, with EXTENDING_FOLDER) the contract tests take them like any other.
"""

import json
import os
import re
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "extending.md"


def code_blocks():
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def register(folder):
    """Write the page's files into `folder`, which becomes importable, and run its lines; the blocks that use them."""
    sys.path.insert(0, str(folder))
    uses = []
    for block in code_blocks():
        if named := re.match(r"# (\w+\.py)\n", block):
            (Path(folder) / named[1]).write_text(block)
        elif re.search(r"^(PRIORS|EXPORTS)\[", block, re.MULTILINE):
            exec(compile(block, str(PAGE), "exec"), {})
        else:
            uses.append(block)
    return uses


def json_lines(out):
    """The reader that a new layout brings for the round trip: {key: (image, text, caption)}."""
    rows = [json.loads(line) for path in sorted(Path(out).glob("*.jsonl")) for line in path.open()]
    return {row["key"]: (row["image"], row["text"], row["caption"]) for row in rows}


if "EXTENDING_FOLDER" in os.environ:
    register(os.environ["EXTENDING_FOLDER"])
    from tests import outside

    outside.READERS["jsonl"] = (json_lines,)
