"""Cuts gi_jax/data/photos.npz and photos_large.npz from photographs inside installed packages.

Needs scikit-image and matplotlib for their pictures. Run it from anywhere:

    python scripts/make_photos.py [contact_sheet.png]

Sources, licenses and the meaning of the crops are in gi_jax/data/PHOTOS.md.
"""

import importlib.util
import io
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from gi_jax.data.pictures import resize

SIZE = 32
SCALES = ((1.0, 3, 1), (0.7, 2, 2), (0.5, 3, 3))  # share of the short side, columns, rows
PLAIN = 16.0  # a crop whose pixels vary less than that (standard deviation, of 255) shows nothing
TEST_EVERY = 4
OUTPUT = Path(__file__).parent.parent / "gi_jax" / "data" / "photos.npz"
LARGE = 224
LARGE_OUTPUT = OUTPUT.with_name("photos_large.npz")


class Photo(NamedTuple):
    """A photograph: its class name, package and file, and two boxes (left, top, right, bottom) in pixels.

    `subject` is the square that shows it best; `field` is the part that further crops are cut from.
    """

    name: str
    package: str
    file: str
    subject: tuple[int, int, int, int]
    field: tuple[int, int, int, int]


PHOTOS = (
    Photo("cat", "skimage", "data/chelsea.png", (90, 0, 390, 300), (0, 0, 451, 300)),
    Photo("astronaut", "skimage", "data/astronaut.png", (70, 0, 390, 320), (0, 0, 512, 512)),
    Photo("coffee", "skimage", "data/coffee.png", (80, 0, 480, 400), (60, 0, 540, 400)),
    Photo("rocket", "skimage", "data/rocket.jpg", (177, 130, 467, 420), (110, 47, 530, 427)),
    Photo("officer", "matplotlib", "mpl-data/sample_data/grace_hopper.jpg", (90, 0, 430, 340), (0, 0, 512, 600)),
    Photo("cameraman", "skimage", "data/camera.png", (60, 20, 380, 340), (0, 0, 512, 512)),
    Photo("bricks", "skimage", "data/brick.png", (192, 320, 384, 512), (0, 0, 512, 512)),
    Photo("clock", "skimage", "data/clock_motion.png", (106, 48, 306, 248), (86, 28, 326, 268)),
    Photo("retina", "skimage", "data/retina.jpg", (0, 0, 1411, 1411), (150, 150, 1260, 1260)),
    Photo("galaxies", "skimage", "data/hubble_deep_field.jpg", (672, 408, 792, 528), (560, 300, 860, 600)),
)


def opened(photo: Photo) -> Image.Image:
    """The whole photograph."""
    folder = Path(importlib.util.find_spec(photo.package).origin).parent
    return Image.open(folder / photo.file).convert("RGB")


def large(photo: Photo) -> np.ndarray:
    """Its subject as a JPEG file of 224 x 224 pixels, uint8 [bytes]."""
    picture = resize(np.asarray(opened(photo).crop(photo.subject))[None], LARGE)[0]
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="JPEG", quality=92)
    return np.frombuffer(file.getvalue(), np.uint8)


def cut(photo: Photo) -> np.ndarray:
    """The thumbnails of a photograph, uint8 [n, 32, 32, 3]: the subject first, then from wide to close."""
    picture = opened(photo)
    left, top, right, bottom = photo.field
    boxes = [photo.subject]
    for scale, columns, rows in SCALES:
        side = round(scale * min(right - left, bottom - top))
        for y in sorted({round(v) for v in np.linspace(top, bottom - side, rows)}):
            for x in sorted({round(v) for v in np.linspace(left, right - side, columns)}):
                boxes.append((x, y, x + side, y + side))
    crops = [resize(np.asarray(picture.crop(box))[None], SIZE)[0] for box in boxes]
    return np.stack([crop for crop in crops if crop.std() > PLAIN])


def round_robin(crops: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """All crops ordered by (rank within the class, class), and their labels."""
    order = sorted((rank, label) for label, images in enumerate(crops) for rank in range(len(images)))
    return np.stack([crops[label][rank] for rank, label in order]), np.array([label for _, label in order])


def main() -> None:
    crops = [cut(photo) for photo in PHOTOS]
    held_out = [np.arange(len(images)) % TEST_EVERY == TEST_EVERY - 1 for images in crops]
    train_images, train_labels = round_robin([c[~test] for c, test in zip(crops, held_out, strict=True)])
    test_images, test_labels = round_robin([c[test] for c, test in zip(crops, held_out, strict=True)])
    np.savez_compressed(
        OUTPUT,
        train_images=train_images,
        train_labels=train_labels.astype(np.int32),
        test_images=test_images,
        test_labels=test_labels.astype(np.int32),
        class_names=np.array([photo.name for photo in PHOTOS]),
        mean=np.round(train_images.mean((0, 1, 2)) / 255, 4),
        std=np.round(train_images.std((0, 1, 2)) / 255, 4),
    )
    np.savez(LARGE_OUTPUT, **{photo.name: large(photo) for photo in PHOTOS})
    print(f"{LARGE_OUTPUT}: {LARGE_OUTPUT.stat().st_size} bytes")
    print(f"{OUTPUT}: {len(train_images)} + {len(test_images)} thumbnails, {OUTPUT.stat().st_size} bytes")
    if len(sys.argv) > 1:
        width = max(len(images) for images in crops)
        sheet = np.full((len(crops) * SIZE, width * SIZE, 3), 255, np.uint8)
        for row, images in enumerate(crops):
            band = images.transpose(1, 0, 2, 3).reshape(SIZE, -1, 3)
            sheet[row * SIZE : (row + 1) * SIZE, : band.shape[1]] = band
        size = (3 * sheet.shape[1], 3 * sheet.shape[0])
        Image.fromarray(sheet).resize(size, Image.Resampling.NEAREST).save(sys.argv[1])


if __name__ == "__main__":
    main()
