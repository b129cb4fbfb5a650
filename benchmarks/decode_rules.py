"""What the rules for pictures cost plain JPEGs: `decode` under open_clip's rules and under ours, in one process.

    python benchmarks/decode_rules.py [--rounds 15]

The two take turns at each picture; the ratio is of the sums of a round, reported as the median of all rounds and their
middle half.
"""

import argparse
import io
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from embedpipe.clip_model.encoder_card import OPEN_CLIP_RULES, PreprocessSpec
from embedpipe.images.decode import DecodedImage, decode
from embedpipe.images.rules import image_rules

SPEC = PreprocessSpec((224, 224), (0.0,) * 3, (1.0,) * 3, "bicubic", "shortest", 0)


def photographs(sizes):
    """JPEGs cut from the two photographs of scikit-learn."""
    import sklearn.datasets

    folder = Path(sklearn.datasets.__file__).parent / "images"
    for name in ("china.jpg", "flower.jpg"):
        with Image.open(folder / name, formats=("JPEG",)) as image:
            whole = image.convert("RGB")
        for side in sizes:
            stream = io.BytesIO()
            whole.resize((side * 4 // 3, side), Image.Resampling.LANCZOS).save(stream, "JPEG", quality=85)
            yield stream.getvalue()


def seconds(data, rules):
    """Processor time of one decoding: other processes count little."""
    begun = time.thread_time()
    assert isinstance(decode(data, SPEC, rules), DecodedImage)
    return time.thread_time() - begun


def main():
    """Print the ratio for each set of sizes."""
    options = argparse.ArgumentParser()
    options.add_argument("--rounds", type=int, default=15)
    rounds = options.parse_args().rounds
    torch.set_num_threads(1)
    for sizes in ((256,), (480,), (1080,), (256, 480, 1080)):
        data = list(photographs(sizes)) * 6
        ratios = []
        for number in range(rounds + 1):
            spent = {}
            pair = (OPEN_CLIP_RULES, image_rules())
            for one in data:
                for rules in pair if number % 2 else pair[::-1]:
                    spent[rules] = spent.get(rules, 0.0) + seconds(one, rules)
            ratios.append(spent[pair[1]] / spent[pair[0]])
        low, middle, high = np.quantile(ratios[1:], (0.25, 0.5, 0.75))
        print(f"shorter side {sizes}: {middle:.3f} times the time ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
