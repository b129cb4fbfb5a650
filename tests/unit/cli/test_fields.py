"""What the libraries name in backticks is a field to Python callers, and an option to those who run a command."""

import ast
import dataclasses
import logging
import re
from pathlib import Path

import click
import pytest
from embedpipe_cli.display import show_notices
from embedpipe_cli.fields import RENAMED, set_running, with_options
from embedpipe_cli.main import COMMANDS, cli

from embedpipe.clip_model.spec import ModelOptions
from embedpipe.curate import DedupConfig, FilterConfig
from embedpipe.encode.base import EncoderConfig
from embedpipe.encode.batching import BatchingConfig
from embedpipe.encode.job import EncodeConfig
from embedpipe.export import ExportConfig
from embedpipe.fetch import FetchConfig
from embedpipe.index.card import build_command
from embedpipe.index.plan import IndexConfig
from embedpipe.index.query import Query
from embedpipe.merge import MergeConfig
from embedpipe.unclip.generate.models import Models
from embedpipe.unclip.generate.request import GenerationConfig, Request
from embedpipe.unclip.sample_prior import SamplingConfig
from embedpipe.verify import VerifyConfig
from tools.house import LIBRARIES, ROOT, option_strings, sources

TRAINING = ("train-clip", "train-prior", "train-vae", "train-decoder")
# By folder or file, the commands that its errors may reach; a later entry overrules an earlier one.
REACHES = {
    "embedpipe/clip_model": ("encode", "search", "generate", "merge"),
    "embedpipe/curate/dedup": ("dedup",),
    "embedpipe/curate/filter": ("filter",),
    "embedpipe/curate/image_shards.py": ("export",),
    "embedpipe/encode": ("encode",),
    "embedpipe/execute": ("encode", "index", "dedup", "verify", "fetch"),
    "embedpipe/export": ("export",),
    "embedpipe/fetch": ("fetch",),
    "embedpipe/index": ("index", "search"),
    "embedpipe/load": ("train-decoder",),
    "embedpipe/load/images/guarded_source.py": ("info", "dedup", "filter", "export", "search"),
    "embedpipe/read": ("encode",),
    "embedpipe/read/delimited.py": ("fetch", "search"),
    "embedpipe/read/text_file.py": ("fetch", "search"),
    "embedpipe/types.py": ("encode",),
    "embedpipe/unclip/data": ("train-prior", "train-decoder"),
    "embedpipe/unclip/generate": ("generate",),
    "embedpipe/unclip/runs": TRAINING,
    "embedpipe/unclip/sample_prior.py": ("sample-prior",),
    "embedpipe/unclip/train": TRAINING,
    "dalle2_core/presets/decoder.py": ("train-decoder",),
}
# Arguments of Python's, values, columns and programs: no command has an option of that meaning.
NO_OPTION = {
    "auto",
    "clip",
    "dalle2_core.convert",
    "Decoder.save",
    "fetch",
    "flat/",
    "images (dalle2_core)",
    "invert",
    "key (dataset_card)",
    "load",
    "net",
    "outlined/",
    "pip install X",
    "random",
    "ray start",
    "ray status",
    "rows=",
    "src_shard",
    "takedown",
    "train-vae",
    "ulimit -n",
    "ulimit -u",
    "X",
    "X=X",
}


def command_of(name):
    return cli.get_command(click.Context(cli), name)


def text_of(node):
    """A string of the source, `X` where something is put in; None for other nodes."""
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def named_in_backticks():
    """(file, what stands in backticks) of the libraries' strings, docstrings aside."""
    found = set()
    for path in (path for package in LIBRARIES for path in sources(package)):
        tree = ast.parse(path.read_text())
        passed_over = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        passed_over |= {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(tree):
            if id(node) not in passed_over and (text := text_of(node)) is not None:
                found |= {(path.relative_to(ROOT).as_posix(), code) for code in re.findall(r"`([^`]+)`", text)}
    return sorted(found)


def names_of(file, code):
    """How NO_OPTION may call it: wherever it stands, of a library, or of a file."""
    return {code, f"{code} ({file.split('/')[0]})", f"{code} ({Path(file).stem})"}


def reached_from(file):
    return next((REACHES[start] for start in reversed(REACHES) if file.startswith(start)), COMMANDS)


def test_no_string_of_the_libraries_names_an_option():
    assert option_strings() == []


def test_every_field_that_an_error_names_is_an_option_of_a_command_it_can_reach():
    named = named_in_backticks()
    assert len(named) > 150
    unknown = []
    for file, code in named:
        if code.startswith("embedpipe "):
            unknown += [(file, code)] * (code.split()[1] not in (*COMMANDS, "X"))
        elif not names_of(file, code) & NO_OPTION:
            said = [with_options(f"`{code}`", command) for command in reached_from(file)]
            unknown += [(file, code)] * all(it == f"`{code}`" for it in said)
    assert unknown == []


def test_what_is_no_option_is_still_named_somewhere():
    named = named_in_backticks()
    assert set().union(*(names_of(file, code) for file, code in named)) >= NO_OPTION


@pytest.mark.parametrize("name", RENAMED)
def test_a_renamed_field_is_a_parameter_of_its_command(name):
    known = {parameter.name for parameter in command_of(name).params}
    for field, parameter in RENAMED[name].items():
        assert parameter.partition("=")[0] in known, field
        assert field.partition("=")[0] not in known or name == "export", f"{field} needs no other name"


@pytest.mark.parametrize(
    ("name", "configs"),
    [
        ("fetch", [FetchConfig]),
        ("encode", [EncodeConfig, EncoderConfig, BatchingConfig, ModelOptions]),
        ("verify", [VerifyConfig]),
        ("merge", [MergeConfig]),
        ("index", [IndexConfig]),
        ("search", [Query, ModelOptions]),
        ("dedup", [DedupConfig]),
        ("filter", [FilterConfig]),
        ("export", [ExportConfig]),
        ("sample-prior", [SamplingConfig]),
        ("generate", [Request, Models, GenerationConfig, ModelOptions]),
    ],
    ids=lambda it: it if isinstance(it, str) else "",
)
def test_every_field_of_a_configuration_is_an_option(name, configs):
    """But for those that hold other configurations; the cluster's one field is `address`."""
    holding = {"cluster", "encoder", "options", "pipeline", "stage"}
    of_code = ("as_version_0_1", "image_rules", "pin_memory", "reading", "seed", "text_batch_size")
    encode = {("encode", field) for field in of_code}
    of_python = encode | {("generate", "return_pil_images"), ("merge", "executor"), ("export", "split_by")}
    fields = {field.name for config in configs for field in dataclasses.fields(config)} - holding
    ways = {field: (f"`{field}`", f"`{field}=True`", f"`{field}=False`") for field in fields}
    unknown = {(name, field) for field in fields if all(with_options(way, name) == way for way in ways[field])}
    assert unknown == {it for it in of_python if it[0] == name}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_parameter_is_spelled_as_the_command_takes_it(name):
    """Each by itself and, where it takes one, with a value: click must know the option."""
    for parameter in command_of(name).params:
        if isinstance(parameter, click.Option) and parameter.name not in RENAMED.get(name, {}):
            alone = with_options(f"`{parameter.name}`", name).split(" or ")
            assert set(alone) <= {*parameter.opts, *parameter.secondary_opts}
            assert all(word.startswith("-") for word in alone)
            valued = with_options(f"`{parameter.name}={'True' if parameter.is_flag else '5'}`", name)
            assert valued == (alone[0] if parameter.is_flag else f"{alone[0]} 5")


@pytest.mark.parametrize(
    ("command", "text", "said"),
    [
        ("encode", "more than `max_rejects=5%`", "more than --max-rejects 5%"),
        ("encode", "Drop `images=False` or `texts=False`", "Drop --no-image or --no-text"),
        ("encode", "Give `quick_gelu`, or drop `quick_gelu=False`", "Give --quickgelu or --gelu, or drop --gelu"),
        ("encode", "`random`, `text_tokens=False`", "`random`, `text_tokens=False`"),
        ("encode", "`part='auto'`: no launcher", "--shard-of auto: no launcher"),
        ("fetch", "`timeout_s=-1`, `orient=False`, `retry_failed=True`", "--timeout -1, --no-orient, --retry-failed"),
        ("fetch", "not named by `allow_hosts`", "not named by --allow-host"),
        ("train-prior", "Give `drop_nonfinite=True`", "Give --drop-nonfinite"),
        ("train-prior", "`valid_share` of `network.dim`", "--valid-share of `network.dim`"),
        ("train-prior", "Give `train.batch_size=64`", "Give --set train.batch_size=64"),
        ("filter", "`train.batch_size=64` of `emb`", "`train.batch_size=64` of EMB"),
        ("filter", "`where='width > 5'`: no", "--where 'width > 5': no"),
        ("filter", "`where=\"a = 'b'\"`: no", "--where \"a = 'b'\": no"),
        ("filter", "`where='`width` > 5'`: no", "--where '`width` > 5': no"),
        ("export", "Give their folder with `images`", "Give their folder with --images"),
        ("info", "Run `embedpipe verify`", "Run `embedpipe verify`"),
        ("info", "Run `embedpipe.verify('a b', repair=True)`", "Run `embedpipe verify 'a b' --repair`"),
        ("info", "`embedpipe.encode(texts=False)`", "`embedpipe encode --no-text`"),
        (
            "info",
            "`embedpipe.verify(fold=True)`, `embedpipe.x(y=1)`",
            "`embedpipe.verify(fold=True)`, `embedpipe.x(y=1)`",
        ),
        ("search", build_command("emb", "image"), "Run `embedpipe index emb`"),
        ("search", build_command("emb", "text", rebuild=True), "Run `embedpipe index emb --modality text --rebuild`"),
    ],
)
def test_a_field_is_said_as_the_command_takes_it(command, text, said):
    assert with_options(text, command) == said


def test_a_notice_of_the_libraries_names_options(capsys):
    set_running("encode")
    try:
        show_notices()
        logging.getLogger("embedpipe.encode").warning("lower `batch_size`, not `width`")
    finally:
        set_running("")
    assert capsys.readouterr().err == "note: lower --batch-size, not `width`\n"
