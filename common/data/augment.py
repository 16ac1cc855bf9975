"""Training augmentation: what a preset does to a batch, one short function for each operation.

Images are float (n, channels, side, side) in 0..1. ``uniform(k)`` gives (n, k) random numbers in 0..1 that depend on
(seed, epoch, step, place in the batch) alone, so that an image is augmented alike however many processes share the
batch; every image draws its own. Lengths are shares of the image's side, angles degrees.

Operations on *points* say where each output pixel is looked up (common/data/geometry.py); however many there are,
the image is interpolated once. Operations on *pixels* follow.

The blurs and distortions are a few lines each; Kornia has them too, but it would be one more dependency, and draws from
torch's global randomness, which processes that share a batch do not share.

An operation's arguments are options of --augment-args (common/data/augment_options.py); it is called where one of them
switches it on. ``..._share`` is the share of images that it touches.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pkgutil import resolve_name
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from common.data.augment_options import ON_PIXELS, ON_POINTS, options_of
from common.data.geometry import cropped, moved, points_of, sample
from common.data.mixing import Mix
from common.data.transfer import constant

Uniform = Callable[[int], Tensor]

# NTSC's colours: grey, and two axes of the hue. The inverse is made here, since on a GPU linalg.inv waits for its flag.
TO_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))
FROM_YIQ = tuple(map(tuple, torch.linalg.inv(torch.tensor(TO_YIQ)).tolist()))


def _symmetric(uniform: Uniform, count: int) -> tuple[Tensor, ...]:
    """``count`` random numbers in -1..1 for each image, shaped to multiply images or points."""
    return (uniform(count) * 2 - 1)[:, :, None, None, None].unbind(1)


def _chosen(uniform: Uniform, share: float, changed: Tensor, unchanged: Tensor) -> Tensor:
    """``changed`` for a random ``share`` of the images."""
    return changed if share >= 1 else torch.where(uniform(1)[:, :, None, None] < share, changed, unchanged)


# ---- operations on points


def crop(points: Tensor, uniform: Uniform, crop: float, crop_ratio: float) -> Tensor:
    """A part of ``crop`` to 1 of the area, ``crop_ratio`` times as wide as high or the reverse, enlarged again.

    The random-resized crop of Inception (arXiv 1409.4842).
    """
    draw = uniform(4)
    area, ratio = crop + (1 - crop) * draw[:, 0], crop_ratio ** (2 * draw[:, 1] - 1)
    sides = torch.stack([area * ratio, area / ratio], dim=1).sqrt().clamp_max(1)
    return points * sides[:, None, None] + ((1 - sides) * (2 * draw[:, 2:] - 1))[:, None, None]


def centre_crop(points: Tensor, uniform: Uniform, centre_crop: float) -> Tensor:
    """The middle ``centre_crop`` of each side, enlarged again."""
    return points * centre_crop


def flip(points: Tensor, uniform: Uniform, flip: float, flip_vertical: float) -> Tensor:
    """Mirror a share ``flip`` of the images left to right, and ``flip_vertical`` upside down."""
    signs = 1 - 2 * (uniform(2) < constant((flip, flip_vertical), points.device)).float()
    return points * signs[:, None, None]


def rotate_shift_scale(
    points: Tensor, uniform: Uniform, rotation: float, shift: float, scale: float, shear: float
) -> Tensor:
    """Rotate by up to ``rotation``, shift by up to ``shift``, scale by 1 +- ``scale``, shear by up to ``shear``."""
    draw = (uniform(4) * 2 - 1).unbind(1)
    points = moved(points, draw[0] * rotation, 1 + draw[1] * scale, draw[2] * shift, draw[3] * shift)
    if shear:
        slant = torch.tan(torch.deg2rad(_symmetric(uniform, 1)[0] * shear))[..., 0]
        points = torch.stack([points[..., 0] + slant * points[..., 1], points[..., 1]], dim=3)
    return points


def perspective(points: Tensor, uniform: Uniform, perspective: float) -> Tensor:
    """Tilt the image: one side is up to 1 + ``perspective`` times nearer than the middle."""
    tilt = (uniform(2) * 2 - 1) * perspective
    return points / (1 + (points * tilt[:, None, None]).sum(3, keepdim=True))


def elastic(points: Tensor, uniform: Uniform, elastic: float, elastic_cells: int, elastic_share: float) -> Tensor:
    """Pull smoothly at ``elastic_cells`` x ``elastic_cells`` places by up to ``elastic`` (after Simard et al. 2003)."""
    return _chosen(uniform, elastic_share, points + _field(points, uniform, elastic, elastic_cells, "bicubic"), points)


def grid_distortion(points: Tensor, uniform: Uniform, grid: float, grid_cells: int, grid_share: float) -> Tensor:
    """Move the corners of a grid of cells by up to ``grid``; lines stay straight within a cell."""
    return _chosen(uniform, grid_share, points + _field(points, uniform, grid, grid_cells + 1, "bilinear"), points)


def _field(points: Tensor, uniform: Uniform, strength: float, cells: int, mode: str) -> Tensor:
    corners = (uniform(2 * cells * cells) * 2 - 1).view(-1, 2, cells, cells) * 2 * strength
    return F.interpolate(corners, points.shape[1:3], mode=mode, align_corners=True).permute(0, 2, 3, 1)


def optical(points: Tensor, uniform: Uniform, optical: float, optical_share: float) -> Tensor:
    """The barrel or cushion of a lens: a point at radius r moves by up to ``optical`` r**3."""
    bent = points * (1 + _symmetric(uniform, 1)[0] * optical * points.square().sum(3, keepdim=True))
    return _chosen(uniform, optical_share, bent, points)


# ---- operations on pixels


def colour(
    images: Tensor, uniform: Uniform, brightness: float, contrast: float, saturation: float, hue: float
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
        to_yiq, from_yiq = constant(TO_YIQ, images.device), constant(FROM_YIQ, images.device)
        matrix = from_yiq @ torch.stack(rows, dim=1).view(-1, 3, 3) @ to_yiq
        images = torch.einsum("nij,njhw->nihw", matrix, images)
    return images.clamp(0, 1)


def policy(images: Tensor, uniform: Uniform, policy: str, policy_strength: int) -> Tensor:
    """torchvision's "auto" (AutoAugment, arXiv 1805.09501), "rand" (RandAugment, 1909.13719) or "trivial" (2103.10158).

    They draw from torch's global randomness, image by image, so each image sets it and it is put back afterwards.
    ``policy_strength`` (0..30) is RandAugment's.
    """
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


def blur(images: Tensor, uniform: Uniform, blur: float, blur_share: float) -> Tensor:
    """Gaussian blur with a standard deviation of up to ``blur``."""
    deviation = (uniform(1) * blur * images.shape[-1]).clamp_min(1e-3)
    reach = max(1, math.ceil(3 * blur * images.shape[-1]))
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=images.device) / deviation) ** 2)
    weights = weights / weights.sum(1, keepdim=True)
    return _chosen(uniform, blur_share, _filtered(images, weights[:, :, None] * weights[:, None, :]), images)


def motion_blur(images: Tensor, uniform: Uniform, motion_blur: float, motion_blur_share: float) -> Tensor:
    """Smear along a line of length ``motion_blur`` in a random direction."""
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


def median_blur(images: Tensor, uniform: Uniform, median_blur: int, median_blur_share: float) -> Tensor:
    """Each pixel becomes the median of ``median_blur`` x ``median_blur`` pixels (an odd number)."""
    windows = F.pad(images, [median_blur // 2] * 4, mode="replicate")
    windows = windows.unfold(2, median_blur, 1).unfold(3, median_blur, 1)
    return _chosen(uniform, median_blur_share, windows.flatten(4).median(dim=4).values, images)


def noise(images: Tensor, uniform: Uniform, noise: float, noise_share: float) -> Tensor:
    """Add Gaussian noise with a standard deviation of up to ``noise``."""
    draw = uniform(images[0].numel()).view(images.shape).clamp(1e-6, 1 - 1e-6)
    noisy = images + _normal(draw) * noise * uniform(1)[:, :, None, None]
    return _chosen(uniform, noise_share, noisy.clamp(0, 1), images)


def _normal(draw: Tensor) -> Tensor:
    """The standard normal deviates of uniform numbers between 0 and 1; Apple's GPUs lack ndtri."""
    return 2**0.5 * torch.erfinv(2 * draw - 1) if draw.device.type == "mps" else torch.special.ndtri(draw)


def erasing(images: Tensor, uniform: Uniform, erasing: float, holes: int, erasing_share: float) -> Tensor:
    """Fill rectangles, each side up to ``erasing``, with the image's mean (arXiv 1708.04896; cutout 1708.04552)."""
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
    mix: Mix | None = None  # of two images each
    sizes: tuple[int, ...] = ()  # sides in px, of which each batch has one (none: the images' own)
    crop_frames: int = 0  # longest part of a sequence that is drawn (0: all of it)

    @property
    def on_host(self) -> bool:
        """Whether it works image by image, with draws of torch's global randomness, and so best on the host."""
        return policy in [operation.func for operation in self.on_pixels]

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
    """The preset with some of its options changed; ``grey``: the images have no colours.

    Raises:
        UserError: see :func:`common.data.augment_options.options_of`.
    """
    options = options_of(preset, changes, grey)

    def bound(names: Sequence[str]) -> tuple[partial, ...]:
        return tuple(partial(resolve_name(f"{__name__}:{name}"), **options[name]) for name in names if name in options)

    mix = Mix(**options["mix"]) if "mix" in options else None
    sizes = tuple(options.get("sizes", {}).get("sizes", ()))
    return Augmentation(bound(ON_POINTS), bound(ON_PIXELS), mix=mix, sizes=sizes, **options.get("sample", {}))
