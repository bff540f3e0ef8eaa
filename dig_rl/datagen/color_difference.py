"""How different two colours look: CIEDE2000."""

from __future__ import annotations

import numpy as np

# Source: IEC 61966-2-1 (sRGB primaries, D65 white).
_SRGB_TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
_WHITE_XYZ = np.array([0.95047, 1.0, 1.08883])


def srgb_to_linear(srgb: np.ndarray) -> np.ndarray:
    """8-bit sRGB `[..., 3]` in 0-255 to linear RGB in [0, 1]. Source: IEC 61966-2-1."""
    value = np.asarray(srgb, dtype=np.float64) / 255.0
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(linear: np.ndarray) -> np.ndarray:
    """Linear RGB `[..., 3]`, clipped to [0, 1], to 8-bit sRGB. Source: IEC 61966-2-1."""
    value = np.clip(linear, 0.0, 1.0)
    bent = np.where(value <= 0.0031308, 12.92 * value, 1.055 * value ** (1 / 2.4) - 0.055)
    rounded: np.ndarray = np.rint(255.0 * bent).astype(np.uint8)
    return rounded


def srgb_to_lab(srgb: np.ndarray) -> np.ndarray:
    """8-bit sRGB `[..., 3]` to CIE L*a*b* (D65): L in [0, 100], a and b within about +-110."""
    relative = srgb_to_linear(srgb) @ _SRGB_TO_XYZ.T / _WHITE_XYZ
    bent = np.where(relative > (6 / 29) ** 3, np.cbrt(relative), relative / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(bent, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def ciede2000(lab_1: np.ndarray, lab_2: np.ndarray) -> np.ndarray:
    """Colour difference `[...]` of L*a*b* colours `[..., 3]`, >= 0; 1 is about the least a person can see.

    Source: Sharma, Wu and Dalal, Color Research and Application 30 (2005), equations 2-22, k_L = k_C = k_H = 1.
    """
    lightness_1, a_1, b_1 = np.moveaxis(np.asarray(lab_1, dtype=np.float64), -1, 0)
    lightness_2, a_2, b_2 = np.moveaxis(np.asarray(lab_2, dtype=np.float64), -1, 0)
    mean_plain_chroma = (np.hypot(a_1, b_1) + np.hypot(a_2, b_2)) / 2
    stretch = 1.5 - 0.5 * _saturation(mean_plain_chroma)
    chroma_1, chroma_2 = np.hypot(stretch * a_1, b_1), np.hypot(stretch * a_2, b_2)
    hue_1, hue_2 = np.arctan2(b_1, stretch * a_1) % (2 * np.pi), np.arctan2(b_2, stretch * a_2) % (2 * np.pi)

    grey = chroma_1 * chroma_2 == 0
    turn = np.where(grey, 0.0, (hue_2 - hue_1 + np.pi) % (2 * np.pi) - np.pi)
    hue_distance = 2 * np.sqrt(chroma_1 * chroma_2) * np.sin(turn / 2)
    mean_hue = np.where(grey, hue_1 + hue_2, _mean_hue(hue_1, hue_2))
    mean_lightness, mean_chroma = (lightness_1 + lightness_2) / 2, (chroma_1 + chroma_2) / 2

    weight = (
        1
        - 0.17 * np.cos(mean_hue - np.radians(30))
        + 0.24 * np.cos(2 * mean_hue)
        + 0.32 * np.cos(3 * mean_hue + np.radians(6))
        - 0.20 * np.cos(4 * mean_hue - np.radians(63))
    )
    off_middle = (mean_lightness - 50) ** 2
    term_lightness = (lightness_2 - lightness_1) / (1 + 0.015 * off_middle / np.sqrt(20 + off_middle))
    term_chroma = (chroma_2 - chroma_1) / (1 + 0.045 * mean_chroma)
    term_hue = hue_distance / (1 + 0.015 * mean_chroma * weight)
    blue_turn = np.radians(60) * np.exp(-(((np.degrees(mean_hue) - 275) / 25) ** 2))
    rotation = -np.sin(blue_turn) * 2 * _saturation(mean_chroma)
    squared = term_lightness**2 + term_chroma**2 + term_hue**2 + rotation * term_chroma * term_hue
    return np.sqrt(np.maximum(squared, 0.0))


def _saturation(chroma: np.ndarray) -> np.ndarray:
    return np.sqrt(chroma**7 / (chroma**7 + 25.0**7))


def _mean_hue(hue_1: np.ndarray, hue_2: np.ndarray) -> np.ndarray:
    mean = (hue_1 + hue_2) / 2
    wraps = np.abs(hue_1 - hue_2) > np.pi
    return np.where(wraps, np.where(hue_1 + hue_2 < 2 * np.pi, mean + np.pi, mean - np.pi), mean)
