"""An IP-Adapter: image embeddings for a base model that was trained on texts. Ye et al. 2308.06721."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from dalle2_core.files import read_tensors, sha256
from embedpipe.errors import InputError, ModelError

_PARTS = ("image_proj", "ip_adapter")


@dataclass(frozen=True, slots=True)
class Adapter:
    """path: a safetensors file. width: of the embeddings it takes. scale: how much it counts beside the text."""

    path: Path
    width: int
    scale: float = 1.0

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """By part, as diffusers takes them. Raises CheckpointError where the file is damaged."""
        found: dict[str, dict[str, Tensor]] = {part: {} for part in _PARTS}
        for name, tensor in read_tensors(self.path).items():
            part, _, rest = name.partition(".")
            if part in found:
                found[part][rest] = tensor
        return found

    def digest(self) -> str:
        """Of the file and the scale."""
        return f"{sha256(self.path)}{self.scale}"


def open_adapter(path: str, scale: float = 1.0) -> Adapter:
    """What a file is, by the shapes of its tensors.

    Raises InputError where there is none, ModelError for a pickle, or one that reads more than an embedding.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{path}: no such file", "Check the path")
    try:
        with safe_open(file, framework="pt") as opened:
            names = set(opened.keys())
            shape = opened.get_slice("image_proj.proj.weight").get_shape() if names >= _PROJECTION else None
    except (OSError, SafetensorError) as problem:
        raise ModelError(f"{path}: no safetensors file ({problem})", "Give the adapter's .safetensors") from problem
    if shape is None or not any(name.startswith("ip_adapter.") for name in names):
        raise ModelError(
            f"{path}: no IP-Adapter that takes the embedding of an image; the kinds called plus and faceid take more",
            "Give one such as ip-adapter_sd15.safetensors",
        )
    return Adapter(file, int(shape[1]), scale)


_PROJECTION = {"image_proj.proj.weight", "image_proj.norm.weight"}
