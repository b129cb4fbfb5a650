"""How Pillow alone reads a picture: ImageOps turns it, ImageCms converts it, alpha_composite paints it on a ground."""

import io

import numpy as np
import pillow_heif
from PIL import Image, ImageCms, ImageOps

pillow_heif.register_heif_opener()


def opened(data):
    """Lazily, whatever its size."""
    return Image.open(io.BytesIO(data))


def reading(data, background=(255, 255, 255)):
    """The picture as uint8 [h, w, 3]: upright, in sRGB, on the background."""
    image = opened(data)
    profile = image.info.get("icc_profile")
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(int) // 256).astype(np.uint8))
    if image.mode in ("I", "F"):
        image = Image.fromarray(_scaled(np.asarray(image).astype(float), image.mode))
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    if image.mode in ("1", "LA", "La"):
        image = image.convert("L")
    elif image.mode not in ("L", "CMYK"):
        image = (image.convert("RGBA") if alpha else image).convert("RGB")
    shown = _converted(image, profile)
    if alpha is not None:
        shown.putalpha(alpha)
        ground = Image.new("RGBA", shown.size, (*background, 255))
        shown = Image.alpha_composite(ground, shown).convert("RGB")
    return np.asarray(shown)


def _scaled(values, mode):
    tops = (1, 255, 65535) if mode == "F" else (255, 65535)
    if values.min() < 0 or values.max() > 65535:
        values = (values - values.min()) / (values.max() - values.min())
    else:
        values = values / next(top for top in tops if values.max() <= top)
    return (values * 255).round().astype(np.uint8)


def _converted(image, profile):
    if profile:
        for candidate in (image, image.convert("RGB")) if image.mode == "L" else (image,):
            try:
                source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
                srgb = ImageCms.createProfile("sRGB")
                return ImageCms.profileToProfile(candidate, source, srgb, outputMode="RGB")
            except (ImageCms.PyCMSError, OSError):
                continue
    return image.convert("RGB")
