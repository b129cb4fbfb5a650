"""What a decoder of diffusers cannot do, said before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from dalle2_core.generation import GenerationConfig
from embedpipe.errors import InputError, OptionError

from ..models import Models
from ..request import Request, check_asked
from .decoder import OFFLOADS
from .folder import KANDINSKY, PipelineFolder

DECODER_DTYPES = ("auto", "float32", "float16", "bfloat16")


def check_pretrained(
    request: Request, folder: PipelineFolder, models: Models, config: GenerationConfig, texts: Sequence[str]
) -> None:
    """Raise InputError or OptionError for what is asked and this decoder cannot give."""
    check_asked(request, models.prior is not None, folder.family.reads_text, config, texts)
    folder.checked_size(models.image_size)
    if models.decoder_dtype not in DECODER_DTYPES:
        raise OptionError(f"`decoder_dtype={models.decoder_dtype!r}`: choose {', '.join(DECODER_DTYPES)}")
    if models.offload not in OFFLOADS:
        raise OptionError(f"`offload={models.offload!r}`: choose {', '.join(OFFLOADS)}")
    if models.offload != "none" and models.device == "cpu":
        raise OptionError("`offload` spares the memory of a GPU, and the device is the CPU", "Leave `offload` out")
    for name in ("sampler", "eta", "text_cond_scale"):
        if getattr(config, name) is not None:
            raise OptionError(f"a decoder of diffusers draws by its own scheduler: it takes no `{name}`", "Drop it")
    for name in ("steps", "cond_scale"):
        value = getattr(config, name)
        if isinstance(value, tuple) and len(value) != 1:
            raise OptionError(f"a decoder of diffusers has one stage: `{name}` takes one value", f"Give {value[0]}")
    _check_family(request, folder)
    _check_start(request, folder, config)
    needs_nothing = folder.family is KANDINSKY and _guided(config)
    if needs_nothing and request.embedding is not None and models.prior is None and models.model is None:
        raise InputError(
            f"{folder.named}: guidance leads away from the embedding of an empty picture, which the encoder makes",
            "Give `model` and `pretrained`, or `cond_scale=1`",
        )


def _check_family(request: Request, folder: PipelineFolder) -> None:
    fills_in = request.mode == "inpainting"
    if fills_in and not (folder.fills_in or folder.family.adapted):
        remedy = "Give the one for inpainting" if folder.family is KANDINSKY else "Give one of Kandinsky 2.2"
        raise InputError(f"{folder.named}: this decoder of {folder.family.name} fills in no pictures", remedy)
    if folder.fills_in and not fills_in:
        raise InputError(f"{folder.named}: this decoder only fills in pictures", "Give `inpaint`, or one that draws")


def _check_start(request: Request, folder: PipelineFolder, config: GenerationConfig) -> None:
    """Whether pictures can begin with another, and steps are left then."""
    if request.init_image is None:
        return
    usual = folder.family.strength
    if usual is None:
        raise InputError(f"{folder.named}: {folder.family.name} begins with no picture", "Leave `init_image` out")
    steps, strength = steps_of(folder, config), request.strength or usual
    if int(steps * strength) < 1:
        raise OptionError(
            f"of {steps} steps the share `strength={strength}` is none", f"Give `strength={1 / steps:.2g}` or more"
        )


def steps_of(folder: PipelineFolder, config: GenerationConfig) -> int:
    """As asked, or the pipeline's own."""
    steps = config.steps[0] if isinstance(config.steps, tuple) else config.steps
    return steps or folder.family.steps


def _guided(config: GenerationConfig) -> bool:
    scale = config.cond_scale[0] if isinstance(config.cond_scale, tuple) else config.cond_scale
    return scale > 1
