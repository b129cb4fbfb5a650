"""The decoder: image embedding → image, by a cascade of stages. Ramesh et al. 2204.06125, section 2.1."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dalle2_core.autoencoders.base import Autoencoder
from dalle2_core.chunking import OnSmaller, run_in_chunks
from dalle2_core.conditioning import DecoderBatch, DecoderCondition
from dalle2_core.decoder.cascade import (
    CascadeRun,
    Execution,
    OnStep,
    check_cascade,
    check_run,
    sample_cascade,
    settings_for,
)
from dalle2_core.decoder.keywords import DecoderKeywords, as_tuple, padded
from dalle2_core.decoder.stage import DecoderStage
from dalle2_core.decoder.stage_sampler import Inpainting, StageSampler, StageSamplingConfig
from dalle2_core.errors import ConfigError, ShapeError
from dalle2_core.images import as_floats, check_images, resized
from dalle2_core.inputs import RangeCheck, as_tensor
from dalle2_core.keywords import from_keywords
from dalle2_core.modules import CompanionModules
from dalle2_core.networks.unet import Unet
from dalle2_core.rng import RNG
from dalle2_core.serialization import read_settings, settings_of, write_settings
from dalle2_core.types import ClipEncoders, check_clip_width

KIND = "decoder"


class Decoder(CompanionModules):
    """A cascade. Each of `stages` is trained by itself: `decoder.stages[i].loss(batch, draws)`."""

    def __init__(
        self,
        unet: Unet | Sequence[Unet],
        *,
        clip: ClipEncoders | None = None,
        vae: Autoencoder | Sequence[Autoencoder | None] = (),
        **keywords: Any,
    ) -> None:
        """A cascade of U-Nets, the smallest first.

        A network is fitted to its stage (channels, low-resolution image, conditions): layers that must change are made
        anew, the other weights are kept.

        Args:
            clip: embeds raw images and texts; not needed where embeddings are given. Neither trained nor saved. If it
                has an `image_size`, that is the size of a single stage without one.
            vae: autoencoders of the first stages, which then work in latents.
            keywords: the fields of DecoderKeywords. An unknown one is a TypeError that names the near ones.
        """
        clip_size = getattr(clip, "image_size", None)
        if clip_size is not None and not {"image_size", "image_sizes"} & keywords.keys():
            keywords["image_size"] = clip_size
        config = from_keywords(DecoderKeywords, "Decoder", keywords)
        unets = as_tuple(unet)
        vaes = padded(as_tuple(vae), len(unets), "autoencoders")
        pairs = config.stages(unets, vaes)
        stages = [DecoderStage(it, settings, one) for (it, settings), one in zip(pairs, vaes, strict=True)]
        self._set(stages, clip)

    @classmethod
    def from_stages(cls, stages: Iterable[DecoderStage], clip: ClipEncoders | None = None) -> Decoder:
        """A cascade of stages, which may have been trained apart. Raises ConfigError if one does not follow another."""
        decoder = cls.__new__(cls)
        decoder._set(list(stages), clip)
        return decoder

    def _set(self, stages: list[DecoderStage], clip: ClipEncoders | None) -> None:
        super().__init__()
        check_cascade(stages)
        for stage in stages:
            if stage.unet.config.sees_image_embed:
                check_clip_width(clip, stage.unet.config.image_embed_dim, "the decoder")
        self._range = RangeCheck()
        self.stages = nn.ModuleList(stages)
        # Not a child: a CLIP that embeds is not a part of the decoder's weights.
        self._clip = (clip,)

    @property
    def clip(self) -> ClipEncoders | None:
        return self._clip[0]

    @property
    def unets(self) -> list[Unet]:
        """The U-Nets of the stages, the smallest first."""
        return [stage.unet for stage in self.cascade]

    @property
    def unconditional(self) -> bool:
        """Whether no stage sees an image embedding or a text."""
        seen = (stage.unet.config for stage in self.cascade)
        return not any(it.sees_image_embed or it.cond_on_text_encodings for it in seen)

    @property
    def condition_on_text_encodings(self) -> bool:
        """Whether a stage reads text tokens."""
        return any(stage.unet.config.cond_on_text_encodings for stage in self.cascade)

    @property
    def device(self) -> torch.device:
        """Where the first stage is."""
        return self.stage(1).device

    def get_unet(self, unet_number: int) -> Unet:
        """The U-Net of stage `unet_number`, from 1."""
        return self.stage(unet_number).unet

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
        generator: RNG = None,
    ) -> Tensor:
        """The training loss of stage `unet_number` (from 1), a scalar.

        Args:
            image: [b, c, h, w], uint8 or float in [0, 1], square and at least as large as the stage's.
            text: [b, n] token numbers; image_embed None and text need `clip`.
            image_embed: [b, d], L2-normalised. text_encodings: [b, l, t]; text_mask: [b, l] bool.
            generator: on the stage's device; None draws from torch's global one.
        """
        stage, batch = self.training_batch(image, text, image_embed, text_encodings, text_mask, unet_number)
        return stage.loss(batch, generator).loss

    def training_batch(
        self,
        image: Tensor,
        text: Tensor | None = None,
        image_embed: Tensor | None = None,
        text_encodings: Tensor | None = None,
        text_mask: Tensor | None = None,
        unet_number: int | None = None,
    ) -> tuple[DecoderStage, DecoderBatch]:
        """The stage that `forward` trains with these arguments, and the batch for it, embedded where it must be."""
        stage = self.stage(self.number_of_stage(unet_number))
        network = stage.unet.config
        image = as_tensor(image, "image")
        image_embed = None if image_embed is None else as_tensor(image_embed, "image_embed")
        text_encodings = None if text_encodings is None else as_tensor(text_encodings, "text_encodings")
        if image_embed is None and network.sees_image_embed:
            image_embed = self.embedder("images").embed_image(image).image_embed
        if text_encodings is None and text is not None and network.cond_on_text_encodings:
            embedded = self.embedder("texts").embed_text(text)
            text_encodings, text_mask = embedded.text_encodings, embedded.text_mask
        return stage, DecoderBatch(image, image_embed, text_encodings, text_mask)

    def number_of_stage(self, unet_number: int | None) -> int:
        """The stage that `unet_number` means: None stands for the only one. Raises ConfigError if there is no such."""
        if unet_number is None and len(self.stages) > 1:
            raise ConfigError(f"say which stage is trained: unet_number, 1 to {len(self.stages)}")
        number = 1 if unet_number is None else unet_number
        self.stage(number)
        return number

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
        one_unet_in_gpu_at_time: bool = False,
        on_step: OnStep | None = None,
        on_smaller_batch: OnSmaller | None = None,
    ) -> Tensor:
        """Images [b, c, h, w], floats in [0, 1], of the last stage that ran.

        A row depends on its own inputs, its place and the seed alone: not on max_batch_size, nor on the rows beside
        it. Settings that may be sequences have one value for each stage; None takes the stage's own.

        Args:
            image: [b, c, h, w] in [0, 1], to start from when start_at_unet_number is above 1; [b, d] is taken for the
                image embedding, which DALLE2-pytorch's own scripts give first.
            image_embed: [b, d], L2-normalised. text: [b, n] token numbers, for `clip`. text_encodings: [b, l, t];
                text_mask: [b, l] bool.
            batch_size: rows, for a decoder without conditions.
            cond_scale: of guidance, 1 is none; text_cond_scale: the text's own, None is the same.
            inpaint_image, inpaint_mask: keep the pixels [b, c, h, w] where the mask [b, h, w] is True, fill in the
                others; each step is taken inpaint_resample_times times.
            steps, sampler, eta: of sampling.
            noise: x_T of the first stage that runs, as `invert` gives it.
            generator: on any device; one number from it seeds everything. None: torch's global one.
            max_batch_size: rows of a stage that are computed at once. Where memory runs out, half as many are from then
                on, which changes no image; on_smaller_batch hears how many, None makes it a warning.
            device: bring each stage there when its turn comes, and back after it. None leaves every stage where it
                is and moves images only.
            one_unet_in_gpu_at_time: DALLE2-pytorch's name for device="cuda"; without a GPU nothing moves.
            on_step: called after every call of a network.

        Raises ShapeError or ConfigError before the first step if anything does not fit.
        """
        image = None if image is None else as_tensor(image, "image")
        if image is not None and image.ndim == 2 and image_embed is None:
            image, image_embed = None, image
        numbers = self._numbers(start_at_unet_number, stop_at_unet_number)
        given = self._given(image_embed, text, text_encodings, text_mask)
        rows = _rows(given, image, batch_size)
        where = torch.device("cpu") if generator is None else generator.device
        run = CascadeRun(
            rows=rows,
            numbers=numbers,
            given=given,
            settings=settings_for(
                len(self.stages),
                steps=steps,
                sampler=sampler,
                eta=eta,
                cond_scale=cond_scale,
                text_cond_scale=text_cond_scale,
            ),
            seed=int(torch.randint(2**62, (), generator=generator, device=where)),
            pixels=self._first_pixels(image, numbers[0], rows),
            noise=noise,
            known=self._known(inpaint_image, inpaint_mask, inpaint_resample_times, rows),
        )
        check_run(self.cascade, run, max_batch_size)
        if one_unet_in_gpu_at_time and device is None and torch.cuda.is_available():
            device = "cuda"
        return sample_cascade(self.cascade, run, Execution(max_batch_size, device, on_step, on_smaller_batch))

    def check_sampling(self, **settings: Any) -> None:
        """Raises ConfigError if `sample` would not take these: steps, sampler, eta, cond_scale, text_cond_scale."""
        for stage, setting in zip(self.cascade, settings_for(len(self.stages), **settings), strict=True):
            StageSampler(stage, setting)

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
        on_smaller_batch: OnSmaller | None = None,
    ) -> Tensor:
        """x_T from which the first stage makes these images with ddim and eta 0: `sample(noise=…)` takes it.

        With the image embedding it is the paper's bipartite representation (2204.06125, section 3).

        Args:
            image: [b, c, h, w] in [0, 1], square, at least as large as the first stage's.
            image_embed, text_encodings, text_mask: as for `sample`, unguided.
            steps: of ddim; use the same in `sample`. refinements: see `dalle2_core.diffusion.inversion`.
        """
        stage = self.stage(1)
        image = as_tensor(image, "image")
        self._range.see(image, "image")
        given = self._given(image_embed, None, text_encodings, text_mask)
        check_images(image, stage.image_channels, stage.config.image_size, "image")
        rows = _rows(given, image, len(image))
        if rows != len(image):
            raise ShapeError(f"{len(image)} images and {rows} conditions do not pair up")
        settings = settings_for(len(self.stages), steps=None)
        settings[0] = StageSamplingConfig(steps=steps)
        check_run(self.cascade, CascadeRun(rows, [1], given, settings, seed=0), max_batch_size)
        sampler = StageSampler(stage, settings[0])
        pixels = resized(as_floats(image), stage.config.image_size)

        def make(start: int, stop: int) -> Tensor:
            condition = stage.condition_for(given.part(start, stop).to(stage.device), None, None)
            return sampler.invert(condition, pixels[start:stop].to(stage.device), refinements)

        return run_in_chunks(rows, max_batch_size, make, on_smaller_batch)

    def save(self, folder: Path | str) -> None:
        """Write stage-1, stage-2, … as `DecoderStage.save` does, and config.json last."""
        folder = Path(folder)
        for number, stage in enumerate(self.cascade, 1):
            stage.save(stage_folder(folder, number))
        # Last: without it the folder is no decoder.
        write_settings(folder, KIND, {"stages": len(self.stages)})

    @classmethod
    def load(
        cls,
        folder: Path | str,
        device: torch.device | str = "cpu",
        *,
        clip: ClipEncoders | None = None,
        vae: Autoencoder | Sequence[Autoencoder | None] = (),
    ) -> Decoder:
        """Read what `save` wrote; a stage's folder may be another's that was trained apart.

        clip, vae: as for the constructor; neither is in the folder. Raises CheckpointError if it is not a decoder.
        """
        folder = Path(folder)
        settings = read_settings(folder, KIND, "a decoder")
        with settings_of(folder):
            count = int(settings["stages"])
        vaes = padded(as_tuple(vae), count, "autoencoders")
        stages = [
            DecoderStage.load(stage_folder(folder, number), device, vae=one) for number, one in enumerate(vaes, 1)
        ]
        return cls.from_stages(stages, clip)

    @contextmanager
    def one_unet_in_gpu(self, unet_number: int) -> Iterator[None]:
        """Stage `unet_number` on the GPU inside and the others on the CPU; afterwards all are where they were.

        Without a GPU nothing moves. To sample by turns there is `sample(device=…)`.
        """
        stage = self.stage(unet_number)
        if not torch.cuda.is_available():
            yield
            return
        homes = [it.device for it in self.cascade]
        try:
            for it in self.cascade:
                it.to("cuda" if it is stage else "cpu")
            yield
        finally:
            for it, home in zip(self.cascade, homes, strict=True):
                it.to(home)

    def companions(self) -> tuple[object, ...]:
        """The CLIP, which is no child."""
        return self._clip

    def embedder(self, what: str) -> ClipEncoders:
        """The clip that embeds `what`. Raises ConfigError where there is none."""
        if self.clip is None:
            raise ConfigError(f"to embed {what} the decoder needs `clip`; give it one, or give embeddings")
        return self.clip

    def _given(
        self, image_embed: Tensor | None, text: Tensor | None, text_encodings: Tensor | None, text_mask: Tensor | None
    ) -> DecoderCondition:
        if text_encodings is None and text is not None:
            embedded = self.embedder("texts").embed_text(text)
            text_encodings, text_mask = embedded.text_encodings, embedded.text_mask
        if text_mask is not None and text_encodings is None:
            raise ShapeError("text_mask is given without text_encodings; give both or neither")
        return DecoderCondition.of(
            None if image_embed is None else as_tensor(image_embed, "image_embed"),
            None if text_encodings is None else as_tensor(text_encodings, "text_encodings"),
            text_mask,
        )

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
        self._range.see(image, "image")
        return as_floats(image)

    def _known(self, images: Tensor | None, mask: Tensor | None, resample_times: int, rows: int) -> Inpainting | None:
        if images is None and mask is None:
            return None
        if images is None or mask is None:
            raise ConfigError("inpainting needs both inpaint_image and inpaint_mask [b, h, w], True where it is known")
        if resample_times < 1:
            raise ConfigError(f"inpaint_resample_times is {resample_times}; it must be 1 or more")
        images, mask = as_tensor(images, "inpaint_image"), as_tensor(mask, "inpaint_mask")
        self._range.see(images, "inpaint_image")
        return Inpainting.checked(images, mask, resample_times, rows, self.stage(1).image_channels)


def _rows(given: DecoderCondition, image: Tensor | None, batch_size: int) -> int:
    found = next((len(it) for it in (given.image_embed, given.text_tokens, image) if it is not None), batch_size)
    if found < 1:
        raise ShapeError("there are no rows to make images of; give one or more")
    return found


def stage_folder(folder: Path, number: int) -> Path:
    """Where in a decoder's folder a stage is, counted from 1."""
    return folder / f"stage-{number}"
