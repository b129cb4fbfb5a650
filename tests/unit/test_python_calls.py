"""Whatever a command does is one call from Python, with an argument for each of its options."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys

import click
import pytest
from embedpipe_cli.main import COMMANDS, cli

import embedpipe

# Commands without a call of their own, and why.
EXEMPT = {
    "demo": "it runs the other commands, as a user would type them",
    "models": "it lists open_clip's tables",
    "doctor": "it looks at the machine, not at data",
}
CALLED = [name for name in COMMANDS if name not in EXEMPT]
# Options that are the command line's own: how a result is shown, and which exit code it gives.
OWN = {"as_json", "debug", "verbose", "dry_run", "short_dry_run", "trust_model", ("fetch", "max_rejects")}
# Option → argument or field of a config, where they are called differently.
NAMES = {
    ("fetch", "timeout"): "timeout_s",
    ("encode", "compile_model"): "compile",
    ("encode", "embedding_dtype"): "dtype",
    ("encode", "file_col"): "file_column",
    ("encode", "image_col"): "image_column",
    ("encode", "input_format"): "input",
    ("encode", "key_col"): "key_column",
    ("encode", "no_image"): "images",
    ("encode", "no_text"): "texts",
    ("encode", "shard_of"): "part",
    ("encode", "storage"): "format",
    ("encode", "threads"): "threads_per_worker",
    ("index", "emb"): "path",
    ("search", "emb"): "dataset",
    ("serve", "emb"): "paths",
    ("dedup", "emb"): "path",
    ("filter", "emb"): "path",
    ("export", "embedding_dtype"): "dtype",
    ("sample-prior", "run"): "prior",
    ("train-decoder", "paths"): "data",  # and emb, and out
}


def command_of(name):
    return cli.get_command(None, name)


def calls_of(command):
    """What of `embedpipe` a command's module uses, by name."""
    tree = ast.parse(inspect.getsource(inspect.getmodule(command.callback)))
    found = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "embedpipe"
    }
    return {name: getattr(embedpipe, name) for name in sorted(found)}


def arguments_of(command):
    """Arguments of the calls and fields of the configs that a command uses, with their defaults."""
    found = {}
    for call in calls_of(command).values():
        for name, parameter in inspect.signature(call).parameters.items():
            found.setdefault(name, []).append(parameter.default)
    if "options" in found:
        found |= {name: [it.default] for name, it in inspect.signature(embedpipe.ModelOptions).parameters.items()}
    return found


def options_of(name, command):
    """(parameter, the argument it should be)"""
    for parameter in command.params:
        if parameter.name not in OWN and (name, parameter.name) not in OWN:
            yield parameter, NAMES.get((name, parameter.name), parameter.name)


def without_argument(name, command):
    arguments = arguments_of(command)
    return [parameter.name for parameter, argument in options_of(name, command) if argument not in arguments]


@pytest.mark.parametrize("name", CALLED)
def test_a_command_is_one_call_that_takes_all_its_options(name):
    command = command_of(name)
    calls = calls_of(command)
    assert name.replace("-", "_") in calls
    assert not without_argument(name, command)
    dry = [parameter for parameter in command.params if parameter.name == "dry_run"]
    plans = [call for call in calls if call.startswith("plan_")]
    assert bool(dry) == bool(plans) or name == "convert", "convert is dry without `out`"


def test_a_new_option_would_be_missed():
    command = command_of("train-prior")
    more = click.Command("more", callback=command.callback, params=[*command.params, click.Option(["--brand-new"])])
    assert without_argument("train-prior", more) == ["brand_new"]


@pytest.mark.parametrize("name", CALLED)
def test_defaults_are_the_same(name):
    command = command_of(name)
    arguments = arguments_of(command)
    context = click.Context(command)
    for parameter, argument in options_of(name, command):
        default = parameter.get_default(context)
        plain = isinstance(default, bool | int | float | str) and not parameter.required
        if plain and not (parameter.is_flag or argument == "out"):
            converted = parameter.type_cast_value(context, default)
            assert {converted, *(converted if isinstance(converted, tuple) else ())} & set(arguments[argument]), (
                argument
            )


def test_the_tables_name_nothing_that_is_gone():
    assert set(EXEMPT) < set(COMMANDS)
    for name, option in [*NAMES, *(it for it in OWN if isinstance(it, tuple))]:
        assert option in [parameter.name for parameter in command_of(name).params], (name, option)


def test_all_names_are_there_and_listed():
    assert set(embedpipe.__all__) <= set(dir(embedpipe))
    for name in embedpipe.__all__:
        assert getattr(embedpipe, name) is not None


def test_rooms_say_what_they_take():
    assert list(inspect.signature(embedpipe.index).parameters) == ["path", "config", "listen"]
    assert inspect.signature(embedpipe.info) == inspect.signature(embedpipe.info.info)
    assert callable(embedpipe.fetch)
    with pytest.raises(TypeError, match="stepz"):
        embedpipe.train_prior("emb", "out", stepz=3)


def test_no_module_hides_a_name_of_its_package():
    """Python gives a package's name to its module of that name as soon as anything imports it."""
    packages = [it.name for it in pkgutil.walk_packages(embedpipe.__path__, "embedpipe.") if it.ispkg]
    for package in map(importlib.import_module, ["embedpipe", *packages]):
        names = {it.name for it in pkgutil.iter_modules(package.__path__)} & set(getattr(package, "__all__", ()))
        for name in names - {"dedup", "filter"} if package.__name__ == "embedpipe.curate" else names:
            assert callable(importlib.import_module(f"{package.__name__}.{name}")), f"{package.__name__}.{name}"


def test_importing_embedpipe_loads_nothing():
    code = "import sys, embedpipe, embedpipe.unclip; print(sorted({'numpy', 'torch', 'pyarrow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_name_of_version_0_1_works_and_warns():
    with pytest.warns(DeprecationWarning, match="BatchingConfig"):
        assert embedpipe.StageConfig is embedpipe.BatchingConfig
