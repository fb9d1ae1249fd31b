"""Pictures and figures as the bytes of PNG files."""

import io

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

DPI = 144


def png_of(image: np.ndarray) -> bytes:
    """A picture, uint8 [h, w, c], pixel for pixel."""
    stream = io.BytesIO()
    Image.fromarray(image if image.shape[2] == 3 else image[..., 0]).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def png_of_figure(figure: Figure) -> bytes:
    """A figure at `DPI`, on white."""
    stream = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(stream, format="png", dpi=DPI, facecolor="white")
    return stream.getvalue()


def width_of(figure: Figure) -> int:
    """Width at which a figure is shown, in CSS pixels of 1/96 inch."""
    return round(figure.get_figwidth() * 96)
