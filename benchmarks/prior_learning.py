"""Does the diffusion prior learn more than a mean? On a task whose answer is known, and on the demo's embeddings."""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import measure, mixture, report
from benchmarks.mixture import Mixture
from dalle2_core.networks.causal_transformer import PriorNetworkConfig
from dalle2_core.priors.closed_form import MeanImage, Ridge
from dalle2_core.priors.diffusion import DiffusionPrior, PriorConfig
from dalle2_core.rng import PerSampleRNG, derived_seed
from dalle2_core.training import OptimConfig, Run, TrainConfig, train
from dalle2_core.training.state import TrainState
from dalle2_core.types import PriorBatch
from embedpipe.load.shuffle import batches_from

_CLOSE = 0.9  # cosine: an image lies nearer than this to its mode, and modes lie far apart
_K = (1, 10)


@dataclass(frozen=True, slots=True)
class Found:
    """Of one predictor, on held-out rows.

    right_mode: share of its samples that lie on the mode the true image was drawn from. any_mode: on any of the three.
    likelihood: mean log-likelihood of the true image, in nats per dimension, under kernels around the samples whose
    width was fitted on other rows. recall: share of rows whose true image is among the k most likely held-out ones.
    cosine: of one prediction to the true image.
    """

    right_mode: float
    any_mode: float
    likelihood: float
    recall: dict[int, float]
    cosine: float


def main() -> None:
    """Run it and write the result."""
    options = _options()
    started = report.start("benchmarks.prior_learning", measure.use_cores(options.cores))
    sections = [_synthetic(options)]
    if options.demo is not None:
        sections.append(_demo(options))
    report.write(
        "prior_learning",
        "does the diffusion prior learn more than a mean?",
        sections,
        started,
        not_measured=["real CLIP embeddings: there was no model hub", *([] if options.demo else ["the demo"])],
        folder=options.results,
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--n", type=int, default=8000, help="training rows of the known task")
    parser.add_argument("--held-out", type=int, default=500)
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--samples", type=int, default=32, help="drawn for each held-out text")
    parser.add_argument("--demo", type=Path, help="a folder that `embedpipe demo` made: compare on its embeddings")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--priors", nargs="+", default=["diffusion", "contrastive", "ridge", "mean"])
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    return parser.parse_args()


def _synthetic(options: argparse.Namespace) -> str:
    found: dict[str, list[Found]] = {}
    seconds = []
    for seed in range(options.seeds):
        task = mixture.make(options.n + 2 * options.held_out, options.dim, seed)
        train_rows, fit_rows = task.rows(0, options.n), task.rows(options.n, options.n + options.held_out)
        held_out = task.rows(options.n + options.held_out, len(task.text))
        closed = {"ridge": Ridge(), "mean": MeanImage()}
        begun = time.perf_counter()
        prior = trained(train_rows, options.steps, seed)
        seconds.append(time.perf_counter() - begun)
        samples = {
            "diffusion": lambda rows, prior=prior, seed=seed: drawn(prior, rows.text, options.samples, seed),
            "the truth": lambda rows, seed=seed: _truth(rows, options.samples, seed),
        }
        for name, fitted in closed.items():
            fitted.fit(train_rows.text, train_rows.image)
            samples[name] = lambda rows, fitted=fitted: one(fitted, rows.text)
        for name, sample in samples.items():
            found.setdefault(name, []).append(judged(sample(held_out), held_out, sample(fit_rows), fit_rows))
    rows = [(name, *_cells(each)) for name, each in found.items()]
    head = ("", "right mode", "any mode", "log-likelihood", *(f"recall@{k}" for k in _K), "cosine")
    return "\n\n".join(
        [
            "## A task whose answer is known",
            f"Each text has three image modes with chances {mixture.CHANCES} (`benchmarks/mixture.py`). {options.n:,} "
            f"training pairs of {options.dim} dimensions, {options.held_out} held-out ones, {options.seeds} seeds; "
            f"{options.steps:,} steps, {statistics.mean(seconds):.0f} s each. Mean over the seeds ± their standard "
            "deviation.",
            report.table(head, rows),
            f"Right mode: share of the samples that lie (cosine above {_CLOSE}) on the mode the true image was drawn "
            f"from; the truth's own samples, {sum(c * c for c in mixture.CHANCES):.2f} of them, are the most there is. "
            "Log-likelihood of the true image, nats per dimension, under kernels around the predictor's "
            f"{options.samples} samples (one for those that draw nothing), their width fitted on other rows. Recall: "
            "the true image is among the k most likely of the held-out ones. The truth's samples carry its noise, "
            "which kernels add to once more: a prior whose samples carry less can stand above it. Cosine of one "
            "prediction to the true "
            "image: it rewards what lies between the modes, which is why it decides nothing.",
        ]
    )


def trained(rows: Mixture, steps: int, seed: int) -> DiffusionPrior:
    """A small diffusion prior after so many steps on those rows."""
    torch.manual_seed(seed)
    network = PriorNetworkConfig(dim=128, depth=3, heads=4, dim_head=32, ff_mult=2)
    diffusion = PriorConfig(timesteps=100, sample_timesteps=20, embed_scaling="data", cond_drop_prob=0.0)
    prior = DiffusionPrior.from_configs(network.for_embeddings(rows.text.shape[1]), diffusion)
    prior.fit(rows.text, rows.image)
    config = TrainConfig(steps=steps, batch_size=256, seed=seed, log_every=100, save_every=steps, ema_decay=0.99)
    optim = OptimConfig(lr=2e-3, betas=(0.9, 0.96), weight_decay=1e-2, warmup_steps=50, schedule="cosine")
    places = torch.arange(len(rows.text)).numpy()

    def stream(step: int) -> object:
        for chosen in batches_from(places, config.batch_size, seed, step):
            yield PriorBatch(rows.text[chosen], rows.image[chosen])

    with tempfile.TemporaryDirectory() as folder:
        state: TrainState = train(prior, stream, Run(Path(folder)), config, optim)
    averaged = state.averaged
    assert isinstance(averaged, DiffusionPrior)
    return averaged.eval()


def drawn(prior: DiffusionPrior, text: Tensor, count: int, seed: int) -> Tensor:
    """`count` samples for each text, [n, count, d], norm 1; none is chosen among."""
    draws = PerSampleRNG(derived_seed(seed, "benchmark"), 0, len(text) * count, text.device)
    repeated = text.repeat_interleave(count, dim=0)
    return prior.sample(repeated, num_samples_per_batch=1, generator=draws).view(len(text), count, -1)


def one(prior: Ridge | MeanImage, text: Tensor) -> Tensor:
    """The one prediction of a closed form, [n, 1, d]."""
    return prior.sample(text)[:, None]


def _truth(rows: Mixture, count: int, seed: int) -> Tensor:
    """Samples of the task itself."""
    draws = torch.Generator().manual_seed(seed + 1000)
    modes = torch.multinomial(torch.tensor(mixture.CHANCES), len(rows.text) * count, replacement=True, generator=draws)
    noise = mixture.NOISE / rows.image.shape[1] ** 0.5
    picked = rows.modes[torch.arange(len(rows.text))[:, None], modes.view(-1, count)]
    return F.normalize(picked + noise * torch.randn(picked.shape, generator=draws), dim=2)


def judged(samples: Tensor, rows: Mixture, fit_samples: Tensor, fit_rows: Mixture) -> Found:
    """What samples [n, s, d] of a predictor are worth; the kernels' width is fitted on `fit_rows`."""
    near = torch.einsum("nsd,nkd->nsk", samples, rows.modes) > _CLOSE
    n, dim = rows.image.shape
    variances = [10.0 ** (exponent / 10) / dim for exponent in range(-25, 6)]
    variance = max(variances, key=lambda it: _log_likelihoods(fit_samples, fit_rows.image, it).diagonal().mean().item())
    likelihoods = _log_likelihoods(samples, rows.image, variance)
    true = likelihoods.diagonal()
    ranks = 1 + (likelihoods > true[:, None]).sum(dim=1)
    return Found(
        right_mode=float(near[torch.arange(n), :, rows.drawn].float().mean()),
        any_mode=float(near.any(dim=2).float().mean()),
        likelihood=float(true.mean()) / dim,
        recall={k: float((ranks <= k).float().mean()) for k in _K},
        cosine=float((samples[:, 0] * rows.image).sum(dim=1).mean()),
    )


def _log_likelihoods(samples: Tensor, images: Tensor, variance: float) -> Tensor:
    """[n, m]: log-density of each image [m, d] under normal kernels around the samples [n, s, d] of each text."""
    dim = images.shape[1]
    parts = []
    for part in samples.split(64):
        squares = 2.0 - 2.0 * torch.einsum("nsd,md->nms", part, images)
        parts.append(torch.logsumexp(-squares / (2 * variance), dim=2) - math.log(part.shape[1]))
    return torch.cat(parts) - 0.5 * dim * math.log(2 * math.pi * variance)


def _cells(each: Sequence[Found]) -> list[str]:
    columns = [[getattr(it, name) for it in each] for name in ("right_mode", "any_mode", "likelihood")]
    columns += [[it.recall[k] for it in each] for k in _K]
    columns.append([it.cosine for it in each])
    return [f"{statistics.mean(column):.3f} ± {statistics.pstdev(column):.3f}" for column in columns]


def _demo(options: argparse.Namespace) -> str:
    """Every kind of prior on the demo's embeddings, by the commands a user would type."""
    import embedpipe

    emb = str(options.demo / "emb")
    scores: dict[str, dict[str, list[Mapping[str, float]]]] = {"valid": {}, "unseen": {}}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            runs = []
            for name in options.priors:
                out = f"{folder}/{seed}/{name}"
                embedpipe.train_prior(emb, out, prior=name, seed=seed, split_column="split")
                runs.append(out)
            for split, seen in scores.items():
                for name, score in embedpipe.evaluate(runs, emb, split, seed=seed).scores.items():
                    seen.setdefault(name, []).append(dataclasses.asdict(score))
    names = ("cosine_image", "recall_at_1", "recall_at_10", "spread")
    parts = ["## The demo's embeddings", "The preset `tiny`, each kind of prior, best of two samples where it draws."]
    for split, seen in scores.items():
        n = int(next(iter(seen.values()))[0]["n"])
        rows = [
            (name, *(f"{statistics.mean(v):.3f} ± {statistics.pstdev(v):.3f}" for v in _columns(each, names)))
            for name, each in seen.items()
        ]
        title = {"valid": "held-out pairs of known concepts", "unseen": "pairs of concepts never seen"}[split]
        parts += [f"{n} {title}:", report.table(("", *names), rows)]
    return "\n\n".join(parts)


def _columns(each: Sequence[Mapping[str, float]], names: Sequence[str]) -> list[list[float]]:
    return [[score[name] for score in each] for name in names]


if __name__ == "__main__":
    main()
