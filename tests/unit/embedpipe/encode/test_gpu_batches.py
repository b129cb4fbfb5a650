"""What feeds a GPU: batches, and weights of a lower precision. Run on the CPU."""

import numpy as np
import pytest
import torch

from embedpipe.encode import EncoderConfig, load_encoder
from embedpipe.encode.batching import BatchingConfig, _stacked
from embedpipe.encode.lower_weights import lower_weights


@pytest.mark.parametrize(
    ("batch_size", "pinned", "at_once", "ahead"),
    [(None, False, 64, 2), (None, True, 512, 2), (64, True, 64, 16), (1000, True, 1000, 2), (7, False, 7, 2)],
)
def test_a_gpu_gets_larger_batches_and_as_many_images_ahead(batch_size, pinned, at_once, ahead):
    config = BatchingConfig(batch_size=batch_size, pin_memory=pinned)
    assert (config.samples_at_once, config.batches_ahead) == (at_once, ahead)


def test_pictures_are_stacked_as_they_are():
    pictures = [torch.randint(0, 256, (3, 5, 4), dtype=torch.uint8) for _ in range(3)]
    assert torch.equal(_stacked(pictures, pin_memory=False), torch.stack(pictures))


def test_lower_weights_leave_norms_exact(tiny_model):
    captions = ["a cat", "two red dogs"]
    exact = load_encoder(EncoderConfig(tiny_model, precision="fp32"))
    size = exact.card.preprocess.size
    pixels = torch.randint(0, 256, (4, 3, *size), dtype=torch.uint8)
    lowered = load_encoder(EncoderConfig(tiny_model, precision="fp32"))
    before = {name: tensor.clone() for name, tensor in lowered._model.state_dict().items()}
    lower_weights(lowered._model, torch.bfloat16)
    lowered._input_dtype = torch.bfloat16
    seen = set()
    for module in lowered._model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.register_forward_hook(lambda _m, inputs, out: seen.add((inputs[0].dtype, out.dtype)))
    for ours, theirs in (
        (lowered.images(pixels).wait().rows, exact.images(pixels).wait().rows),
        (lowered.texts(captions).rows, exact.texts(captions).rows),
        (lowered.text_states(captions).embeddings.rows, exact.texts(captions).rows),
    ):
        assert 1 - np.sum(ours * theirs, axis=1).min() < 1e-3
    assert seen == {(torch.float32, torch.bfloat16)}
    for name, tensor in lowered._model.state_dict().items():
        if ".ln_" in name or name.startswith("ln_"):
            assert torch.equal(tensor, before[name]), name
        elif tensor.is_floating_point():
            assert tensor.dtype == torch.bfloat16, name
