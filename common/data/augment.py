"""Training augmentation: what a preset does to a batch, one short function for each operation.

Images are float (n, channels, side, side) in 0..1. ``uniform(k)`` gives (n, k) random numbers in 0..1 that depend on
(seed, epoch, step, place in the batch) alone, so that an image is augmented alike however many processes share the
batch; every image draws its own. Lengths are shares of the image's side, angles degrees.

Operations on *points* say where each output pixel is looked up (common/data/geometry.py); however many there are,
the image is interpolated once. Operations on *pixels* follow.

The blurs and distortions are a few lines each; Kornia has them too, but it would be one more dependency, and draws from
torch's global randomness, which processes that share a batch do not share.

An operation's arguments are what --augment-args takes. One whose default is 0 (or empty) switches the operation on;
others refine it. ``..._share`` is the share of images that an operation touches.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from common.base.errors import UserError
from common.data.geometry import PADDING, cropped, moved, points_of, sample
from common.data.mixing import mixture, size_of_batch

Uniform = Callable[[int], Tensor]


def _symmetric(uniform: Uniform, count: int) -> tuple[Tensor, ...]:
    """``count`` random numbers in -1..1 for each image, shaped to multiply images or points."""
    return (uniform(count) * 2 - 1)[:, :, None, None, None].unbind(1)


def _chosen(uniform: Uniform, share: float, changed: Tensor, unchanged: Tensor) -> Tensor:
    """``changed`` for a random ``share`` of the images."""
    return changed if share >= 1 else torch.where(uniform(1)[:, :, None, None] < share, changed, unchanged)


# ---- operations on points


def crop(points: Tensor, uniform: Uniform, crop: float = 0.0, crop_ratio: float = 4 / 3) -> Tensor:
    """A part of ``crop`` to 1 of the area, ``crop_ratio`` times as wide as high or the reverse, enlarged again.

    The random-resized crop of Inception (arXiv 1409.4842).
    """
    if not crop:
        return points
    draw = uniform(4)
    area, ratio = crop + (1 - crop) * draw[:, 0], crop_ratio ** (2 * draw[:, 1] - 1)
    sides = torch.stack([area * ratio, area / ratio], dim=1).sqrt().clamp_max(1)
    return points * sides[:, None, None] + ((1 - sides) * (2 * draw[:, 2:] - 1))[:, None, None]


def centre_crop(points: Tensor, uniform: Uniform, centre_crop: float = 0.0) -> Tensor:
    """The middle ``centre_crop`` of each side, enlarged again."""
    return points * centre_crop if centre_crop else points


def flip(points: Tensor, uniform: Uniform, flip: float = 0.0, flip_vertical: float = 0.0) -> Tensor:
    """Mirror a share ``flip`` of the images left to right, and ``flip_vertical`` upside down."""
    if not (flip or flip_vertical):
        return points
    signs = 1 - 2 * (uniform(2) < points.new_tensor([flip, flip_vertical])).float()
    return points * signs[:, None, None]


def rotate_shift_scale(
    points: Tensor, uniform: Uniform, rotation: float = 0.0, shift: float = 0.0, scale: float = 0.0, shear: float = 0.0
) -> Tensor:
    """Rotate by up to ``rotation``, shift by up to ``shift``, scale by 1 +- ``scale``, shear by up to ``shear``."""
    if not (rotation or shift or scale or shear):
        return points
    draw = (uniform(4) * 2 - 1).unbind(1)
    points = moved(points, draw[0] * rotation, 1 + draw[1] * scale, draw[2] * shift, draw[3] * shift)
    if shear:
        slant = torch.tan(torch.deg2rad(_symmetric(uniform, 1)[0] * shear))[..., 0]
        points = torch.stack([points[..., 0] + slant * points[..., 1], points[..., 1]], dim=3)
    return points


def perspective(points: Tensor, uniform: Uniform, perspective: float = 0.0) -> Tensor:
    """Tilt the image: one side is up to 1 + ``perspective`` times nearer than the middle."""
    if not perspective:
        return points
    tilt = (uniform(2) * 2 - 1) * perspective
    return points / (1 + (points * tilt[:, None, None]).sum(3, keepdim=True))


def elastic(
    points: Tensor, uniform: Uniform, elastic: float = 0.0, elastic_cells: int = 6, elastic_share: float = 1.0
) -> Tensor:
    """Pull smoothly at ``elastic_cells`` x ``elastic_cells`` places by up to ``elastic`` (after Simard et al. 2003)."""
    if not elastic:
        return points
    return _chosen(uniform, elastic_share, points + _field(points, uniform, elastic, elastic_cells, "bicubic"), points)


def grid_distortion(
    points: Tensor, uniform: Uniform, grid: float = 0.0, grid_cells: int = 5, grid_share: float = 1.0
) -> Tensor:
    """Move the corners of a grid of cells by up to ``grid``; lines stay straight within a cell."""
    if not grid:
        return points
    return _chosen(uniform, grid_share, points + _field(points, uniform, grid, grid_cells + 1, "bilinear"), points)


def _field(points: Tensor, uniform: Uniform, strength: float, cells: int, mode: str) -> Tensor:
    corners = (uniform(2 * cells * cells) * 2 - 1).view(-1, 2, cells, cells) * 2 * strength
    return F.interpolate(corners, points.shape[1:3], mode=mode, align_corners=True).permute(0, 2, 3, 1)


def optical(points: Tensor, uniform: Uniform, optical: float = 0.0, optical_share: float = 1.0) -> Tensor:
    """The barrel or cushion of a lens: a point at radius r moves by up to ``optical`` r**3."""
    if not optical:
        return points
    bent = points * (1 + _symmetric(uniform, 1)[0] * optical * points.square().sum(3, keepdim=True))
    return _chosen(uniform, optical_share, bent, points)


# ---- operations on pixels


def colour(
    images: Tensor,
    uniform: Uniform,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
) -> Tensor:
    """Scale brightness, contrast and saturation by 1 +- their values, and turn the hue by up to ``hue`` degrees."""
    if brightness or contrast:
        light, spread = _symmetric(uniform, 2)
        mean = images.mean((1, 2, 3), keepdim=True)
        images = (mean + (images - mean) * (1 + spread * contrast)) * (1 + light * brightness)
    if saturation or hue:
        vivid, turn = (uniform(2) * 2 - 1).unbind(1)
        factor, angle = 1 + vivid * saturation, torch.deg2rad(turn * hue)
        first, second, zero = factor * angle.cos(), factor * angle.sin(), torch.zeros_like(angle)
        rows = [zero + 1, zero, zero, zero, first, -second, zero, second, first]
        to_yiq = images.new_tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
        matrix = torch.linalg.inv(to_yiq) @ torch.stack(rows, dim=1).view(-1, 3, 3) @ to_yiq
        images = torch.einsum("nij,njhw->nihw", matrix, images)
    return images.clamp(0, 1) if brightness or contrast or saturation or hue else images


def policy(images: Tensor, uniform: Uniform, policy: str = "", policy_strength: int = 9) -> Tensor:
    """torchvision's "auto" (AutoAugment, arXiv 1805.09501), "rand" (RandAugment, 1909.13719) or "trivial" (2103.10158).

    They draw from torch's global randomness, image by image, so each image sets it and it is put back afterwards.
    ``policy_strength`` (0..30) is RandAugment's.
    """
    if not policy:
        return images
    from torchvision.transforms import v2

    transform = {
        "auto": v2.AutoAugment,
        "rand": partial(v2.RandAugment, magnitude=policy_strength),
        "trivial": v2.TrivialAugmentWide,
    }[policy]()
    seeds = (uniform(1)[:, 0].cpu().double() * 2**53).long().tolist()
    levels = (images * 255).round().to(torch.uint8)
    state = torch.get_rng_state()
    try:
        for row, seed in enumerate(seeds):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every GPU too
            levels[row] = transform(levels[row])
    finally:
        torch.set_rng_state(state)
    return levels.float() / 255


def blur(images: Tensor, uniform: Uniform, blur: float = 0.0, blur_share: float = 0.5) -> Tensor:
    """Gaussian blur with a standard deviation of up to ``blur``."""
    if not blur:
        return images
    deviation = (uniform(1) * blur * images.shape[-1]).clamp_min(1e-3)
    reach = max(1, math.ceil(3 * blur * images.shape[-1]))
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=images.device) / deviation) ** 2)
    weights = weights / weights.sum(1, keepdim=True)
    return _chosen(uniform, blur_share, _filtered(images, weights[:, :, None] * weights[:, None, :]), images)


def motion_blur(images: Tensor, uniform: Uniform, motion_blur: float = 0.0, motion_blur_share: float = 0.5) -> Tensor:
    """Smear along a line of length ``motion_blur`` in a random direction."""
    if not motion_blur:
        return images
    reach = max(1, round(motion_blur * images.shape[-1] / 2))
    line = images.new_zeros(len(images), 1, 2 * reach + 1, 2 * reach + 1)
    line[:, :, reach] = 1
    still = uniform(1)[:, 0]
    turned = sample(line, moved(points_of(line), still * 180, still * 0 + 1, still * 0, still * 0))[:, 0]
    weights = turned / turned.sum((1, 2), keepdim=True)
    return _chosen(uniform, motion_blur_share, _filtered(images, weights), images)


def _filtered(images: Tensor, weights: Tensor) -> Tensor:
    """Each image through its own filter, ``weights`` (n, width, width)."""
    count, channels, *sides = images.shape
    reach = weights.shape[-1] // 2
    padded = F.pad(images, [reach] * 4, mode="replicate").view(1, count * channels, *(s + 2 * reach for s in sides))
    weights = weights[:, None].repeat_interleave(channels, dim=0)
    return F.conv2d(padded, weights, groups=count * channels).view(images.shape)


def median_blur(images: Tensor, uniform: Uniform, median_blur: int = 0, median_blur_share: float = 0.5) -> Tensor:
    """Each pixel becomes the median of ``median_blur`` x ``median_blur`` pixels (an odd number)."""
    if not median_blur:
        return images
    windows = F.pad(images, [median_blur // 2] * 4, mode="replicate")
    windows = windows.unfold(2, median_blur, 1).unfold(3, median_blur, 1)
    return _chosen(uniform, median_blur_share, windows.flatten(4).median(dim=4).values, images)


def noise(images: Tensor, uniform: Uniform, noise: float = 0.0, noise_share: float = 0.5) -> Tensor:
    """Add Gaussian noise with a standard deviation of up to ``noise``."""
    if not noise:
        return images
    draw = uniform(images[0].numel()).view(images.shape).clamp(1e-6, 1 - 1e-6)
    noisy = images + torch.special.ndtri(draw) * noise * uniform(1)[:, :, None, None]
    return _chosen(uniform, noise_share, noisy.clamp(0, 1), images)


def erasing(
    images: Tensor, uniform: Uniform, erasing: float = 0.0, holes: int = 1, erasing_share: float = 0.5
) -> Tensor:
    """Fill rectangles, each side up to ``erasing``, with the image's mean (arXiv 1708.04896; cutout 1708.04552)."""
    if not erasing:
        return images
    side = torch.arange(images.shape[-1], device=images.device) / images.shape[-1]
    erased = images
    for _ in range(holes):
        width, height, x, y = uniform(4)[:, :, None].unbind(1)
        across = (side - x).abs() < erasing * (0.2 + 0.8 * width) / 2
        down = (side - y).abs() < erasing * (0.2 + 0.8 * height) / 2
        erased = torch.where((down[:, :, None] & across[:, None])[:, None], images.mean((2, 3), keepdim=True), erased)
    return _chosen(uniform, erasing_share, erased, images)


# ---- presets


@dataclass(frozen=True)
class Augmentation:
    """A preset with its arguments; called with images and their random numbers it returns augmented images.

    Where the images are larger than ``side``, the side of what is returned (0: their own), a random crop takes its part
    from anywhere in them; without one it is their middle that is augmented, as it is what the model is scored on.
    """

    on_points: tuple[partial, ...] = ()
    on_pixels: tuple[partial, ...] = ()
    border: str = "black"
    mix: partial | None = None  # of two images each: see common/data/mixing.py
    size: partial | None = None  # of a batch

    def __call__(self, images: Tensor, uniform: Uniform, side: int = 0) -> Tensor:
        side = side or images.shape[-1]
        if self.on_points:
            points = points_of(images, side)
            if side != images.shape[-1] and crop not in [operation.func for operation in self.on_points]:
                points = points * (side / images.shape[-1])
            for operation in self.on_points:
                points = operation(points, uniform)
            images = sample(images, points, self.border)
        elif side != images.shape[-1]:
            images = cropped(images, side)
        for operation in self.on_pixels:
            images = operation(images, uniform)
        return images


def create_augmentation(preset: str, changes: Mapping[str, Any], grey: bool) -> Augmentation:
    """The preset with some of its arguments changed; ``grey``: the images have no colours.

    Raises:
        UserError: an unknown preset, argument or value; one without effect; colours of grey images.
    """
    if preset not in AUGMENTS:
        raise UserError("--augment", f"{preset} is unknown", f"use one of: {', '.join(AUGMENTS)}")
    asked = {**AUGMENTS[preset], **changes}
    operations = {operation: _defaults(operation) for operation in (*ON_POINTS, *ON_PIXELS, mixture, size_of_batch)}
    known = {"border": "black"} | {name: value for own in operations.values() for name, value in own.items()}
    for name, value in changes.items():
        _check_value(name, value, known)
    if grey and (coloured := [name for name in COLOURS if asked.get(name)]):
        what = f"{', '.join(coloured)} would change the colours of grey images"
        off = " ".join(f"{name}={known[name]!r}".replace("'", "") for name in coloured)
        raise UserError("--augment", what, f"switch it off (--augment-args {off}), or use another preset")
    active = {}
    for operation, defaults in operations.items():
        own = {name: asked.get(name, default) for name, default in defaults.items()}
        if any(own[name] for name, default in defaults.items() if not default):
            active[operation] = own
        elif idle := [name for name in own if name in changes and defaults[name]]:
            switches = " or ".join(name for name, default in defaults.items() if not default)
            raise UserError("--augment-args", f"{idle[0]} has no effect without {switches}", "give both or neither")

    def bound(operation: Callable) -> partial | None:
        return partial(operation, **active[operation]) if operation in active else None

    on_points, on_pixels = (tuple(filter(None, map(bound, group))) for group in (ON_POINTS, ON_PIXELS))
    if "border" in changes and not on_points:
        raise UserError("--augment-args", "border has no effect: nothing moves the pixels", "leave it out")
    border = asked.get("border", "black")
    return Augmentation(on_points, on_pixels, border, mix=bound(mixture), size=bound(size_of_batch))


def _check_value(name: str, value: Any, known: Mapping[str, Any]) -> None:
    if name not in known:
        raise UserError("--augment-args", f"{name} is unknown", f"known: {', '.join(sorted(known))}")
    like = (int, float) if isinstance(known[name], float) else type(known[name])
    expected, right = f"a value such as {EXAMPLES.get(name, known[name])!r}", isinstance(value, like)
    if name in CHOICES:
        expected, right = f"one of {', '.join(CHOICES[name])}", value in CHOICES[name]
    elif right and isinstance(value, int | float):
        most = 1.0 if name.endswith("_share") else LARGEST.get(name, math.inf)
        expected, right = (
            f"0 to {most}",
            0 <= value <= most and not (name == "median_blur" and value and value % 2 == 0),
        )
    if not right:
        raise UserError("--augment-args", f"{name}={value} is not a valid value", f"use {expected}")


def _defaults(operation: Callable) -> dict[str, Any]:
    parameters = inspect.signature(operation).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not each.empty}


CHOICES = {"border": tuple(PADDING), "policy": ("auto", "rand", "trivial", "")}
EXAMPLES = {"sizes": (24, 28, 32)}
LARGEST = dict.fromkeys(("crop", "centre_crop", "flip", "flip_vertical", "mix_until", "optical"), 1.0)
LARGEST |= {"scale": 0.9, "perspective": 0.6, "shear": 60.0}
COLOURS = ("saturation", "hue", "policy")
ON_POINTS = (elastic, grid_distortion, optical, perspective, rotate_shift_scale, flip, centre_crop, crop)
ON_PIXELS = (policy, colour, blur, motion_blur, median_blur, noise, erasing)

# The ranges of "digits" cover about 95 % of the natural spread of MNIST digits (Deotte,
# github.com/cdeotte/MNIST-CNN-99.75). "brief_002" is the albumentations pipeline of a course on photos, with each OneOf
# as independent operations of the same frequency.
AUGMENTS = {
    "none": {},
    "digits": {"rotation": 12.0, "shift": 0.1, "scale": 0.1},
    "photos_light": {"crop": 0.6, "flip": 0.5, "border": "reflect"},
    "photos": {
        "crop": 0.35,
        "flip": 0.5,
        "rotation": 10.0,
        "border": "reflect",
        "brightness": 0.3,
        "contrast": 0.3,
        "saturation": 0.3,
        "erasing": 0.4,
        "erasing_share": 0.25,
    },
    "brief_002": {
        "flip": 0.5,
        "flip_vertical": 0.5,
        "noise": 0.08,
        "noise_share": 0.2,
        "motion_blur": 0.03,
        "motion_blur_share": 0.1,
        "median_blur": 3,
        "median_blur_share": 0.05,
        "blur": 0.005,
        "blur_share": 0.05,
        "optical": 0.1,
        "optical_share": 0.09,
        "grid": 0.05,
        "grid_share": 0.03,
        "elastic": 0.03,
        "elastic_share": 0.09,
        "erasing": 0.1,
        "holes": 8,
        "erasing_share": 0.5,
    },
}
