"""Make a folder of images and masks: handwritten digits on textured ground, and which digit every pixel belongs to.

    python examples/digit_masks.py scans --images 600
    pyro-compress fit --task segmentation --data scans --net unet --prior log-uniform --out runs/scans

The digits are the 1,797 of scikit-learn, three times as large, two of them on every image of 48 × 48 pixels. Ground and
digits have a texture and a brightness of their own each, so that no threshold tells them apart. Pixels of the ground
are 0, those of digit d are d + 1, and the rim of a digit, where both mix, is 255: no class.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from sklearn.datasets import load_digits

SIDE, SCALE = 48, 3
RIM, INK = 4, 9
"""A digit's pixels have values from 0 to 16: below the first they are ground, from the second on ink."""
WITHOUT = 255


def texture(generator: np.random.Generator) -> np.ndarray:
    """Smooth noise `(SIDE, SIDE)` around a random brightness."""
    noise = Image.fromarray(generator.integers(0, 256, (SIDE, SIDE), dtype=np.uint8))
    smooth = np.asarray(noise.filter(ImageFilter.GaussianBlur(float(generator.uniform(0.5, 2)))), np.float64)
    return (smooth - smooth.mean()) / smooth.std() * generator.uniform(5, 20) + generator.uniform(70, 190)


def scan(digits: list[tuple[np.ndarray, int]], generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An image of some digits, and its mask, bytes `(SIDE, SIDE)` each."""
    image, mask = texture(generator), np.zeros((SIDE, SIDE), np.uint8)
    size = 8 * SCALE
    for column, (values, label) in enumerate(digits):
        large = np.asarray(Image.fromarray(values.astype(np.float32)).resize((size, size), Image.Resampling.BILINEAR))
        top, left = int(generator.integers(0, SIDE - size + 1)), column * size
        place = slice(top, top + size), slice(left, left + size)
        ink, under = texture(generator)[place], image[place]
        ink = ink + np.where(ink.mean() > under.mean(), 40, -40)
        share = np.clip(large / 12, 0, 1)
        image[place] = share * ink + (1 - share) * under
        mask[place] = np.where(large >= INK, label + 1, np.where(large >= RIM, WITHOUT, mask[place]))
    return np.clip(image, 0, 255).astype(np.uint8), mask


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    generator, known = np.random.default_rng(arguments.seed), load_digits()
    folders = [arguments.out / name for name in ("images", "masks")]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=False)
    for number in range(arguments.images):
        rows = generator.integers(0, len(known.images), SIDE // (8 * SCALE))
        pair = scan([(known.images[row], int(known.target[row])) for row in rows], generator)
        for folder, pixels in zip(folders, pair, strict=True):
            Image.fromarray(pixels).save(folder / f"{number:05}.png")


if __name__ == "__main__":
    main()
