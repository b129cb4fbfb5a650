"""Training an autoencoder: the loop, what it is judged by, and pictures of what it makes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dalle2_core.autoencoders.vqgan import VQGanVAE
from dalle2_core.conditioning import DecoderBatch
from dalle2_core.errors import ConfigError
from dalle2_core.files import disk_errors, replaced
from dalle2_core.images import as_floats
from dalle2_core.keywords import from_keywords
from dalle2_core.rng import derived_seed
from dalle2_core.training.checkpoint import load_trained
from dalle2_core.training.config import Run, StepReport, TrainConfig
from dalle2_core.training.distributed import Processes, join_processes
from dalle2_core.training.loop import train
from dalle2_core.training.optim import OptimConfig

# Latents' statistics are known to a percent or so from some hundred images.
MOST_IMAGES_TO_MEASURE = 2000
_SHOWN = 8
_GAP_PX = 2
_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class VaeTraining:
    """What a finished training of an autoencoder was. best_step: whose weights were kept; metrics: their evaluation.

    history: see `TrainState`.
    """

    steps: int
    best_step: int
    metrics: dict[str, float]
    history: list[dict[str, Any]]


def train_vae(
    vae: VQGanVAE,
    stream: Callable[[int], Iterator[DecoderBatch]],
    held_out: Sequence[Tensor],
    to_measure: Iterable[Tensor],
    run: Run,
    config: TrainConfig,
    optim: OptimConfig,
    *,
    on_step: Callable[[StepReport], None] | None = None,
    processes: Processes | None = None,
) -> VaeTraining | None:
    """Train, keep the best weights, measure their latents, and save all into the run's folder; run again, it goes on.

    At each evaluation `reconstructions/` gets a picture: held-out images above, what is made of them below.

    Args:
        stream: see `train`. held_out: batches of images to judge by. to_measure: batches of images that latents'
            statistics are taken from.

    Under torchrun every process calls it; all but the first return None. Raises what `train` raises.
    """
    together = processes or join_processes(next(vae.parameters()).device)

    def evaluate(judged: VQGanVAE) -> dict[str, float]:
        # With an average, the trained weights are judged besides.
        trained_besides = judged is vae and config.ema_decay is not None
        if not trained_besides:
            name = f"step-{int(judged.steps):09d}.png"
            draw_reconstructions(judged, held_out[0][:_SHOWN], run.folder / "reconstructions" / name)
        return judge_reconstructions(judged, held_out)

    describes = {"vae": asdict(vae.config), **run.describes}
    state = train(
        vae,
        stream,
        replace(run, describes=describes),
        config,
        optim,
        evaluate=evaluate,
        on_step=on_step,
        processes=together,
    )
    if not together.is_first:
        return None
    best_step = load_trained(vae, run.checkpoints, "best")
    vae.eval()
    device = next(vae.parameters()).device
    vae.measure_latents(images.to(device) for images in to_measure)
    vae.save(run.folder)
    return VaeTraining(state.step, best_step, judge_reconstructions(vae, held_out), state.history)


@torch.no_grad()
def judge_reconstructions(vae: VQGanVAE, batches: Iterable[Tensor]) -> dict[str, float]:
    """How near reconstructions of images are to them; batches are uint8 or float in [0, 1].

    reconstruction: the error that is trained, on values in [-1, 1]. psnr: in dB, the mean over images.
    codes_used: share of codes that occur. perplexity: of the codes' frequencies; their number where all are alike.
    """
    device = next(vae.parameters()).device
    error, psnr, rows = 0.0, 0.0, 0
    counts = torch.zeros(vae.config.vq_codebook_size, dtype=torch.float64, device=device)
    for images in batches:
        pixels = as_floats(images.to(device)) * 2 - 1
        quantized = vae.quantize(vae.encode(pixels))
        made = vae.decode_codes(quantized.codes)
        difference = made - pixels
        each = difference.square() if vae.config.l2_recon_loss else difference.abs()
        error += float(each.mean()) * len(images)
        squared = F.mse_loss(made.clamp(-1, 1) / 2, pixels / 2, reduction="none").flatten(1).mean(dim=1)
        psnr += float((-10 * torch.log10(squared.clamp(min=1e-10))).sum())
        counts += torch.bincount(quantized.codes.flatten(), minlength=len(counts))
        rows += len(images)
    shares = counts / counts.sum()
    entropy = float(-(shares * shares.clamp(min=1e-12).log()).sum())
    used = float((counts > 0).double().mean())
    return {"reconstruction": error / rows, "psnr": psnr / rows, "codes_used": used, "perplexity": math.exp(entropy)}


@torch.no_grad()
def draw_reconstructions(vae: VQGanVAE, images: Tensor, picture: Path) -> None:
    """A PNG, whole: images above, their reconstructions below. Raises CheckpointError if the disk refuses."""
    true = as_floats(images.to(next(vae.parameters()).device))
    pairs = torch.stack((true, vae(true).clamp(0, 1)))
    count, side = len(true), true.shape[-1] + _GAP_PX
    sheet = torch.ones(3, 2 * side + _GAP_PX, count * side + _GAP_PX)
    for row, some in enumerate(pairs.cpu()):
        for column, pixels in enumerate(some):
            top, left = row * side + _GAP_PX, column * side + _GAP_PX
            sheet[:, top : top + pixels.shape[1], left : left + pixels.shape[2]] = pixels
    array = (sheet * 255).round().byte().permute(1, 2, 0).numpy()
    with disk_errors(picture), replaced(picture) as temporary:
        Image.fromarray(array).save(temporary)


@dataclass(frozen=True, slots=True)
class VaeTrainerConfig:
    """DALLE2-pytorch's keywords of its trainer, with its defaults, and `betas`.

    batch_size: images taken at once, grad_accum_every of which make a step. wd: weight decay.
    save_results_every: steps between evaluations, each with a picture. save_model_every: between checkpoints.
    results_folder: of the run. valid_frac: share of the images held out, drawn by random_split_seed.
    ema_beta: of the moving average. amp: matrix products in bfloat16.
    """

    num_train_steps: int
    lr: float
    batch_size: int
    grad_accum_every: int = 1
    wd: float = 0.0
    save_results_every: int = 100
    save_model_every: int = 1000
    results_folder: str = "./results"
    valid_frac: float = 0.05
    random_split_seed: int = 42
    ema_beta: float = 0.995
    amp: bool = False
    betas: tuple[float, float] = (0.9, 0.99)

    def train(self) -> TrainConfig:
        """The same, as the loop takes it."""
        return TrainConfig(
            steps=self.num_train_steps,
            batch_size=self.batch_size * self.grad_accum_every,
            accumulate=self.grad_accum_every,
            seed=self.random_split_seed,
            log_every=min(50, self.save_results_every),
            evaluate_every=self.save_results_every,
            save_every=self.save_model_every,
            ema_decay=self.ema_beta,
            best_metric="reconstruction",
            precision="bfloat16" if self.amp else "float32",
        )


class VQGanVAETrainer:
    """Trains a VQGanVAE on images in memory; `embedpipe train-vae` does on files."""

    def __init__(self, vae: VQGanVAE, images: Tensor | None = None, **keywords: Any) -> None:
        """images: [n, c, s, s], uint8 or float in [0, 1], s the vae's image_size. keywords: of VaeTrainerConfig.

        An unknown keyword is a TypeError that names the near ones.
        """
        if "folder" in keywords or images is None:
            raise TypeError(
                "VQGanVAETrainer takes `images`, a tensor [n, c, h, w], and reads no folder; for files there is "
                "embedpipe train-vae FOLDER OUT"
            )
        self.vae = vae
        self.config = from_keywords(VaeTrainerConfig, "VQGanVAETrainer", keywords)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(self.config.random_split_seed))
        held_out = max(1, round(self.config.valid_frac * len(images))) if self.config.valid_frac else 0
        self.train_images = images[order[held_out:]]
        # Without a share held out the images trained on are judged by, as in DALLE2-pytorch.
        self.valid_images = images[order[:held_out]] if held_out else self.train_images
        if len(self.train_images) < self.config.train().batch_size:
            raise ConfigError(
                f"{len(self.train_images)} training images are fewer than batch_size times grad_accum_every, "
                f"{self.config.train().batch_size}"
            )

    def train(self, log_fn: Callable[[StepReport], None] | None = None) -> VaeTraining | None:
        """Train to the end; called again, or by another process later, it goes on. log_fn is called after every step.

        `vae` holds the best weights then, and the run's folder, which `VQGanVAE.load` reads, too.
        """
        config = self.config.train()
        together = join_processes(next(self.vae.parameters()).device)
        start, stop = together.share(config.batch_size)

        def stream(step: int) -> Iterator[DecoderBatch]:
            while True:
                # An order of its own for each step needs no memory of the ones before.
                seed = derived_seed(config.seed, step, "images")
                order = torch.randperm(len(self.train_images), generator=torch.Generator().manual_seed(seed))
                yield DecoderBatch(self.train_images[order[: config.batch_size][start:stop]])
                step += 1

        return train_vae(
            self.vae,
            stream,
            torch.split(self.valid_images, _AT_ONCE),
            torch.split(self.train_images[:MOST_IMAGES_TO_MEASURE], _AT_ONCE),
            Run(Path(self.config.results_folder)),
            config,
            OptimConfig(lr=self.config.lr, betas=self.config.betas, weight_decay=self.config.wd),
            on_step=log_fn,
            processes=together,
        )
