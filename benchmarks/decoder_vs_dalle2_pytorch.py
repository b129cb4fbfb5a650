"""How much faster than DALLE2-pytorch's is this decoder, in how much memory, and is its U-Net the same function?

One U-Net as both packages' users would write it, in one process for each figure, in turns: training steps (loss,
backward, Adam), sampling with and without guidance, peak resident memory of the training.

    python -m benchmarks.decoder_vs_dalle2_pytorch
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from dalle2_core import DecoderCondition, Unet

from . import measure, report

_SIDE = Path(__file__).parent / "peers" / "decoder_side.py"
_OURS, _THEIRS = "dalle2_core", "dalle2_pytorch"

# DALLE2-pytorch's names of a U-Net's weights, and ours.
_NAMES = (
    (r"^(to_time_hiddens|to_image_hiddens|norm_cond|norm_mid_cond|null_image_\w+)", r"condition.\1"),
    (r"^(to_time_tokens|to_time_cond|image_to_tokens)\.0", r"condition.\1"),
    (r"^downs\.(\d+)\.1\.", r"downs.\1.init_block."),
    (r"^downs\.(\d+)\.2\.", r"downs.\1.blocks."),
    (r"^downs\.(\d+)\.4\.1\.", r"downs.\1.after.conv."),
    (r"^downs\.(\d+)\.4\.(weight|bias)", r"downs.\1.after.\2"),
    (r"^mid_attn\.fn\.fn\.", "mid_attn."),
    (r"^ups\.(\d+)\.0\.", r"ups.\1.blocks.0."),
    (r"^ups\.(\d+)\.1\.(\d+)", lambda found: f"ups.{found[1]}.blocks.{int(found[2]) + 1}"),
    (r"^ups\.(\d+)\.3\.net\.0\.", r"ups.\1.upsample.conv."),
)


@dataclass(frozen=True, slots=True)
class Task:
    """One thing that both sides do."""

    name: str
    arguments: tuple[str, ...]


def tasks(options: argparse.Namespace) -> list[Task]:
    """Training, and sampling twice."""
    sampling = ("sample", "--steps", str(options.sample_steps), "--calls", str(options.calls))
    return [
        Task("training step", ("train", "--steps", str(options.steps))),
        Task("sampling step", sampling),
        Task(f"sampling step, guidance {options.cond_scale:g}", (*sampling, "--cond-scale", str(options.cond_scale))),
    ]


class Sides:
    """Both packages' processes."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.python = {_OURS: sys.executable, _THEIRS: str(options.peer / "bin" / "python")}
        shape = ["--dim", options.dim, "--size", options.size, "--batch", options.batch, "--threads", options.cores]
        self.shape = [*map(str, shape), "--dim-mults", *map(str, options.dim_mults)]

    def run(self, package: str, arguments: tuple[str, ...], log: str) -> dict:
        """What one process says on its last line, with the load before it."""
        command = [self.python[package], str(_SIDE), package, *arguments, *self.shape]
        made = measure.run(
            command,
            self.options.work / log,
            timeout_s=self.options.timeout,
            environment={"OMP_NUM_THREADS": str(self.options.cores), "PYTHONPATH": str(_SIDE.parents[2])},
        ).require(f"{package} {' '.join(arguments)}")
        return {**json.loads(made.stdout.splitlines()[-1]), "load": made.load} if made.stdout else {}


def difference(sides: Sides) -> float:
    """Largest difference between both U-Nets' outputs with the same weights, over the largest output."""
    file = sides.options.work / "unet.pt"
    sides.run(_THEIRS, ("write", str(file)), "write")
    theirs = torch.load(file, weights_only=True)
    options = sides.options
    unet = Unet(options.dim, image_embed_dim=512, dim_mults=tuple(options.dim_mults), channels=3, channels_out=6).eval()
    weights = {}
    for name, tensor in theirs["weights"].items():
        if name == "null_text_embed":
            continue  # they keep the text's null tokens where there is no text
        for pattern, ours in _NAMES:
            renamed = re.sub(pattern, ours, name)
            if renamed != name:
                break
        # Their self-attention without cosine similarity divides by the head's width, not by its root.
        weights[renamed] = tensor * 32**-0.5 if renamed == "mid_attn.to_q.weight" else tensor
    unet.load_state_dict(weights)
    condition = DecoderCondition(theirs["embeds"])
    with torch.no_grad():
        out = unet(theirs["x"], theirs["time"], condition)
        dropped = unet(theirs["x"], theirs["time"], condition.unconditional())
    apart = max(float((out - theirs["out"]).abs().max()), float((dropped - theirs["dropped"]).abs().max()))
    return apart / float(theirs["out"].abs().max())


def sections(found: dict[str, dict[str, list[dict]]], apart: float) -> list[str]:
    """What was found: `found[task][package]` are the rounds."""
    rows, ratios = [], []
    for task, sides in found.items():
        times = {package: [statistics.median(run["seconds"]) for run in runs] for package, runs in sides.items()}
        faster = [b / a for a, b in zip(times[_OURS], times[_THEIRS], strict=True)]
        ours, theirs = (measure.spread(times[package], 3) for package in (_OURS, _THEIRS))
        rows.append((task, ours, theirs, f"{measure.spread(faster)}×"))
        ratios.append((task, " ".join(f"{ratio:.2f}" for ratio in faster)))
        memory = {package: [run["peak_mib"] for run in runs] for package, runs in sides.items()}
        share = [a / b for a, b in zip(memory[_OURS], memory[_THEIRS], strict=True)]
        ours, theirs = (measure.spread(memory[package], 0) for package in (_OURS, _THEIRS))
        rows.append((f"{task}: peak memory, MiB", ours, theirs, f"{100 * statistics.median(share):.0f}%"))
    loads = [run["load"] for sides in found.values() for runs in sides.values() for run in runs]
    head = ("", "dalle2_core", "DALLE2-pytorch", "ratio")
    return [
        "Seconds: median (smallest–largest) over the rounds of each round's median step. "
        f"Load average before a run: {min(loads):.1f} to {max(loads):.1f}, median {statistics.median(loads):.1f}.\n\n"
        + report.table(head, rows),
        "## Each round's ratio of times\n\n" + report.table(("", "theirs / ours"), ratios),
        "## The same function\n\nWith DALLE2-pytorch's weights, both U-Nets' outputs differ by at most "
        f"{apart:.0e} of the largest output (conditional and with the image embedding dropped).",
    ]


def main() -> None:
    """Run the rounds and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--dim-mults", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--size", type=int, default=64, help="pixels")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5, help="training steps that are counted, two more before")
    parser.add_argument("--sample-steps", type=int, default=5)
    parser.add_argument("--calls", type=int, default=1, help="of sample that are counted, one more before")
    parser.add_argument("--cond-scale", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one run")
    parser.add_argument("--peer", type=Path, default=Path(__file__).parent / "peers" / "dalle2-pytorch")
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks/decoder"))
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    options = parser.parse_args()
    started = report.start("benchmarks.decoder_vs_dalle2_pytorch", measure.use_cores(options.cores))
    options.work = options.work.resolve()
    options.work.mkdir(parents=True, exist_ok=True)
    sides = Sides(options)
    apart = difference(sides)
    found: dict[str, dict[str, list[dict]]] = {task.name: {_OURS: [], _THEIRS: []} for task in tasks(options)}
    torches = set()
    for number in range(options.rounds):
        for task in tasks(options):
            for package, runs in found[task.name].items():
                runs.append(sides.run(package, task.arguments, f"{package}-{task.arguments[0]}"))
                torches.add(f"{package} torch {runs[-1]['torch']}")
                middle = statistics.median(runs[-1]["seconds"])
                print(f"round {number + 1}: {task.name}: {package}: {middle:.3f} s", flush=True)
    report.write(
        "decoder_vs_dalle2_pytorch",
        f"U-Net dim {options.dim}, mults {options.dim_mults}, {options.size} px, batch {options.batch}, fp32, "
        f"{options.rounds} rounds in turns",
        sections(found, apart),
        started,
        peers=["DALLE2-pytorch 1.15.6", *sorted(torches)],
        not_measured=[
            "A GPU; float16 or bfloat16; torch.compile.",
            "Larger networks and images, cascades, text conditioning.",
            "What is learnt: both sides compute the same function, and their losses differ where theirs is wrong.",
        ],
        folder=options.results,
    )


if __name__ == "__main__":
    main()
