"""Registries: names that are there at once, parts that are imported when they are looked up."""

import subprocess
import sys

import pytest

from dalle2_core.errors import ConfigError
from dalle2_core.keywords import Registry, chosen


def test_a_part_is_imported_when_it_is_looked_up_and_once():
    registry = Registry({"decoder": "json:JSONDecoder", "gone": "json.nowhere:Thing"})
    assert list(registry) == ["decoder", "gone"]
    assert len(registry) == 2
    assert "gone" in registry
    assert registry["decoder"] is registry["decoder"] is __import__("json").JSONDecoder
    with pytest.raises(ModuleNotFoundError):
        registry["gone"]


def test_parts_are_added_replaced_and_removed_like_a_dicts():
    registry = Registry({"decoder": "json:JSONDecoder"})
    registry["mine"] = int
    registry["decoder"] = str
    assert dict(registry) == {"decoder": str, "mine": int}
    del registry["decoder"], registry["mine"]
    assert not registry
    with pytest.raises(KeyError):
        del registry["mine"]
    with pytest.raises(KeyError):
        registry["mine"]


def test_an_unknown_name_imports_nothing_and_names_the_near_ones():
    registry = Registry({"gone": "json.nowhere:Thing"})
    with pytest.raises(ConfigError, match="no thing 'gon'; did you mean gone"):
        chosen(registry, "gon", "thing")


def test_the_names_of_priors_need_no_torch():
    code = "import sys; from dalle2_core.priors import PRIORS; print(*PRIORS); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["diffusion", "autoregressive", "contrastive", "unclip", "ridge", "mean"]
