"""One side of `decoder_vs_dalle2_pytorch`: the same lines for both packages, but for the one that imports.

python decoder_side.py dalle2_core train --steps 5        → seconds of each step, as JSON on the last line
python decoder_side.py dalle2_pytorch sample --steps 10   → seconds of whole calls
python decoder_side.py dalle2_pytorch write FILE          → a U-Net's weights, inputs and outputs
"""

import argparse
import json
import time
from importlib import import_module

import torch


def vm_hwm_mib():
    """Peak resident size of this process."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM:"))


def make(package, options):
    """A decoder of one stage, and a batch."""
    torch.manual_seed(0)
    unet = package.Unet(dim=options.dim, image_embed_dim=512, dim_mults=tuple(options.dim_mults), channels=3)
    decoder = package.Decoder(
        unet=unet,
        image_size=options.size,
        timesteps=1000,
        sample_timesteps=options.steps if options.what == "sample" else None,
    )
    images = torch.rand(options.batch, 3, options.size, options.size)
    embeds = torch.nn.functional.normalize(torch.randn(options.batch, 512), dim=-1)
    return decoder, images, embeds


def train(package, options):
    """Seconds of whole training steps: loss, backward pass, Adam. The first two are not counted."""
    decoder, images, embeds = make(package, options)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=1e-4)
    seconds, losses = [], []
    for _ in range(options.steps + 2):
        begun = time.perf_counter()
        optimizer.zero_grad()
        loss = decoder(images, image_embed=embeds, unet_number=1)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - begun)
    assert all(loss == loss for loss in losses), "a loss is NaN"
    return seconds[2:]


def sample(package, options):
    """Seconds of one step: whole calls of `sample` over their steps. One call before is not counted."""
    decoder, _, embeds = make(package, options)
    seconds = []
    for _ in range(options.calls + 1):
        begun = time.perf_counter()
        out = decoder.sample(image_embed=embeds, cond_scale=options.cond_scale)
        seconds.append((time.perf_counter() - begun) / options.steps)
    assert out.shape == (options.batch, 3, options.size, options.size)
    return seconds[1:]


def write(package, options):
    """A randomised U-Net's weights, inputs and outputs, for the other side to compare with."""
    torch.manual_seed(0)
    unet = package.Unet(
        dim=options.dim, image_embed_dim=512, dim_mults=tuple(options.dim_mults), channels=3, channels_out=6,
        cond_on_image_embeds=True,
    ).eval()  # fmt: skip
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    x, time_steps = torch.randn(2, 3, options.size, options.size), torch.tensor([3, 700])
    embeds = torch.randn(2, 512)
    with torch.no_grad():
        out = unet(x, time_steps, image_embed=embeds)
        dropped = unet(x, time_steps, image_embed=embeds, image_cond_drop_prob=1.0)
    tensors = {"x": x, "time": time_steps, "embeds": embeds, "out": out, "dropped": dropped}
    torch.save({"weights": unet.state_dict(), **tensors}, options.file)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", choices=["dalle2_core", "dalle2_pytorch"])
    parser.add_argument("what", choices=["train", "sample", "write"])
    parser.add_argument("file", nargs="?")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--dim-mults", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--calls", type=int, default=2)
    parser.add_argument("--cond-scale", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    chosen = {"train": train, "sample": sample, "write": write}[options.what]
    seconds = chosen(import_module(options.package), options)
    print(json.dumps({"seconds": seconds, "peak_mib": vm_hwm_mib(), "torch": torch.__version__}))
