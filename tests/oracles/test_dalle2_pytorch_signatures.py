"""docs/dalle2_pytorch.md against DALLE2-pytorch's signatures: each difference has a row, each row is a difference."""

import dataclasses
import inspect
import json
import re
from pathlib import Path

import dalle2_core
from dalle2_core.autoencoders.vqgan import VaeConfig
from dalle2_core.clip import adapters
from dalle2_core.clip.x_clip import ClipObjective, ClipSizes
from dalle2_core.conditioning import published_condition
from dalle2_core.decoder.keywords import DecoderKeywords
from dalle2_core.generation import GenerationConfig
from dalle2_core.networks.causal_transformer import PriorNetworkConfig
from dalle2_core.networks.unet_config import UnetConfig
from dalle2_core.priors.config import PriorConfig, published
from dalle2_core.training.decoder_trainer import _DEFAULTS
from dalle2_core.training.manual_stepping import TrainerConfig

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = json.loads(Path(__file__).with_name("dalle2_pytorch_signatures.json").read_text(encoding="utf-8"))
# Where a method takes keywords, what they are.
KEYWORDS = {
    "DiffusionPriorNetwork.__init__": [PriorNetworkConfig],
    "DiffusionPrior.__init__": [PriorConfig],
    "Unet.__init__": [UnetConfig],
    "Decoder.__init__": [DecoderKeywords],
    "DiffusionPriorTrainer.__init__": [TrainerConfig],
    "DecoderTrainer.__init__": [TrainerConfig],
    "VQGanVAE.__init__": [VaeConfig],
    "CLIP.__init__": [ClipSizes, ClipObjective],
    "DALLE2.forward": [GenerationConfig],
}
# Names that are translated on the way in. That each of them is taken is tried below.
TRANSLATED = {
    "DiffusionPrior.__init__": {
        "predict_x_start": True, "predict_v": False, "text_cond_drop_prob": None,
        "image_size": None, "image_channels": 3,
    },
}  # fmt: skip


def ours(name):
    return getattr(dalle2_core, name, None) or getattr(adapters, name, None)


def parameters(owner, method):
    """Parameter → default, those in **keywords among them."""
    found = {name: it.default for name, it in inspect.signature(getattr(owner, method)).parameters.items()}
    full = f"{owner.__name__}.{method}"
    for config in KEYWORDS.get(full, ()):
        found |= {it.name: it.default for it in dataclasses.fields(config)}
    if full == "DecoderTrainer.__init__":
        found |= _DEFAULTS
    if full == "Unet.forward":
        found |= {name: it.default for name, it in inspect.signature(published_condition).parameters.items()}
    return found | TRANSLATED.get(full, {})


def differences():
    """Names of classes, methods and parameters that are missing here or have another default."""
    for name, methods in PUBLISHED.items():
        owner = ours(name)
        if owner is None:
            yield name
            continue
        for method, wanted in methods.items():
            full = f"{name}.{method}"
            if wanted == "property":
                if not hasattr(owner, method) and not any(
                    method in vars(it).get("__annotations__", {}) for it in owner.__mro__
                ):
                    yield full
                continue
            if not hasattr(owner, method):
                yield full
                continue
            there = parameters(owner, method)
            for parameter, default in wanted:
                value = there.get(parameter, ...)
                if value is ... or (default is not None and eval(default) != value):
                    yield f"{full}({parameter})"


def rows():
    """Names in the first column of the table."""
    table = re.findall(
        r"^\| (`.*?) \|", (ROOT / "docs" / "dalle2_pytorch.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    return [name for row in table for name in re.findall(r"`([^`]+)`", row)]


def test_the_table_names_every_difference_and_nothing_else():
    found, told = set(differences()), rows()
    assert len(told) == len(set(told)), "a name stands in two rows"
    assert found - set(told) == set(), "differences without a row"
    assert set(told) - found == set(), "rows that are no difference (any more)"


def test_translated_names_are_taken():
    assert published({"predict_x_start": False, "image_size": 224, "image_channels": 3}) == {"predicts": "noise"}
    assert published({"text_cond_drop_prob": 0.3, "cond_drop_prob": 0.0, "predict_v": True}) == {
        "predicts": "v", "cond_drop_prob": 0.3,
    }  # fmt: skip
