"""From texts to images: a prior and a decoder of one CLIP, as one model. Ramesh et al. 2204.06125, section 2."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dalle2_core.chunking import OnSmaller
from dalle2_core.decoder.cascade import OnStep
from dalle2_core.decoder.decoder import Decoder
from dalle2_core.decoder.loading import load_decoder
from dalle2_core.errors import CheckpointError, ConfigError, ShapeError
from dalle2_core.generation import Generated, GenerationConfig
from dalle2_core.keywords import from_keywords
from dalle2_core.priors.base import Prior, check_candidates
from dalle2_core.priors.drawn import check_finite_rows, drawn_embeds
from dalle2_core.priors.registry import load_prior
from dalle2_core.rng import derived_seed
from dalle2_core.serialization import read_settings, refuse_other_kind, write_settings
from dalle2_core.types import ClipEncoders, EmbeddedText

if TYPE_CHECKING:
    from PIL.Image import Image

KIND = "dalle2"
_SETTINGS = ("prior_num_samples", "prior_reads_tokens")
# What `on_step` is told for the prior, in place of the number of a decoder's stage.
PRIOR = 0

# (images [n, c, h, w], text embeddings [b, d], which text, for each image) → [n] on the CPU, the higher the better
Score = Callable[[Tensor, Tensor, Sequence[int]], Tensor]


class DALLE2(nn.Module):
    """`dalle2(["a pineapple"], cond_scale=2.0, num_images=4, seed=0)` → images."""

    def __init__(
        self,
        prior: Prior,
        decoder: Decoder,
        *,
        clip: ClipEncoders | None = None,
        prior_num_samples: int | None = None,
        prior_reads_tokens: bool = True,
    ) -> None:
        """A prior and a decoder that were trained on embeddings of one CLIP.

        clip: embeds texts (and ranks images, for best_of); None takes the prior's, else the decoder's. It is neither
        saved nor moved. Not needed where embeddings are given. prior_num_samples: see GenerationConfig.
        prior_reads_tokens: give the prior the states of a text's tokens; False for one trained on embeddings alone
        beside a decoder that reads them.

        Raises ConfigError if the two cannot belong together.
        """
        super().__init__()
        check_pair(prior, decoder)
        self.prior, self.decoder = prior, decoder
        self.prior_num_samples, self.prior_reads_tokens = prior_num_samples, prior_reads_tokens
        self._clip = (_one_clip((clip, getattr(prior, "clip", None), decoder.clip)),)
        if prior_num_samples is not None:
            check_candidates(prior_num_samples)

    @property
    def clip(self) -> ClipEncoders | None:
        """What embeds texts, if there is one."""
        return self._clip[0]

    def forward(
        self,
        text: str | Sequence[str] | Tensor | EmbeddedText,
        cond_scale: float | tuple[float, ...] = 1.0,
        prior_cond_scale: float = 1.0,
        return_pil_images: bool = False,
        *,
        inpaint_image: Tensor | None = None,
        inpaint_mask: Tensor | None = None,
        on_step: OnStep | None = None,
        on_smaller_batch: OnSmaller | None = None,
        **keywords: Any,
    ) -> Tensor | list[Image]:
        """Images [n, c, h, w] in [0, 1], or a list of Pillow's: always several, those of one text together.

        Args:
            text: one or several strings; integer tokens [b, l]; or what a CLIP made of them.
            cond_scale, prior_cond_scale, return_pil_images: see GenerationConfig; by position as in DALLE2-pytorch.
            inpaint_image, inpaint_mask: [b, c, h, w] and [b, h, w], b being the number of texts, or 1: keep the pixels
                where the mask is True.
            on_step: called with 0 for the prior, then with each stage's number, and (calls done, calls in all).
            on_smaller_batch: see `Decoder.sample`.
            keywords: the other fields of GenerationConfig; an unknown one is a TypeError that names the near ones.

        Raises ConfigError or ShapeError before the first step if something does not fit, ShapeError for results that
        are not finite.
        """
        positional = {
            "cond_scale": cond_scale,
            "prior_cond_scale": prior_cond_scale,
            "return_pil_images": return_pil_images,
        }
        config = from_keywords(GenerationConfig, "DALLE2", positional | keywords)
        known = inpaint_image, inpaint_mask
        made = self.generate(self.embed(text), config, known, on_step=on_step, on_smaller_batch=on_smaller_batch)
        return made.pil() if config.return_pil_images else made.images

    def embed(self, text: str | Sequence[str] | Tensor | EmbeddedText) -> EmbeddedText:
        """What CLIP makes of texts. Raises ConfigError where there is none, ShapeError if nothing is given."""
        if isinstance(text, EmbeddedText):
            return text
        if self.clip is None:
            raise ConfigError("neither the prior nor the decoder has a clip to embed texts; give DALLE2(…, clip=…)")
        if not isinstance(text, Tensor):
            text = _tokens([text] if isinstance(text, str) else list(text), self.clip)
        if not len(text):
            raise ShapeError("there is no text; give one or more")
        return self.clip.embed_text(text)

    @torch.no_grad()
    def generate(
        self,
        text: EmbeddedText,
        config: GenerationConfig,
        known: tuple[Tensor | None, Tensor | None] = (None, None),
        *,
        score: Score | None = None,
        on_step: OnStep | None = None,
        on_smaller_batch: OnSmaller | None = None,
    ) -> Generated:
        """What `forward` does, from embedded texts to images with what they were made from.

        known: image and mask for inpainting. score: what best_of ranks images by; None is `self.score`.
        """
        if config.best_of > 1 and score is None and self.clip is None:
            raise ConfigError("best_of ranks images by a clip, and there is none; give DALLE2(…, clip=…)")
        self.decoder.check_sampling(**config.of_decoder())
        seed = int(torch.randint(2**62, ())) if config.seed is None else config.seed
        times = config.num_images * config.best_of
        repeated = text.repeated(times)
        image_embed = self._image_embed(repeated, config, seed, on_step, on_smaller_batch)
        tells_text = any(stage.unet.config.cond_on_text_encodings for stage in self.decoder.cascade)
        images = self.decoder.sample(
            image_embed=image_embed,
            text_encodings=repeated.text_encodings if tells_text else None,
            text_mask=repeated.text_mask if tells_text else None,
            inpaint_image=_for_each(known[0], len(text.text_embed), times, "inpaint_image"),
            inpaint_mask=_for_each(known[1], len(text.text_embed), times, "inpaint_mask"),
            **config.of_decoder(),
            generator=torch.Generator().manual_seed(derived_seed(seed, "decoder")),
            max_batch_size=config.max_batch_size,
            on_step=on_step,
            on_smaller_batch=on_smaller_batch,
        )
        check_finite_rows(images, "the decoder made", times)
        rows = [row for row in range(len(text.text_embed)) for _ in range(times)]
        made = Generated(images, image_embed, rows)
        if config.best_of == 1:
            return made
        return made.best((score or self.score)(images, text.text_embed, rows), config.num_images)

    def _image_embed(
        self,
        text: EmbeddedText,
        config: GenerationConfig,
        seed: int,
        on_step: OnStep | None,
        on_smaller_batch: OnSmaller | None,
    ) -> Tensor:
        """The prior's image embeddings [n, d] for n texts."""
        seen = text if self.prior_reads_tokens else EmbeddedText(text.text_embed)
        told = None if on_step is None else functools.partial(on_step, PRIOR)
        return drawn_embeds(
            self.prior, seen, config, seed, self.prior_num_samples, on_rows=told, on_smaller_batch=on_smaller_batch
        )

    def score(self, images: Tensor, text_embed: Tensor, text: Sequence[int]) -> Tensor:
        """Cosines [n], on the CPU, of CLIP's embeddings of images [n, c, h, w] with those of their texts."""
        assert self.clip is not None
        colours = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
        parts = [self.clip.embed_image(part).image_embed.float().cpu() for part in torch.split(colours, 64)]
        return (torch.cat(parts) * F.normalize(text_embed.float().cpu(), dim=-1)[list(text)]).sum(dim=1)

    def save(self, folder: Path | str) -> None:
        """Write prior and decoder into folders of these names, and config.json last. The clip is not written."""
        folder = Path(folder)
        refuse_other_kind(folder, KIND)
        self.prior.save(folder / "prior")
        self.decoder.save(folder / "decoder")
        write_settings(folder, KIND, {name: getattr(self, name) for name in _SETTINGS})

    @classmethod
    def load(
        cls, folder: Path | str, device: torch.device | str = "cpu", *, clip: ClipEncoders | None = None
    ) -> DALLE2:
        """Read what `save` wrote. Raises CheckpointError if it is not whole."""
        settings = read_settings(folder, KIND, "a DALLE2")
        prior = load_prior(Path(folder) / "prior", device)
        decoder = load_decoder(Path(folder) / "decoder", device=device)
        try:
            return cls(prior, decoder, clip=clip, **{name: settings[name] for name in _SETTINGS})
        except (ConfigError, KeyError) as problem:
            raise CheckpointError(f"{folder}: {problem}") from problem


def check_pair(prior: Prior, decoder: Decoder) -> None:
    """Raise ConfigError where the decoder does not take what the prior predicts, as far as their configs say."""
    if not isinstance(prior, Prior) or not isinstance(decoder, Decoder):
        found = f"{type(prior).__name__} and {type(decoder).__name__}"
        raise ConfigError(f"DALLE2 takes a prior and a decoder, in that order; it was given {found}")
    networks = [stage.unet.config for stage in decoder.cascade]
    takes = {it.image_embed_dim for it in networks if it.sees_image_embed}
    if not takes:
        raise ConfigError("this decoder is not conditioned on image embeddings: what a prior predicts would go unseen")
    gives = getattr(prior, "image_embed_dim", None)
    if gives is not None and gives not in takes:
        raise ConfigError(
            f"the prior predicts image embeddings of {gives} values and the decoder takes {takes.pop()}; "
            "both must be trained on embeddings of one CLIP"
        )


def _one_clip(found: Sequence[ClipEncoders | None]) -> ClipEncoders | None:
    """The first that is there. Raises ConfigError if another one is a different model."""
    there = [clip for clip in found if clip is not None]
    for other in there[1:]:
        if not _same_model(there[0], other):
            raise ConfigError(
                "the prior and the decoder have different CLIPs; an embedding of one means nothing to the other"
            )
    return there[0] if there else None


def _same_model(one: object, other: object) -> bool:
    if one is other or not (isinstance(one, nn.Module) and isinstance(other, nn.Module)):
        return True  # what is no module cannot be compared
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(
        it.shape == right[name].shape and torch.equal(it.cpu(), right[name].cpu()) for name, it in left.items()
    )


def _tokens(texts: list[str], clip: ClipEncoders) -> Tensor:
    for text in texts:
        if not isinstance(text, str):
            raise ConfigError(f"a text is {text!r}; give strings, integer tokens [b, l], or an EmbeddedText")
    tokenizer = getattr(clip, "tokenizer", None)
    if tokenizer is None:
        raise ConfigError(f"{type(clip).__name__} has no tokenizer for strings; give integer tokens [b, l]")
    tokens: Tensor = tokenizer(texts) if texts else torch.zeros(0, 0, dtype=torch.long)
    return tokens


def _for_each(tensor: Tensor | None, texts: int, times: int, what: str) -> Tensor | None:
    """One row for each image, from one for each text, or one for all."""
    if tensor is None:
        return None
    if len(tensor) not in (1, texts):
        raise ShapeError(f"{what} has {len(tensor)} rows for {texts} texts; give one for each, or one for all")
    return tensor.expand(texts, *tensor.shape[1:]).repeat_interleave(times, dim=0)
