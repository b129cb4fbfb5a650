"""Read the public signatures of DALLE2-pytorch and x-clip from their sources, as the JSON that a test compares with.

    pip download --no-deps dalle2-pytorch==1.15.6 x-clip==0.14.4, unpack both wheels into FOLDER, then
    python -m tools.peer_signatures FOLDER > tests/oracles/dalle2_pytorch_signatures.json

Names and defaults alone are read, by `ast`: nothing is imported or run.
"""

import ast
import json
import sys
from pathlib import Path

CLASSES = {
    "dalle2_pytorch/dalle2_pytorch.py": (
        "DiffusionPriorNetwork", "DiffusionPrior", "Unet", "Decoder", "DALLE2",
        "OpenAIClipAdapter", "OpenClipAdapter", "XClipAdapter",
    ),
    "dalle2_pytorch/trainer.py": ("DiffusionPriorTrainer", "DecoderTrainer"),
    "dalle2_pytorch/vqgan_vae.py": ("VQGanVAE",),
    "x_clip/x_clip.py": ("CLIP",),
}  # fmt: skip


def signatures(folder: Path) -> dict[str, dict[str, list[list[str | None]] | str]]:
    """class → public method → [[parameter, default as source text or null], …], or "property"."""
    found = {}
    for file, classes in CLASSES.items():
        for node in ast.parse((folder / file).read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name in classes:
                found[node.name] = {
                    it.name: _parameters(it)
                    for it in node.body
                    if isinstance(it, ast.FunctionDef) and (it.name == "__init__" or not it.name.startswith("_"))
                }
    return found


def _parameters(function: ast.FunctionDef) -> list[list[str | None]] | str:
    if any(isinstance(it, ast.Name) and it.id == "property" for it in function.decorator_list):
        return "property"
    args = function.args
    positional = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(positional) - len(args.defaults)) + list(args.defaults)
    both = [*zip(positional, defaults, strict=True), *zip(args.kwonlyargs, args.kw_defaults, strict=True)]
    return [[it.arg, default and ast.unparse(default)] for it, default in both if it.arg != "self"]


if __name__ == "__main__":
    print(json.dumps(signatures(Path(sys.argv[1])), indent=1))
