"""Bring a camera's pixels to the range the model was trained on."""

import numpy as np

BRIGHTEST = 16.0


def normalise(images: np.ndarray) -> np.ndarray:
    """[images, 64 pixels] from 0 … 16 to 0 … 1; what is brighter than white is white."""
    return np.clip(images, 0.0, BRIGHTEST) / BRIGHTEST
