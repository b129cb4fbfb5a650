"""What spoils images: each against an independent truth."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from dalle2_core.decoder.degradations import bsr, gaussian_blur, sometimes_blurred
from dalle2_core.decoder.jpeg import jpeg_like
from dalle2_core.diffusion.thresholding import dynamic, static, threshold_named
from dalle2_core.images import averaged, random_crops, resized


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def smooth(rows=1, size=32, seed=0):
    coarse = torch.rand(rows, 3, 5, 5, generator=seeded(seed))
    return F.interpolate(coarse, size, mode="bicubic").clamp(0, 1)


@pytest.mark.parametrize("quality", [30, 60, 90])
def test_jpeg_is_what_pillow_makes(quality):
    image = smooth()
    pixels = (image[0].permute(1, 2, 0) * 255).round().byte().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=0)
    theirs = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)[None] / 255
    ours = jpeg_like(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255, quality)
    # libjpeg works in integers and rounds on the way; a coefficient halfway between two steps goes either way.
    apart = float((ours - theirs).abs().mean())
    assert apart < 1 / 255
    other = jpeg_like(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255, quality - 10)
    assert apart < 0.7 * float((other - theirs).abs().mean())
    assert float((ours - image).abs().mean()) > 0.5 * float((theirs - image).abs().mean())


def test_jpeg_of_sizes_that_are_no_multiples_of_8_and_of_grey():
    image = smooth(2, 13)[:, :1]
    out = jpeg_like(image, 95)
    assert out.shape == image.shape
    assert float((out - image).abs().max()) < 0.1


def test_blur_is_scipys_each_row_with_its_own():
    from scipy.ndimage import gaussian_filter

    images = torch.rand(2, 3, 12, 12, generator=seeded())
    ours = gaussian_blur(images, torch.tensor([0.7, 1.5]), 13)
    for row, sigma in enumerate((0.7, 1.5)):
        for channel in range(3):
            theirs = gaussian_filter(images[row, channel].double().numpy(), sigma, mode="nearest", radius=6)
            np.testing.assert_allclose(ours[row, channel].numpy(), theirs, atol=1e-5)


def test_blur_has_the_probability_and_the_ranges_it_is_told():
    images = torch.rand(400, 3, 6, 6, generator=seeded())
    blurred = sometimes_blurred(images, 0.3, (0.4, 1.2), (3, 7), seeded(1))
    changed = (blurred != images).flatten(1).any(1).float().mean()
    assert float(changed) == pytest.approx(0.3, abs=0.08)


def test_bsr_spoils_each_row_by_its_own_draw_within_range():
    image = smooth().expand(12, -1, -1, -1)
    out, again = bsr(image, seeded(3)), bsr(image, seeded(3))
    assert torch.equal(out, again)
    assert 0 <= float(out.min()) <= float(out.max()) <= 1
    errors = (out - image).abs().flatten(1).mean(1)
    assert float(errors.min()) > 1e-3
    assert float(errors.max()) < 0.15
    assert errors.unique().numel() == 12


def test_making_smaller_is_antialiased_and_keeps_the_mean():
    stripes = torch.zeros(1, 1, 64, 64)
    stripes[..., ::4] = 1.0
    assert float((resized(stripes, 16)[..., 2:-2] - 0.25).abs().max()) < 0.02
    image = smooth(size=64)
    assert float((resized(image, 16).mean() - image.mean()).abs()) < 5e-3
    assert resized(image, 64) is image


def test_averaging_lets_nothing_of_a_neighbour_in():
    image = torch.zeros(1, 1, 8, 8)
    image[..., :4] = 100.0
    assert averaged(image, 2)[0, 0].tolist() == [[100.0, 0.0], [100.0, 0.0]]


def test_crops_are_at_the_same_place():
    one = torch.rand(5, 3, 9, 9, generator=seeded())
    left, right = random_crops(4, one, one + 10, draws=seeded(2))
    torch.testing.assert_close(left + 10, right)
    assert left.shape == (5, 3, 4, 4)


def test_thresholding():
    x = torch.linspace(-3, 3, 601).repeat(2, 1)
    x[1] *= 0.2
    assert float(static(x).abs().max()) == 1.0
    out = dynamic(0.9)(x)
    limit = float(x[0].abs().quantile(0.9))
    torch.testing.assert_close(out[0], x[0].clamp(-limit, limit) / limit, atol=1e-2, rtol=0)
    assert torch.equal(out[1], x[1])  # inside the range nothing changes
    assert float(dynamic(1.0)(x)[0].abs().max()) == 1.0


def test_the_percentile_is_each_rows_own_of_all_its_numbers():
    x = torch.randn(3, 2, 4, 5, generator=seeded()) * torch.tensor([3.0, 0.2, 10.0]).view(3, 1, 1, 1)
    x[2] += 2 * x[2].sign()  # all of it is outside of the range
    for percentile, rank in ((0.95, 38), (0.5, 20), (0.001, 1), (1.0, 40), (1.5, 40)):
        out = dynamic(percentile)(x)
        for row in range(3):
            limit = max(1.0, sorted(x[row].abs().flatten().tolist())[rank - 1])
            torch.testing.assert_close(out[row], x[row].clamp(-limit, limit) / limit)


def test_thresholds_have_names():
    x = torch.randn(2, 3, generator=seeded()) * 4
    assert torch.equal(threshold_named("static", 0.9)(x), x.clamp(-1, 1))
    assert torch.equal(threshold_named("dynamic", 0.4)(x), dynamic(0.4)(x))
    assert threshold_named("none", 0.9)(x) is x
