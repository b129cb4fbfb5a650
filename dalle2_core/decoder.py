"""The decoder: image embedding → image, by a cascade of stages. Ramesh et al. 2204.06125, section 2.1."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dalle2_core.autoencoder import Autoencoder
from dalle2_core.conditions import ClipEmbedder, DecoderBatch, DecoderCondition, EmbeddedText
from dalle2_core.decoder_keywords import DecoderKeywords, as_tuple, padded
from dalle2_core.draws import generators_for
from dalle2_core.errors import CheckpointError, ConfigError, ShapeError
from dalle2_core.files import read_json, write_json
from dalle2_core.images import as_floats, check_images, resized
from dalle2_core.keywords import from_keywords
from dalle2_core.networks.unet import Unet
from dalle2_core.stage import DecoderStage
from dalle2_core.stage_sampling import Inpainting, SamplingConfig, StageSampler

KIND = "decoder"
FORMAT_VERSION = 1
# (number of the stage, calls of its network done, calls in all)
OnStep = Callable[[int, int, int], None]


class Decoder(nn.Module):
    """A cascade. Each of `stages` is trained by itself: `decoder.stages[i].loss(batch, generator)`."""

    def __init__(
        self,
        unet: Unet | Sequence[Unet],
        *,
        clip: ClipEmbedder | None = None,
        vae: Autoencoder | Sequence[Autoencoder | None] = (),
        **keywords: Any,
    ) -> None:
        """A cascade of U-Nets, the smallest first.

        A network is fitted to its place (channels, the smaller image, what it is told); what must change for that is
        made anew, the other weights are kept.

        Args:
            clip: embeds raw images and texts; not needed where embeddings are given. Neither trained nor saved.
            vae: autoencoders of the first stages, which then work in latents.
            keywords: the fields of DecoderKeywords. An unknown one is a TypeError that names the near ones.
        """
        config = from_keywords(DecoderKeywords, "Decoder", keywords)
        unets = as_tuple(unet)
        vaes = padded(as_tuple(vae), len(unets), "autoencoders")
        pairs = config.stages(unets, vaes)
        stages = [DecoderStage(it, settings, one) for (it, settings), one in zip(pairs, vaes, strict=True)]
        self._set(stages, clip)

    @classmethod
    def from_stages(cls, stages: Iterable[DecoderStage], clip: ClipEmbedder | None = None) -> Decoder:
        """A cascade of stages, which may have been trained apart. Raises ConfigError if one does not follow another."""
        decoder = cls.__new__(cls)
        decoder._set(list(stages), clip)
        return decoder

    def _set(self, stages: list[DecoderStage], clip: ClipEmbedder | None) -> None:
        super().__init__()
        _check_cascade(stages)
        self.stages = nn.ModuleList(stages)
        # Not a child: a CLIP that embeds is not a part of the decoder's weights.
        self._clip = (clip,)

    @property
    def clip(self) -> ClipEmbedder | None:
        return self._clip[0]

    @property
    def cascade(self) -> list[DecoderStage]:
        """The stages, the smallest first."""
        return list(self.stages)  # type: ignore[arg-type]

    def forward(
        self,
        image: Tensor,
        text: Tensor | None = None,
        image_embed: Tensor | None = None,
        text_encodings: Tensor | None = None,
        text_mask: Tensor | None = None,
        unet_number: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The training loss of stage `unet_number` (from 1), a scalar.

        Args:
            image: [b, c, h, w], uint8 or float in [0, 1], square and at least as large as the stage's.
            text: [b, n] token numbers; image_embed None and text need `clip`.
            image_embed: [b, d], L2-normalised. text_encodings: [b, l, t]; text_mask: [b, l] bool.
            generator: on the stage's device; None draws from torch's global one.
        """
        if unet_number is None and len(self.stages) > 1:
            raise ConfigError(f"say which stage is trained: unet_number, 1 to {len(self.stages)}")
        stage = self.stage(unet_number or 1)
        network = stage.unet.config
        if image_embed is None and network.sees_image_embed:
            image_embed = self._embedder("images").embed_image(as_floats(image))
        if text_encodings is None and text is not None and network.cond_on_text_encodings:
            embedded = self._embedder("texts").embed_text(text)
            text_encodings, text_mask = embedded.tokens, embedded.mask
        return stage.loss(DecoderBatch(image, image_embed, text_encodings, text_mask), generator).loss

    def stage(self, number: int) -> DecoderStage:
        """Stage `number`, from 1."""
        if not 1 <= number <= len(self.stages):
            raise ConfigError(f"there is no stage {number}; this decoder has stages 1 to {len(self.stages)}")
        return self.cascade[number - 1]

    @torch.no_grad()
    def sample(
        self,
        image: Tensor | None = None,
        image_embed: Tensor | None = None,
        text: Tensor | None = None,
        text_encodings: Tensor | None = None,
        text_mask: Tensor | None = None,
        *,
        batch_size: int = 1,
        cond_scale: float | Sequence[float] = 1.0,
        text_cond_scale: float | Sequence[float | None] | None = None,
        start_at_unet_number: int = 1,
        stop_at_unet_number: int | None = None,
        inpaint_image: Tensor | None = None,
        inpaint_mask: Tensor | None = None,
        inpaint_resample_times: int = 5,
        steps: int | Sequence[int | None] | None = None,
        sampler: str | Sequence[str | None] | None = None,
        eta: float | Sequence[float | None] | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        max_batch_size: int | None = None,
        device: torch.device | str | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Images [b, c, h, w], floats in [0, 1], of the last stage that ran.

        A row depends on its own inputs and draws alone: not on max_batch_size, nor on the rows beside it. Settings
        that may be sequences have one value for each stage; None takes the stage's own.

        Args:
            image: [b, c, h, w] in [0, 1], to start from when start_at_unet_number is above 1.
            image_embed: [b, d], L2-normalised. text: [b, n] token numbers, for `clip`. text_encodings: [b, l, t];
                text_mask: [b, l] bool.
            batch_size: rows, for a decoder that is told neither.
            cond_scale: of guidance, 1 is none; text_cond_scale: the text's own, None is the same.
            inpaint_image, inpaint_mask: keep the pixels [b, c, h, w] where the mask [b, h, w] is True, fill in the
                others; each step is taken inpaint_resample_times times.
            steps, sampler, eta: of sampling.
            noise: x_T of the first stage that runs, as `invert` gives it.
            generator: on any device; one number from it seeds each row and stage. None: torch's global one.
            max_batch_size: rows of a stage that are computed at once.
            device: bring each stage there when its turn comes, and back after it. None leaves every stage where it
                is and moves images only.
            on_step: called after every call of a network.

        Raises ShapeError or ConfigError before the first step if anything does not fit.
        """
        numbers = self._numbers(start_at_unet_number, stop_at_unet_number)
        given = self._given(image_embed, text, text_encodings, text_mask)
        rows = _rows(given, image, batch_size)
        known = self._known(inpaint_image, inpaint_mask, inpaint_resample_times, rows)
        pixels = self._first_pixels(image, numbers[0], rows)
        self._check_given(given, noise, numbers, rows)
        if max_batch_size is not None and max_batch_size < 1:
            raise ConfigError(f"max_batch_size is {max_batch_size}; it must be 1 or more")
        settings = _for_each_stage(
            len(self.stages),
            steps=steps,
            sampler=sampler,
            eta=eta,
            cond_scale=cond_scale,
            text_cond_scale=text_cond_scale,
        )
        # All settings are tried before any stage runs.
        for number in numbers:
            StageSampler(self.stage(number), settings[number - 1])
        where = torch.device("cpu") if generator is None else generator.device
        seeds = torch.randint(2**62, (rows, len(self.stages)), generator=generator, device=where)

        for number in numbers:
            stage = self.stage(number)
            with _stage_on(stage, device):
                count = _Counter(on_step, number)
                sampling = StageSampler(stage, settings[number - 1], count if on_step else None)
                chunks = list(_chunks(rows, max_batch_size))
                count.total = sampling.evaluations * len(chunks) * (known.resample_times if known else 1)
                made = []
                for which in chunks:
                    draws = generators_for(seeds[which, number - 1], stage.device)
                    lowres = None if pixels is None else pixels[which].to(stage.device)
                    condition = stage.condition_for(given.rows(which).to(stage.device), lowres, draws)
                    start = noise[which].to(stage.device) if noise is not None and number == numbers[0] else None
                    part = None if known is None else known.rows(which).to(stage.device)
                    size = which.stop - which.start
                    made.append(sampling.sample(condition, draws, size, start=start, known=part))
                pixels = torch.cat(made)
        assert pixels is not None
        return pixels

    @torch.no_grad()
    def invert(
        self,
        image: Tensor,
        image_embed: Tensor | None = None,
        text_encodings: Tensor | None = None,
        text_mask: Tensor | None = None,
        *,
        steps: int | None = None,
        refinements: int = 1,
        max_batch_size: int | None = None,
    ) -> Tensor:
        """x_T from which the first stage makes these images with ddim and eta 0: `sample(noise=…)` takes it.

        With the image embedding it is the paper's bipartite representation (2204.06125, section 3).

        Args:
            image: [b, c, h, w] in [0, 1], square, at least as large as the first stage's.
            image_embed, text_encodings, text_mask: as for `sample`, unguided.
            steps: of ddim; use the same in `sample`. refinements: see `dalle2_core.inversion`.
        """
        stage = self.stage(1)
        given = self._given(image_embed, None, text_encodings, text_mask)
        check_images(image, stage.image_channels, stage.config.image_size, "image")
        rows = _rows(given, image, len(image))
        if rows != len(image):
            raise ShapeError(f"{len(image)} images and {rows} conditions do not pair up")
        self._check_given(given, None, [1], rows)
        sampling = StageSampler(stage, SamplingConfig(steps=steps))
        pixels = resized(as_floats(image), stage.config.image_size)
        made = []
        for which in _chunks(rows, max_batch_size):
            condition = stage.condition_for(given.rows(which).to(stage.device), None, None)
            made.append(sampling.invert(condition, pixels[which].to(stage.device), refinements))
        return torch.cat(made)

    def save(self, folder: Path | str) -> None:
        """Write stage-1, stage-2, … as `DecoderStage.save` does, and config.json last."""
        folder = Path(folder)
        for number, stage in enumerate(self.cascade, 1):
            stage.save(folder / _stage_name(number))
        content = {"kind": KIND, "format_version": FORMAT_VERSION, "stages": len(self.stages)}
        try:
            write_json(folder / "config.json", content)
        except OSError as problem:
            raise CheckpointError(f"{folder}: could not be written ({problem.strerror or problem})") from problem

    @classmethod
    def load(
        cls,
        folder: Path | str,
        device: torch.device | str = "cpu",
        *,
        clip: ClipEmbedder | None = None,
        vae: Autoencoder | Sequence[Autoencoder | None] = (),
    ) -> Decoder:
        """Read what `save` wrote; a stage's folder may be another's that was trained apart.

        clip, vae: as for the constructor; neither is in the folder. Raises CheckpointError if it is not a decoder.
        """
        folder = Path(folder)
        content = read_json(folder / "config.json")
        if not isinstance(content, dict) or content.get("kind") != KIND:
            raise CheckpointError(f"{folder / 'config.json'}: not a decoder's config")
        if content.get("format_version") != FORMAT_VERSION:
            version = content.get("format_version")
            raise CheckpointError(f"{folder}: decoder format {version}; this version reads {FORMAT_VERSION}")
        count = int(content["stages"])
        vaes = padded(as_tuple(vae), count, "autoencoders")
        stages = [
            DecoderStage.load(folder / _stage_name(number), device, vae=one) for number, one in enumerate(vaes, 1)
        ]
        return cls.from_stages(stages, clip)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Decoder:
        """As torch's; the CLIP, which is no child, moves along."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if isinstance(self.clip, nn.Module):
            self.clip._apply(fn)  # type: ignore[no-untyped-call]
        return self

    def _embedder(self, what: str) -> ClipEmbedder:
        if self.clip is None:
            raise ConfigError(f"to embed {what} the decoder needs `clip`; give it one, or give embeddings")
        return self.clip

    def _given(
        self, image_embed: Tensor | None, text: Tensor | None, text_encodings: Tensor | None, text_mask: Tensor | None
    ) -> DecoderCondition:
        if text_encodings is None and text is not None:
            embedded: EmbeddedText = self._embedder("texts").embed_text(text)
            text_encodings, text_mask = embedded.tokens, embedded.mask
        if text_mask is not None and text_encodings is None:
            raise ShapeError("text_mask is given without text_encodings; give both or neither")
        return DecoderCondition(image_embed, text_encodings, text_mask)

    def _numbers(self, start: int, stop: int | None) -> list[int]:
        last = len(self.stages) if stop is None else stop
        if not 1 <= start <= last <= len(self.stages):
            raise ConfigError(
                f"stages {start} to {last}: start_at_unet_number and stop_at_unet_number must rise within "
                f"1 to {len(self.stages)}"
            )
        return list(range(start, last + 1))

    def _first_pixels(self, image: Tensor | None, start: int, rows: int) -> Tensor | None:
        if start == 1:
            if image is not None:
                raise ConfigError(
                    "image is what start_at_unet_number above 1 starts from; leave it out, or see `invert`"
                )
            return None
        if image is None:
            raise ConfigError(f"start_at_unet_number {start} needs image, what the stage before would have made")
        channels = self.stage(start).image_channels
        check_images(image, channels, 1, "image")
        if len(image) != rows:
            raise ShapeError(f"{len(image)} images to start from, for {rows} rows")
        return as_floats(image)

    def _known(self, images: Tensor | None, mask: Tensor | None, resample_times: int, rows: int) -> Inpainting | None:
        if images is None and mask is None:
            return None
        if images is None or mask is None:
            raise ConfigError("inpainting needs both inpaint_image and inpaint_mask [b, h, w], True where it is known")
        if resample_times < 1:
            raise ConfigError(f"inpaint_resample_times is {resample_times}; it must be 1 or more")
        return Inpainting.checked(images, mask, resample_times, rows, self.stage(1).image_channels)

    def _check_given(self, given: DecoderCondition, noise: Tensor | None, numbers: Sequence[int], rows: int) -> None:
        """Raises ShapeError if a stage that will run would not take what is given."""
        stages = [self.stage(number) for number in numbers]
        for name, attribute in (("image_embed", "sees_image_embed"), ("text_encodings", "cond_on_text_encodings")):
            tensor = given.image_embed if name == "image_embed" else given.text_tokens
            if tensor is not None and not any(getattr(stage.unet.config, attribute) for stage in self.cascade):
                raise ShapeError(f"no stage of this decoder is conditioned on {name}; leave it out")
        for stage in stages:
            stage.unet.condition.check(stage.seen_of(given), rows, besides_lowres=True)
        if noise is not None:
            first = stages[0]
            shape = (rows, first.unet.config.channels, first.size, first.size)
            if noise.shape != shape:
                raise ShapeError(f"noise is {tuple(noise.shape)}; the stage's is {shape}")


class _Counter:
    """Counts a stage's calls of its network, for a progress bar."""

    def __init__(self, on_step: OnStep | None, number: int) -> None:
        self.on_step, self.number = on_step, number
        self.done = self.total = 0

    def __call__(self) -> None:
        self.done += 1
        assert self.on_step is not None
        self.on_step(self.number, self.done, self.total)


@contextmanager
def _stage_on(stage: DecoderStage, device: torch.device | str | None) -> Iterator[None]:
    """The stage on `device` inside, and where it was afterwards, whatever happens."""
    home = stage.device
    if device is None or torch.device(device) == home:
        yield
        return
    stage.to(device)
    try:
        yield
    finally:
        stage.to(home)


def _chunks(rows: int, at_once: int | None) -> Iterator[slice]:
    size = at_once or rows
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def _rows(given: DecoderCondition, image: Tensor | None, batch_size: int) -> int:
    for tensor in (given.image_embed, given.text_tokens, image):
        if tensor is not None:
            return len(tensor)
    return batch_size


def _for_each_stage(count: int, **settings: Any) -> list[SamplingConfig]:
    """One SamplingConfig for each stage, of settings that are one value or one for each."""
    for name, value in settings.items():
        if isinstance(value, (tuple, list)) and len(value) != count:
            raise ConfigError(f"{name} has {len(value)} values for {count} stages; give one, or one for each")
    spread = {name: value if isinstance(value, (tuple, list)) else (value,) * count for name, value in settings.items()}
    return [SamplingConfig(**{name: values[place] for name, values in spread.items()}) for place in range(count)]


def _check_cascade(stages: Sequence[DecoderStage]) -> None:
    """Raises ConfigError if a stage does not start from what the one before makes."""
    if not stages:
        raise ConfigError("a decoder needs one stage or more")
    if stages[0].config.lowres is not None:
        raise ConfigError(
            f"the first stage starts from an image of {stages[0].config.lowres.size} pixels, which no stage makes; "
            "order the stages from small to large"
        )
    for number, (before, stage) in enumerate(pairwise(stages), 2):
        lowres = stage.config.lowres
        if lowres is None or lowres.size != before.config.image_size:
            wants = "none" if lowres is None else f"one of {lowres.size} pixels"
            raise ConfigError(
                f"stage {number} starts from {wants}, and stage {number - 1} makes one of "
                f"{before.config.image_size}; order the stages from small to large, and train each for its place"
            )
        if before.image_channels != stage.image_channels:
            raise ConfigError(
                f"stage {number - 1} makes images of {before.image_channels} channels, stage {number} of "
                f"{stage.image_channels}; all stages need the same"
            )
        widths = [s.unet.config.image_embed_dim for s in (before, stage) if s.unet.config.sees_image_embed]
        if len(set(widths)) > 1:
            raise ConfigError(f"stages {number - 1} and {number} take image embeddings of widths {widths}")


def _stage_name(number: int) -> str:
    return f"stage-{number}"
