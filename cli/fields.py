"""The libraries name a field in backticks, as Python callers know it; a user reads the option of the command that runs.

    `top=30`: must be at most 1              --top 30: must be at most 1
    Give `drop_nonfinite=True`               Give --drop-nonfinite
    Give `network.dim=512`                   Give --set network.dim=512
    Run `embedpipe.verify(repair=True)`      Run `embedpipe verify --repair`

A name that is no option of the command stays as it is.
"""

from __future__ import annotations

import ast
import importlib
import re
import shlex

import click

_IN_BACKTICKS = re.compile(r"""`((?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^`'"])+)`""")
_FIELD = re.compile(r"([a-z]\w*(?:\.\w+)*)(?:=(.+))?", re.DOTALL)
_CALL = re.compile(r"embedpipe\.\w+\(.*\)", re.DOTALL)

# By command, where its parameter is called otherwise than the library's field.
RENAMED = {
    "fetch": {"timeout_s": "timeout"},
    "encode": {
        "compile": "compile_model",
        "decode_threads": "threads",
        "dtype": "embedding_dtype",
        "file_column": "file_col",
        "format": "storage",
        "image_column": "image_col",
        "images=False": "no_image=True",
        "input": "input_format",
        "key_column": "key_col",
        "part": "shard_of",
        "texts=False": "no_text=True",
        "threads_per_worker": "threads",
    },
    "export": {"dtype": "embedding_dtype"},
    "generate": {"column": "caption_column"},
}
_FUNCTIONS = {"build_index": "index"}
_AS_OPTION = {"trust_model": "--trust-model"}  # calls that are an option of the command that runs

_state = {"running": ""}


def set_running(command: str) -> None:
    """The command, by name, whose options `with_options` speaks of from now on."""
    _state["running"] = command


def with_options(text: str, command: str = "") -> str:
    """`text` with the fields that it names in backticks as options of `command`, or of the one that runs."""
    name = command or _state["running"]
    if not name or "`" not in text:
        return text
    return _IN_BACKTICKS.sub(lambda found: _translated(found[1], name) or found[0], text)


def _translated(code: str, command: str) -> str | None:
    if _CALL.fullmatch(code):
        return _command_line(code)
    renamed = RENAMED.get(command, {})
    found = _FIELD.fullmatch(renamed.get(code, code))
    if found is None:
        return None
    name, value = renamed.get(found[1], found[1]), found[2]
    parameters = _parameters(command)
    if name in parameters:
        return _option(parameters[name], value)
    return f"--set {found[0]}" if "." in name and value is not None and "settings" in parameters else None


def _parameters(command: str) -> dict[str, click.Parameter]:
    module = importlib.import_module(f".commands.{command.replace('-', '_')}", __package__)
    return {parameter.name: parameter for parameter in module.command.params}


def _option(parameter: click.Parameter, value: str | None) -> str | None:
    """The parameter as it is typed. value: as Python writes it; None: the parameter alone."""
    if not isinstance(parameter, click.Option):
        return parameter.human_readable_name if value is None else None
    on, off = (max(names, key=len, default=None) for names in (parameter.opts, parameter.secondary_opts))
    if value is None:
        return " or ".join(filter(None, (on, off)))
    return {"True": on, "False": off}.get(value) if parameter.is_flag else f"{on} {_typed(value)}"


def _typed(value: str) -> str:
    """A Python value as a word of a shell; what is no literal (a placeholder) as it is."""
    try:
        text = str(ast.literal_eval(value))
    except (ValueError, SyntaxError):
        return value
    return text if shlex.quote(text) == text else value


def _command_line(code: str) -> str | None:
    """`embedpipe.function('path', field=value)` as the command of that function; None where it has no such options."""
    try:
        call = ast.parse(code, mode="eval").body
    except SyntaxError:
        return None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
        return None
    if call.func.attr in _AS_OPTION:
        return _AS_OPTION[call.func.attr]
    command = _FUNCTIONS.get(call.func.attr, call.func.attr).replace("_", "-")
    words = [_typed(ast.unparse(argument)) for argument in call.args]
    try:
        options = [_translated(f"{it.arg}={ast.unparse(it.value)}", command) for it in call.keywords]
    except ImportError:
        return None
    return None if None in options else f"`embedpipe {' '.join([command, *words, *map(str, options)])}`"
