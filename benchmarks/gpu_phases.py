"""The phases of `benchmarks.gpu`: each measures one thing and says whether that is as it should be."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks import photos
from dalle2_core.conditioning import DecoderBatch
from dalle2_core.precision import computing
from dalle2_core.presets import DECODER_PRESETS, PRIOR_PRESETS
from dalle2_core.presets.decoder import IN_LATENTS
from dalle2_core.training.config import TrainConfig
from dalle2_core.training.distributed import join_processes
from dalle2_core.training.ema import make_ema
from dalle2_core.training.optim import OptimConfig, make_optimizer
from dalle2_core.training.state import TrainState
from dalle2_core.training.step import LossPass, take_step
from dalle2_core.types import PriorBatch
from embedpipe.clip_model.encoder_card import EncoderCard
from embedpipe.encode import EncoderConfig, load_encoder
from embedpipe.images.decode import decode
from embedpipe.load import EmbeddingDataset

Found = dict[str, Any]
_CAPTIONS = ["a photo of a cat on a mat", "two red dogs", "soup", "a map of the old town, drawn by hand"]
_WIDTH = 768


@dataclass(frozen=True, slots=True)
class Setting:
    """Where the phases run, at which size, and the folder of their data."""

    device: str
    tiny: bool
    work: Path

    @property
    def on_gpu(self) -> bool:
        """Whether there is a GPU to speak of."""
        return self.device.startswith("cuda")

    def wait(self) -> None:
        """Until the device has done all it was given."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def models(self) -> list[tuple[str, str]]:
        """(name, pretrained) of the encoders: real ones with random weights, or one that is tiny."""
        if self.tiny:
            return [(self.tiny_model(), "")]
        return [(name, "random") for name in ("ViT-B-32", "ViT-L-14", "RN50", "convnext_base", "ViT-B-16-SigLIP")]

    def tiny_model(self) -> str:
        """A folder with a model for trying the script."""
        from tests import tiny_clip

        folder = self.work / "tiny-model"
        return str(folder) if folder.exists() else str(tiny_clip.write(folder))

    def photo_set(self) -> photos.PhotoSet:
        """The pictures: 16 tars of 2,000, or two of four."""
        return photos.PhotoSet(8, 2) if self.tiny else photos.PhotoSet(32_000, 16)

    def data(self) -> Path:
        """Their folder, made on first use."""
        return photos.make(self.work / "photos", self.photo_set())


def setup(setting: Setting) -> Found:
    """The pictures and what runs here."""
    made = setting.data()
    packages = ("torch", "open_clip_torch", "numpy", "simplejpeg")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if setting.on_gpu else []
    return {
        "passed": setting.on_gpu == bool(gpus),
        "gpus": gpus,
        "cores": len(os.sched_getaffinity(0)),
        "versions": {name: version(name) for name in packages},
        "photos": len(list(made.glob("*.tar"))),
        "attention": _attention_kernels(setting),
    }


def _attention_kernels(setting: Setting) -> dict[str, list[str]]:
    """Which of torch's attention kernels take a shape, by name."""
    if not setting.on_gpu:
        return {}
    from torch.nn.attention import SDPBackend, sdpa_kernel

    kernels = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION)
    shapes = {"ViT-B-32": (64, 12, 50, 64), "ViT-L-14": (64, 16, 257, 64), "prior": (64, 12, 5, 64)}
    taken: dict[str, list[str]] = {}
    for name, shape in shapes.items():
        q = torch.randn(shape, device=setting.device, dtype=torch.bfloat16)
        for kernel in kernels:
            try:
                with warnings.catch_warnings(), sdpa_kernel(kernel):
                    warnings.simplefilter("ignore")
                    F.scaled_dot_product_attention(q, q, q)
            except RuntimeError:
                continue
            taken.setdefault(name, []).append(kernel.name)
    return taken


def exactness(setting: Setting) -> Found:
    """1 - cos of embeddings to those of the CPU in fp32: below 1e-6 in fp32, 1e-3 in bf16, 1e-4 in fp16."""
    limits = {"fp32": 1e-6, "bf16": 1e-3} | ({"fp16": 1e-4} if setting.on_gpu else {})
    apart: dict[str, float] = {}
    passed = True
    for model, pretrained in setting.models():
        exact = load_encoder(EncoderConfig(model, pretrained, precision="fp32"), "cpu")
        pixels = torch.randint(0, 256, (4, 3, *exact.card.preprocess.size), dtype=torch.uint8)
        wanted = (exact.images(pixels).wait().rows, exact.texts(_CAPTIONS).rows)
        for precision, limit in limits.items():
            encoder = load_encoder(EncoderConfig(model, pretrained, precision=precision), setting.device)
            found = (encoder.images(pixels).wait().rows, encoder.texts(_CAPTIONS).rows)
            for side, ours, theirs in zip(("image", "text"), found, wanted, strict=True):
                worst = float(1 - (ours * theirs).sum(axis=1).min())
                apart[f"{Path(model).name} {precision} {side}"] = worst
                passed &= worst < limit
    return {"passed": passed, "one_minus_cos": apart}


def training_steps(setting: Setting) -> Found:
    """Two steps of every preset, in fp32 and bf16: none may crash, and each may wait for the GPU once."""
    syncs: dict[str, int] = {}
    names = ["tiny"] if setting.tiny else list(PRIOR_PRESETS)
    decoders = ["tiny"] if setting.tiny else sorted(set(DECODER_PRESETS) - IN_LATENTS)
    for precision in ("float32", "bfloat16"):
        for name in names:
            syncs[f"prior {name} {precision}"] = _syncs_of(_prior_step(name, 4, precision, setting), setting)
        for name in decoders:
            for stage in range(1, len(DECODER_PRESETS[name]().stages) + 1):
                step = _decoder_step(name, stage, 2, precision, setting)
                syncs[f"decoder {name} {stage} {precision}"] = _syncs_of(step, setting)
    return {"passed": max(syncs.values()) <= 1, "syncs_per_step": syncs}


def _syncs_of(step: Callable[[], float], setting: Setting) -> int:
    step()  # makes the optimizer's state
    if not setting.on_gpu:
        step()
        return 0
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(it.message) for it in told)


def _prior_step(preset: str, rows: int, precision: str, setting: Setting) -> Callable[[], float]:
    recipe = PRIOR_PRESETS[preset]()
    width = recipe.network.dim or _WIDTH
    model = recipe.build(width).to(setting.device).train()
    embeds = [F.normalize(torch.randn(rows, width, device=setting.device), dim=-1) for _ in range(2)]
    states = mask = None
    if recipe.text_tokens:
        states = torch.randn(rows, 77, width, device=setting.device)
        mask = torch.ones(rows, 77, dtype=torch.bool, device=setting.device)
    return _step(model, PriorBatch(embeds[0], embeds[1], states, mask), rows, precision)


def _decoder_step(preset: str, stage: int, rows: int, precision: str, setting: Setting) -> Callable[[], float]:
    model = DECODER_PRESETS[preset]().build(stage, _WIDTH, None, None).to(setting.device).train()
    size = model.config.image_size
    images = torch.randint(0, 256, (rows, 3, size, size), dtype=torch.uint8, device=setting.device)
    embed = torch.randn(rows, _WIDTH, device=setting.device) if model.unet.config.sees_image_embed else None
    return _step(model, DecoderBatch(images, embed), rows, precision)


def _step(model: Any, batch: Any, rows: int, precision: Any) -> Callable[[], float]:
    optim, config = OptimConfig(), TrainConfig(batch_size=rows, precision=precision)
    state = TrainState(model, make_optimizer(model, optim), make_ema(model, 0.99))
    together = join_processes(next(model.parameters()).device)
    return lambda: take_step(state, LossPass(model), batch, 1e-4, config, optim, together)


def _rate(step: Callable[[], object], rows: int, setting: Setting, seconds: float = 3.0) -> float:
    """Rows a second, after two steps that are not counted."""
    for _ in range(1 if setting.tiny else 2):
        step()
    setting.wait()
    begun, done = time.perf_counter(), 0
    while done == 0 or (not setting.tiny and time.perf_counter() - begun < seconds):
        step()
        setting.wait()
        done += 1
    return done * rows / (time.perf_counter() - begun)


def model_alone(setting: Setting) -> Found:
    """Images a second of the image tower, by batch and precision, pixels in pinned memory."""
    rates = {}
    for model, pretrained in setting.models()[:2]:
        for precision in ("bf16", "fp16") if setting.on_gpu else ("fp32",):
            encoder = load_encoder(EncoderConfig(model, pretrained, precision=precision), setting.device)
            for batch in (4,) if setting.tiny else (64, 256, 512, 1024):
                shape = (batch, 3, *encoder.card.preprocess.size)
                pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=setting.on_gpu).random_(0, 256)
                name = f"{Path(model).name} {precision} {batch}"
                rates[name] = round(_rate(lambda: encoder.images(pixels).wait(), batch, setting, 1.5))  # noqa: B023
    return {"passed": min(rates.values()) > 0, "images_per_s": rates}


def decoding_alone(setting: Setting) -> Found:
    """Pictures a second that threads and processes decode to 224 pixels."""
    card = load_encoder(EncoderConfig(*setting.models()[0])).card
    pictures = [photos.picture(number)[0] for number in range(4 if setting.tiny else 200)]
    cores, rates = len(os.sched_getaffinity(0)), {}
    torch.set_num_threads(1)
    for name, pool in (
        ("threads", concurrent.futures.ThreadPoolExecutor(cores)),
        ("processes", concurrent.futures.ProcessPoolExecutor(cores)),
    ):
        with pool:
            work = [(data, card) for data in pictures]
            list(pool.map(_decoded, work[:cores]))  # starts them
            begun, done = time.perf_counter(), 0
            while done == 0 or (not setting.tiny and time.perf_counter() - begun < 5):
                done += sum(pool.map(_decoded, work, chunksize=4))
            rates[name] = round(done / (time.perf_counter() - begun))
    return {"passed": min(rates.values()) > 0, "images_per_s": rates, "cores": cores}


def _decoded(work: tuple[bytes, EncoderCard]) -> int:
    decode(work[0], work[1].preprocess, work[1].rules)
    return 1


def end_to_end(setting: Setting) -> Found:
    """Samples a second of `embedpipe encode`, its start included, by model and workers per GPU; GPU use meanwhile."""
    found = {}
    for model, pretrained in setting.models()[:2]:
        for each in (1,) if not setting.on_gpu else (1, 3):
            out = setting.work / f"emb-{Path(model).name}-{each}"
            words = _encode_words(setting, model, pretrained, out, "--workers-per-gpu", str(each), "--overwrite")
            begun = time.perf_counter()
            with _gpu_use(setting) as use:
                subprocess.run(words, check=True, capture_output=True)
            rows = len(EmbeddingDataset(str(out)))
            found[f"{Path(model).name} x{each}"] = {
                "rows": rows,
                "samples_per_s": round(rows / (time.perf_counter() - begun), 1),
                "gpu_percent": use(),
            }
    return {"passed": all(it["rows"] == setting.photo_set().n for it in found.values()), "encode": found}


def _encode_words(setting: Setting, model: str, pretrained: str, out: Path, *more: str) -> list[str]:
    places = ["--gpus", "1"] if setting.on_gpu else ["--gpus", "0"]
    own = ["--pretrained", pretrained] if pretrained else []
    data = str(setting.data())
    return [sys.executable, "-m", "embedpipe_cli", "encode", data, str(out), "--model", model, *own, *places, *more]


class _gpu_use:
    """Within the block, asks nvidia-smi how busy the GPU is; the result is called for the mean, None without a GPU."""

    def __init__(self, setting: Setting) -> None:
        self._words = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200"]
        self._process: subprocess.Popen[str] | None = None
        self._on_gpu = setting.on_gpu
        self._said = ""

    def __enter__(self) -> Callable[[], float | None]:
        if self._on_gpu:
            self._process = subprocess.Popen(self._words, stdout=subprocess.PIPE, text=True)
        return self._mean

    def __exit__(self, *problem: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._said = self._process.communicate()[0]

    def _mean(self) -> float | None:
        numbers = [float(line) for line in self._said.split() if line.isdecimal()]
        return round(float(np.mean(numbers)), 1) if numbers else None


def prior_rate(setting: Setting) -> Found:
    """Rows a second that a prior is trained on, by preset and precision."""
    rates = {}
    for name in ("tiny",) if setting.tiny else ("base", "laion-l14"):
        rows = 8 if setting.tiny else 4096
        for precision in ("float32", "tf32", "bfloat16"):
            step = _prior_step(name, rows, precision, setting)
            rates[f"{name} {precision}"] = round(_rate(step, rows, setting))
    return {"passed": min(rates.values()) > 0, "rows_per_s": rates}


def decoder_rate(setting: Setting) -> Found:
    """Images a second that each stage of a decoder is trained on, by precision."""
    rates = {}
    name = "tiny" if setting.tiny else "base"
    for stage in range(1, len(DECODER_PRESETS[name]().stages) + 1):
        rows = 2 if setting.tiny else 64
        for precision in ("float32", "bfloat16"):
            step = _decoder_step(name, stage, rows, precision, setting)
            rates[f"{name} {stage} {precision}"] = round(_rate(step, rows, setting), 1)
    return {"passed": min(rates.values()) > 0, "images_per_s": rates}


def sampling_rate(setting: Setting) -> Found:
    """Embeddings a second that a prior samples, by precision, and how far that takes them from float32."""
    recipe = PRIOR_PRESETS["tiny" if setting.tiny else "base"]()
    width, rows = recipe.network.dim or _WIDTH, 8 if setting.tiny else 4096
    torch.manual_seed(0)
    prior = recipe.build(width).to(setting.device).eval()
    text = F.normalize(torch.randn(rows, width, device=setting.device), dim=-1)
    rates, made = {}, {}
    for precision in ("float32", "tf32", "bfloat16"):

        def sample(precision: str = precision) -> torch.Tensor:
            draws = torch.Generator(setting.device).manual_seed(0)
            with computing(precision, setting.device), torch.no_grad():
                return prior.sample(text, generator=draws).float()

        made[precision] = sample()
        rates[precision] = round(_rate(sample, rows, setting), 1)
    apart = {name: float(1 - F.cosine_similarity(it, made["float32"]).median()) for name, it in made.items()}
    finite = all(bool(torch.isfinite(it).all()) for it in made.values())
    return {"passed": finite and max(apart.values()) < 0.01, "rows_per_s": rates, "one_minus_cos": apart}


def kills(setting: Setting) -> Found:
    """`embedpipe encode` killed in the middle and run again has the keys of an undisturbed run, and nearly its rows."""
    model, pretrained = setting.models()[0]
    whole, torn = setting.work / "undisturbed", setting.work / "killed"
    words = [_encode_words(setting, model, pretrained, out, "--overwrite") for out in (whole, torn)]
    subprocess.run(words[0], check=True, capture_output=True)
    process = subprocess.Popen(words[1], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    until = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < until and not list(torn.glob("manifest/*.json")):
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):  # it was done before
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run(words[1][:-1], check=True, capture_output=True)
    one, other = EmbeddingDataset(str(whole)), EmbeddingDataset(str(torn))
    same_keys = one.keys() == other.keys()
    apart = (
        float(np.abs(one.image.read() - other.image.read()).max()) if same_keys and one.image and other.image else -1
    )
    return {"passed": same_keys and 0 <= apart < 1e-2, "largest_difference": apart}


def memory(setting: Setting) -> Found:
    """Peak memory of a model with a batch of 512, and GPUs besides the first on which this process has a context."""
    model, pretrained = setting.models()[0]
    encoder = load_encoder(EncoderConfig(model, pretrained), setting.device)
    encoder.images(torch.zeros(4 if setting.tiny else 512, 3, *encoder.card.preprocess.size, dtype=torch.uint8)).wait()
    if not setting.on_gpu:
        return {"passed": True, "peak_mib": None, "contexts": None}
    asked = ["nvidia-smi", "--query-compute-apps=pid,gpu_uuid", "--format=csv,noheader"]
    said = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.splitlines()
    contexts = sum(line.split(",")[0].strip() == str(os.getpid()) for line in said)
    peak = torch.cuda.max_memory_allocated() / 2**20
    return {"passed": contexts <= 1, "peak_mib": round(peak), "contexts": contexts}


PHASES: dict[str, Callable[[Setting], Found]] = {
    "setup": setup,
    "exactness": exactness,
    "training_steps": training_steps,
    "model_alone": model_alone,
    "decoding_alone": decoding_alone,
    "end_to_end": end_to_end,
    "prior_rate": prior_rate,
    "decoder_rate": decoder_rate,
    "sampling_rate": sampling_rate,
    "kills": kills,
    "memory": memory,
}
