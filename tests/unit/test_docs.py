"""Docs and code say the same: every command, option, error class and config field is documented."""

import ast
import dataclasses
import importlib
import re
import shlex
import sys
from pathlib import Path

import click
import pytest
from embedpipe_cli.main import COMMANDS, cli

from embedpipe.types import REJECT_CLASSES

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def command_of(name):
    return cli.get_command(click.Context(cli), name)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_an_example(name):
    command = command_of(name)
    assert command.help
    assert command.short_help or command.help.splitlines()[0]
    assert f"embedpipe {name}" in command.help, "no example in its help"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_help(name):
    options = [p for p in command_of(name).params if isinstance(p, click.Option) and not p.hidden]
    assert [o.name for o in options if not o.help] == []


def test_the_command_page_is_what_the_commands_say():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        from generate_cli import reference
    finally:
        sys.path.pop(0)
    assert (ROOT / "docs" / "cli.md").read_text() == reference(), "run `make docs`"


def test_every_reject_class_is_documented():
    page = (ROOT / "docs" / "formats.md").read_text()
    assert [
        f"| `{name}` | {means} |" for name, means in REJECT_CLASSES.items() if f"| `{name}` | {means} |" not in page
    ] == []


def test_every_fetch_error_class_is_documented():
    from embedpipe.fetch import ERROR_CLASSES

    page = (ROOT / "docs" / "fetching.md").read_text()
    assert [name for name in ERROR_CLASSES if f"`{name}`" not in page] == []


def config_classes():
    from dalle2_core.clip.trainable import ClipConfig
    from dalle2_core.presets.prior import prior_recipe

    found = [ClipConfig]

    def visit(kind):
        for field in dataclasses.fields(kind):
            default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
            if dataclasses.is_dataclass(default):
                found.append(type(default))
                visit(type(default))

    visit(type(prior_recipe()))
    return sorted(set(found), key=lambda kind: kind.__name__)


def test_every_training_setting_is_documented():
    """`--set` reaches these: each must be explained in its class's docstring or the training page."""
    page = (ROOT / "docs" / "training.md").read_text()
    missing = [
        f"{kind.__name__}.{field.name}"
        for kind in config_classes()
        for field in dataclasses.fields(kind)
        if f"`{field.name}`" not in page
    ]
    assert missing == []


def test_every_count_of_a_join_is_documented():
    from embedpipe.load.images.join import JoinCounts

    page = (ROOT / "docs" / "training.md").read_text()
    counts = [field.name for field in dataclasses.fields(JoinCounts)]
    assert [name for name in counts if name not in ("rows", "joined") and f"`{name}`" not in page] == []


def test_every_setting_of_the_decoder_is_documented():
    from dalle2_core.decoder.keywords import DecoderKeywords
    from dalle2_core.decoder.stage_config import LowresConfig, StageConfig
    from dalle2_core.networks.unet_config import UnetConfig

    page = (ROOT / "docs" / "decoder.md").read_text()
    missing = [
        f"{kind.__name__}.{field.name}"
        for kind in (UnetConfig, StageConfig, LowresConfig, DecoderKeywords)
        for field in dataclasses.fields(kind)
        if f"`{field.name}`" not in page
    ]
    assert missing == []


def test_every_setting_of_the_autoencoder_is_documented():
    from dalle2_core.networks.vqgan_config import VaeConfig
    from dalle2_core.training.vqgan_trainer import VaeTrainerConfig

    page = (ROOT / "docs" / "latent.md").read_text()
    fields = [field.name for kind in (VaeConfig, VaeTrainerConfig) for field in dataclasses.fields(kind)]
    assert [name for name in fields if f"`{name}`" not in page and name != "betas"] == []


def shown_commands():
    for page in PAGES:
        for line in re.sub(r"\\\n\s*", "", page.read_text()).splitlines():
            match = re.match(r"^\s*(?:\$ )?(embedpipe [a-z].*)$", line)
            if match and not match[1].startswith("embedpipe is"):
                yield pytest.param(match[1].split("  #")[0], id=f"{page.name}: {match[1][:50]}")


@pytest.mark.parametrize("line", list(shown_commands()))
def test_commands_in_the_docs_parse(line):
    words = shlex.split(line)[1:]
    if words[0] not in COMMANDS:
        pytest.fail(f"no command {words[0]!r}")
    command = command_of(words[0])
    options = {opt for p in command.params if isinstance(p, click.Option) for opt in (*p.opts, *p.secondary_opts)}
    used = [word.split("=")[0] for word in words[1:] if re.match(r"^--?[a-z]", word)]
    assert [option for option in used if option not in options | {"--help", "-h"}] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_every_reason_to_pass_something_over_is_documented():
    from embedpipe.accounts import PASSED_OVER

    page = (ROOT / "docs" / "formats.md").read_text()
    assert [name for name, means in PASSED_OVER.items() if f"| `{name}` | {means} |" not in page] == []


def code_blocks():
    for page in PAGES:
        for number, code in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S), 1):
            yield pytest.param(code, id=f"{page.stem}-{number}")


@pytest.mark.parametrize("code", list(code_blocks()))
def test_what_an_example_names_is_there(code):
    missing = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("embedpipe", "dalle2_core"):
            module, names = node.module, [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("embedpipe", "dalle2_core"):
            module, names = ast.unparse(node.value), [node.attr]
        else:
            continue
        missing += [f"{module}.{name}" for name in names if not hasattr(importlib.import_module(module), name)]
    assert missing == []
