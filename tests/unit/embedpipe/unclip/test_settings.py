"""preset < config < settings: the last word counts, and each mistake is named with its key."""

import json
from dataclasses import dataclass, field

import pytest

from embedpipe.errors import OptionError
from embedpipe.unclip.train.settings import given_names, resolve_config, train_settings


@dataclass(frozen=True)
class Inner:
    lr: float = 0.1
    name: str = "adam"
    betas: tuple[float, float] = (0.9, 0.99)


@dataclass(frozen=True)
class Outer:
    steps: int = 10
    optim: Inner = field(default_factory=Inner)
    ema: float | None = None
    on: bool = False


def test_the_last_word_counts(tmp_path):
    place = tmp_path / "c.json"
    place.write_text(json.dumps({"steps": 20, "optim": {"lr": 0.2}}))
    settings = {"optim.lr": 3e-1, "on": True, "ema": 0.99, "optim.betas": [0.5, 0.6]}
    wanted = Outer(20, Inner(0.3, "adam", (0.5, 0.6)), 0.99, True)
    assert resolve_config(Outer(), str(place), settings) == wanted
    assert resolve_config(Outer(), place, settings) == wanted
    assert resolve_config(Outer(), {"steps": 20, "optim": {"lr": 0.2}}, settings) == wanted
    assert resolve_config(Outer(), None, {}) == resolve_config(Outer(), None) == Outer()
    assert resolve_config(Outer(), None, {"optim.name": "sgd", "steps": 2}) == Outer(2, Inner(name="sgd"))


def test_arguments_of_their_own_come_after_settings():
    found = train_settings({"train.steps": 1, "optim.lr": 2}, ["wandb"], steps=3, seed=None)
    assert found == {"train.steps": 3, "optim.lr": 2, "train.loggers": ("wandb",)}
    assert train_settings({"train.loggers": ["wandb"]}) == {"train.loggers": ["wandb"]}


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"optim.lrr": 1}, "no setting 'optim.lrr'. Did you mean optim.lr"),
        ({"stps": 1}, "Did you mean steps?"),
        ({"steps": "many"}, "steps:"),
        ({"optim": 3}, "optim is a group. It holds lr, name, betas"),
        ({"steps.x": 1}, "steps"),
        ({"optim.lr": ""}, "optim.lr:"),
    ],
)
def test_a_mistake_is_named(setting, said):
    with pytest.raises(OptionError) as caught:
        resolve_config(Outer(), None, setting)
    assert said in str(caught.value)


@pytest.mark.parametrize(("text", "said"), [("{", "not JSON"), ("[]", "holds a list"), ('{"x": 1}', "no setting 'x'")])
def test_a_bad_file_is_named(tmp_path, text, said):
    place = tmp_path / "c.json"
    place.write_text(text)
    with pytest.raises(OptionError, match=said):
        resolve_config(Outer(), str(place))
    with pytest.raises(OptionError, match="no such file|No such file"):
        resolve_config(Outer(), str(tmp_path / "none.json"))


@dataclass(frozen=True)
class Listed:
    parts: tuple[Inner, ...] = (Inner(), Inner(lr=0.2))


def test_names_of_what_is_given_are_found_however_they_are_nested(tmp_path):
    place = tmp_path / "c.json"
    place.write_text(json.dumps({"optim": {"lr": 1}, "train.steps": 5}))
    assert given_names(str(place), {"optim.betas": (0.9, 0.95), "net": {"dim": 4}}) == (
        *("optim.lr", "train.steps", "optim.betas", "net.dim"),
    )
    assert given_names(None, None) == ()


def test_lists_of_groups_are_counted_from_one(tmp_path):
    assert resolve_config(Listed(), None, {"parts.2.lr": 0.5}) == Listed((Inner(), Inner(lr=0.5)))
    place = tmp_path / "c.json"
    place.write_text(json.dumps({"parts": [{}, {"name": "sgd"}, {"lr": 1}]}))
    found = resolve_config(Listed(), str(place), {"parts.1.lr": 9})
    assert found == Listed((Inner(lr=9), Inner(lr=0.2, name="sgd"), Inner(lr=1))), "the last is repeated"
    place.write_text(json.dumps({"parts": [{"lr": 4}]}))
    assert resolve_config(Listed(), str(place)) == Listed((Inner(lr=4),))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"parts.3.lr": 1}, "no setting 'parts.3'. parts holds 1 to 2"),
        ({"parts.0.lr": 1}, "no setting 'parts.0'"),
        ({"parts.one.lr": 1}, "no setting 'parts.one'"),
        ({"parts.2.lrr": 1}, "no setting 'parts.2.lrr'. Did you mean parts.2.lr"),
        ({"parts.2": 5}, "parts.2 is a group. It holds lr, name, betas"),
        ({"parts": 5}, "parts is a group. It holds 1 to 2"),
        ({"parts.2.lr": "fast"}, "parts.2.lr: "),
    ],
)
def test_mistakes_in_lists_are_named(setting, said):
    with pytest.raises(OptionError) as caught:
        resolve_config(Listed(), None, setting)
    assert said in str(caught.value)
