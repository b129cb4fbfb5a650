"""One process of `prior_vs_dalle2_pytorch`: builds a prior, trains or samples, prints its times as JSON.

Runs in our environment and in the peer's, so it imports one of the two packages and nothing else of this repository.
Both sides: width 512, 6 layers, 8 heads of 64, float32, the same random embeddings.
"""

from __future__ import annotations

import json
import resource
import sys
import time

import torch
from torch.nn import functional as F

WIDTH = 512
SIZES = {"dim": WIDTH, "depth": 6, "heads": 8, "dim_head": 64}


def batches(lengths, rows):
    """Text and image embeddings, and token states with zeros behind each text. lengths: None, or a list for a batch."""
    draw = torch.Generator().manual_seed(0)
    for each in lengths or [None]:
        text, image = F.normalize(torch.randn(2, rows, WIDTH, generator=draw), dim=-1)
        tokens = mask = None
        if each is not None:
            mask = torch.arange(max(each)) < torch.tensor(each)[:, None]
            tokens = torch.randn(rows, max(each), WIDTH, generator=draw) * mask[:, :, None]
        yield text, image, tokens, mask


def ours(told):
    """(training step, sampling call) of this project's prior, with its own optimizer."""
    from dalle2_core import DiffusionPrior, DiffusionPriorNetwork
    from dalle2_core.training.optim import OptimConfig, make_optimizer

    prior = DiffusionPrior(DiffusionPriorNetwork(**SIZES), timesteps=1000, cond_drop_prob=0.1)
    optimizer = make_optimizer(prior, OptimConfig())

    def step(text, image, tokens, mask):
        optimizer.zero_grad()
        prior(text_embed=text, image_embed=image, text_encodings=tokens, text_mask=mask).backward()
        optimizer.step()

    def sample(text, image, tokens, mask):
        prior.sample(
            text, text_encodings=tokens, text_mask=mask, timesteps=told["sample_steps"], num_samples_per_batch=1
        )

    return step, sample


def theirs(told):
    """The same of DALLE2-pytorch, with its own optimizer."""
    from dalle2_pytorch import DiffusionPrior, DiffusionPriorNetwork
    from dalle2_pytorch.optimizer import get_optimizer

    with_tokens = told["lengths"] is not None
    prior = DiffusionPrior(
        net=DiffusionPriorNetwork(**SIZES, max_text_len=told["max_text_len"]),
        image_embed_dim=WIDTH,
        timesteps=1000,
        cond_drop_prob=0.1,
        condition_on_text_encodings=with_tokens,
    )
    optimizer = get_optimizer(prior.parameters(), lr=3e-4, wd=1e-2)

    def step(text, image, tokens, mask):
        optimizer.zero_grad()
        told_tokens = {"text_encodings": tokens} if with_tokens else {}
        # A copy, because it scales what it is given in place.
        prior(text_embed=text, image_embed=image.clone(), **told_tokens).backward()
        optimizer.step()

    def sample(text, image, tokens, mask):
        condition = {"text_embed": text, **({"text_encodings": tokens} if with_tokens else {})}
        prior.eval()
        prior.p_sample_loop(text.shape, text_cond=condition, timesteps=told["sample_steps"])

    return step, sample


def main() -> None:
    """Read what to do from the first argument, JSON; print wall and CPU seconds of each repetition."""
    told = json.loads(sys.argv[1])
    torch.set_num_threads(told["threads"])
    torch.manual_seed(0)
    step, sample = (ours if told["ours"] else theirs)(told)
    work = sample if told["sample_steps"] else step
    data = list(batches(told["lengths"], told["rows"]))
    wall, cpu = [], []
    for number in range(told["warmups"] + told["repeats"]):
        wall_began, cpu_began = time.perf_counter(), time.process_time()
        work(*data[number % len(data)])
        if number >= told["warmups"]:
            wall.append(time.perf_counter() - wall_began)
            cpu.append(time.process_time() - cpu_began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"wall": wall, "cpu": cpu, "peak_mib": peak}))


if __name__ == "__main__":
    main()
