"""DecoderTrainer: one's own loop around a decoder's stages, by DALLE2-pytorch's names.

trainer = DecoderTrainer(decoder, lr=3e-4, wd=1e-2, ema_beta=0.99)
loss = trainer(images, image_embed=embeds, unet_number=1, max_batch_size=4)   # forward and backward of stage 1
trainer.update(unet_number=1)                                                 # its optimizer, schedule, average
trainer.sample(image_embed=embeds)                                            # of the averaged stages
trainer.save("checkpoint"); trainer.load("checkpoint")
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dalle2_core.decoder.decoder import Decoder
from dalle2_core.decoder.stage import DecoderStage
from dalle2_core.errors import CheckpointError, ConfigError
from dalle2_core.files import read_json, write_json
from dalle2_core.keywords import from_keywords
from dalle2_core.networks.unet import Unet
from dalle2_core.rng import PerSampleRNG, derived_seed
from dalle2_core.training.checkpoint import (
    is_checkpoint_file,
    read_checkpoint,
    refuse_to_replace,
    require_folder,
    write_checkpoint,
)
from dalle2_core.training.distributed import Processes, join_processes
from dalle2_core.training.manual_stepping import ManualStepper, TrainerConfig, prepared
from dalle2_core.training.step import LossPass
from dalle2_core.types import EmbeddedImage, EmbeddedText

# Where DALLE2-pytorch's trainer of decoders differs from that of priors.
_DEFAULTS: Mapping[str, Any] = {"lr": 1e-4, "eps": 1e-8, "max_grad_norm": 0.5}
# One value, or one for each stage.
_OF_EACH = ("lr", "wd", "eps", "warmup_steps", "cosine_decay_max_steps")
_KIND = "decoder-trainer"


class DecoderTrainer(nn.Module):
    """An optimizer, a schedule and a moving average for each stage of a decoder.

    Gradients of several calls for a stage before its `update` add up; stages may take turns as one likes. Under
    torchrun every process calls it with as many rows of its own, and together they train as one that is given all rows.
    """

    def __init__(self, decoder: Decoder, accelerator: Any = None, **keywords: Any) -> None:
        """accelerator: an accelerate.Accelerator; None finds out by itself.

        keywords: the fields of TrainerConfig. lr, wd, eps, warmup_steps and cosine_decay_max_steps may have a value for
        each stage. Defaults are DALLE2-pytorch's: lr 1e-4, eps 1e-8, max_grad_norm 0.5. An unknown keyword is a
        TypeError that names the near ones.
        """
        super().__init__()
        self.decoder = decoder
        self.configs = _for_each({**_DEFAULTS, **keywords}, len(decoder.stages))
        device = decoder.stage(1).device
        self._together = Processes(accelerator) if accelerator is not None else join_processes(device)
        self._steppers = [
            ManualStepper(stage, LossPass(stage), config, self._together)
            for stage, config in zip(decoder.cascade, self.configs, strict=True)
        ]

    @property
    def ema_decoder(self) -> Decoder:
        """The averaged stages as a decoder, sharing their weights; the decoder itself with use_ema=False."""
        stages: list[DecoderStage] = [it.state.averaged for it in self._steppers]  # type: ignore[misc]
        return Decoder.from_stages(stages, self.decoder.clip) if self.configs[0].use_ema else self.decoder

    @property
    def unets(self) -> list[Unet]:
        """The averaged U-Nets, the smallest first; the trained ones with use_ema=False."""
        return self.ema_decoder.unets

    @torch.no_grad()
    def embed_text(self, text: Tensor) -> EmbeddedText:
        """What the decoder's clip makes of integer tokens [b, l]. Raises ConfigError if it has none."""
        return self.decoder.embedder("texts").embed_text(prepared(text, "text", self._steppers[0].device))

    @torch.no_grad()
    def embed_image(self, image: Tensor) -> EmbeddedImage:
        """What the decoder's clip makes of images [b, 3, h, w]. Raises ConfigError if it has none."""
        return self.decoder.embedder("images").embed_image(prepared(image, "image", self._steppers[0].device))

    def num_steps_taken(self, unet_number: int | None = None) -> int:
        """Updates of a stage."""
        return self._stepper(unet_number).state.step

    def optimizer(self, unet_number: int | None = None) -> torch.optim.Optimizer:
        """AdamW over a stage's parameters."""
        return self._stepper(unet_number).state.optimizer

    def forward(
        self,
        image: Tensor,
        text: Tensor | None = None,
        image_embed: Tensor | None = None,
        text_encodings: Tensor | None = None,
        text_mask: Tensor | None = None,
        *,
        unet_number: int | None = None,
        max_batch_size: int | None = None,
    ) -> float:
        """The loss of a stage, the mean over the rows; in training mode, its gradients are added to the parameters'.

        image … text_mask: as `Decoder.forward` takes them, on any device. unet_number: from 1; may be left out where
        there is one stage. max_batch_size: rows taken at once; it changes the result by rounding only. Raises
        ShapeError, ConfigError, NonFiniteLoss.
        """
        stepper = self._stepper(unet_number)
        _, batch = self.decoder.training_batch(image, text, image_embed, text_encodings, text_mask, unet_number)

        def loss_of(loss_pass: nn.Module, start: int, stop: int, draws: PerSampleRNG) -> Tensor:
            loss: Tensor = loss_pass(batch.part(start, stop).to(stepper.device), draws).loss
            return loss

        return stepper.add(len(batch), max_batch_size, loss_of, training=self.training)

    def update(self, unet_number: int | None = None) -> None:
        """One step of a stage's optimizer, then of its average. Raises NonFiniteLoss."""
        self._stepper(unet_number).update()

    def sample(self, *inputs: Any, use_non_ema: bool = False, **named: Any) -> Tensor:
        """Images of the averaged decoder (`use_non_ema`: of the trained one); see `Decoder.sample`."""
        return (self.decoder if use_non_ema else self.ema_decoder).sample(*inputs, **named)

    def save(self, path: Path | str, overwrite: bool = True, **extra: Any) -> None:
        """Write everything that `load` needs as a folder of safetensors and JSON, whole. The first process writes.

        overwrite: replace a checkpoint of this kind at `path`; whatever else is there is never touched. extra: plain
        JSON values of one's own, which `load` returns. Raises CheckpointError if the disk refuses or something else
        lies at `path`, ConfigError if a checkpoint does and overwrite is False.
        """
        path = Path(path)
        if self._together.is_first:
            if not overwrite and path.exists():
                raise ConfigError(f"{path}: is there already; give another path, or overwrite=True")
            refuse_to_replace(path, _is_of_checkpoint, "a checkpoint of a DecoderTrainer")
            beside, doomed = (path.with_name(f".{path.name}.{os.getpid()}.{what}") for what in ("tmp", "old"))
            try:
                for number, stepper in enumerate(self._steppers, 1):
                    write_checkpoint(_of_stage(beside, number), stepper.state, stepper.identity())
                write_json(beside / "trainer.json", {"kind": _KIND, "stages": len(self._steppers), "extra": extra})
                if path.exists():
                    path.rename(doomed)
                beside.rename(path)
            except OSError as problem:
                raise CheckpointError(f"{path}: could not be written ({problem.strerror or problem})") from problem
            finally:
                shutil.rmtree(beside, ignore_errors=True)
            shutil.rmtree(doomed, ignore_errors=True)
        self._together.wait()

    def load(self, path: Path | str, only_model: bool = False, strict: bool = True) -> dict[str, Any]:
        """Go on from what `save` wrote; returns the `extra` that was saved.

        only_model: take the weights alone, and begin their training anew. strict: settings, names and shapes must all
        be this decoder's; False loads the tensors that fit. Raises CheckpointError if it is not whole or of another
        number of stages, AnotherRun if a stage had other settings.
        """
        path = Path(path)
        require_folder(path, "a trainer's checkpoint")
        content = read_json(path / "trainer.json")
        if not isinstance(content, dict) or content.get("kind") != _KIND:
            raise CheckpointError(f"{path}: no checkpoint of a DecoderTrainer")
        if content["stages"] != len(self._steppers):
            raise CheckpointError(f"{path}: of {content['stages']} stages; this decoder has {len(self._steppers)}")
        # All are read before any is changed.
        found = [read_checkpoint(_of_stage(path, number)) for number in range(1, len(self._steppers) + 1)]
        for number, (stepper, one) in enumerate(zip(self._steppers, found, strict=True), 1):
            folder = _of_stage(path, number)
            stepper.load(folder, one, only_model=only_model, strict=strict, overwrite_lr=True)
        return dict(content.get("extra", {}))

    def _stepper(self, unet_number: int | None) -> ManualStepper:
        return self._steppers[self.decoder.number_of_stage(unet_number) - 1]


def _of_stage(path: Path, number: int) -> Path:
    return path / f"stage-{number}"


def _is_of_checkpoint(path: Path) -> bool:
    """Whether an entry of a folder belongs to a checkpoint of this trainer."""
    if path.is_dir():
        return re.fullmatch(r"stage-\d+", path.name) is not None and all(map(is_checkpoint_file, path.iterdir()))
    return path.name == "trainer.json"


def _for_each(keywords: Mapping[str, Any], count: int) -> list[TrainerConfig]:
    """A config for each stage, with a seed of its own."""
    each: list[dict[str, Any]] = [dict(keywords) for _ in range(count)]
    for name in _OF_EACH:
        value = keywords.get(name)
        if isinstance(value, Sequence):
            if len(value) != count:
                raise ConfigError(f"{name} has {len(value)} values for {count} stages; give one, or one for each")
            for place, one in enumerate(value):
                each[place][name] = one
    configs = [from_keywords(TrainerConfig, "DecoderTrainer", values) for values in each]
    for number, (config, values) in enumerate(zip(configs, each, strict=True), 1):
        values["seed"] = derived_seed(config.seed, "stage", number)
    return [from_keywords(TrainerConfig, "DecoderTrainer", values) for values in each]
