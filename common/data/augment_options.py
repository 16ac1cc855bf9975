"""What --augment and --augment-args take: a row for each option, and the presets made of them.

Known before torch is loaded, so that what is wrong is refused at once; the operations are in common/data/augment.py and
mixing.py. Lengths are shares of the image's side, angles degrees.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common.base.cli import Range, check_value, chosen
from common.base.errors import UserError

PADDING = {"black": "zeros", "reflect": "reflection", "edge": "border"}  # beyond an image's border, in torch's words
SIZE, SHARE, COUNT = Range(0), Range(0, 1), Range(1, whole=True)


@dataclass(frozen=True)
class Option:
    """A keyword argument of an operation; one whose default is 0 (or empty) switches it on, others refine it."""

    operation: str
    default: Any
    allowed: Range | tuple = SIZE
    colours: bool = False  # whether it changes colours, which grey images lack


OPTIONS = {
    "elastic": Option("elastic", 0.0),
    "elastic_cells": Option("elastic", 6, COUNT),
    "elastic_share": Option("elastic", 1.0, SHARE),
    "grid": Option("grid_distortion", 0.0),
    "grid_cells": Option("grid_distortion", 5, COUNT),
    "grid_share": Option("grid_distortion", 1.0, SHARE),
    "optical": Option("optical", 0.0, SHARE),
    "optical_share": Option("optical", 1.0, SHARE),
    "perspective": Option("perspective", 0.0, Range(0, 0.6)),
    "rotation": Option("rotate_shift_scale", 0.0),
    "shift": Option("rotate_shift_scale", 0.0),
    "scale": Option("rotate_shift_scale", 0.0, Range(0, 0.9)),
    "shear": Option("rotate_shift_scale", 0.0, Range(0, 60)),
    "flip": Option("flip", 0.0, SHARE),
    "flip_vertical": Option("flip", 0.0, SHARE),
    "centre_crop": Option("centre_crop", 0.0, SHARE),
    "crop": Option("crop", 0.0, SHARE),
    "crop_ratio": Option("crop", 4 / 3, Range(0, above=True)),
    "border": Option("sample", "black", tuple(PADDING)),
    "policy": Option("policy", "", ("auto", "rand", "trivial", ""), colours=True),
    "policy_strength": Option("policy", 9, Range(0, 30, whole=True)),
    "brightness": Option("colour", 0.0),
    "contrast": Option("colour", 0.0),
    "saturation": Option("colour", 0.0, colours=True),
    "hue": Option("colour", 0.0, colours=True),
    "blur": Option("blur", 0.0),
    "blur_share": Option("blur", 0.5, SHARE),
    "motion_blur": Option("motion_blur", 0.0),
    "motion_blur_share": Option("motion_blur", 0.5, SHARE),
    "median_blur": Option("median_blur", 0, (0, *range(3, 32, 2))),
    "median_blur_share": Option("median_blur", 0.5, SHARE),
    "noise": Option("noise", 0.0),
    "noise_share": Option("noise", 0.5, SHARE),
    "erasing": Option("erasing", 0.0),
    "holes": Option("erasing", 1, COUNT),
    "erasing_share": Option("erasing", 0.5, SHARE),
    "mixup": Option("mix", 0.0),
    "cutmix": Option("mix", 0.0),
    "mix_share": Option("mix", 1.0, SHARE),
    "mix_until": Option("mix", 1.0, SHARE),
    "sizes": Option("sizes", (), COUNT),
}

# In the order in which they are done.
ON_POINTS = (
    "elastic", "grid_distortion", "optical", "perspective", "rotate_shift_scale", "flip", "centre_crop", "crop",
)  # fmt: skip
ON_PIXELS = ("policy", "colour", "blur", "motion_blur", "median_blur", "noise", "erasing")

# The ranges of "digits" cover about 95 % of the natural spread of MNIST digits (Deotte,
# github.com/cdeotte/MNIST-CNN-99.75). "leaves_course" is the albumentations pipeline of a course on leaves, with each
# OneOf as independent operations of the same frequency.
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
    "leaves_course": {
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
AUGMENTS["auto"] = AUGMENTS["digits"]  # as long as it is not known whether the images are photos
AUGMENTS["brief_002"] = AUGMENTS["leaves_course"]  # its name in older runs


def options_of(preset: str, changes: Mapping[str, Any], grey: bool) -> dict[str, dict[str, Any]]:
    """The arguments of each operation that the preset, with some of its options changed, switches on.

    ``grey``: the images have no colours.

    Raises:
        UserError: an unknown preset, option or value; an option without effect; colours of grey images.
    """
    asked = {name: option.default for name, option in OPTIONS.items()} | chosen("augment", preset, AUGMENTS) | changes
    for name, value in changes.items():
        if name not in OPTIONS:
            raise UserError("--augment-args", f"{name} is unknown", f"known: {', '.join(sorted(OPTIONS))}")
        check_value("augment-args", name, value, OPTIONS[name].default, OPTIONS[name].allowed)
    if grey and (coloured := [name for name, option in OPTIONS.items() if option.colours and asked[name]]):
        what = f"{', '.join(coloured)} would change the colours of grey images"
        off = " ".join(f"{name}={OPTIONS[name].default}" for name in coloured)
        raise UserError("--augment", what, f"switch it off (--augment-args {off}), or use another preset")
    switches = [name for name, option in OPTIONS.items() if not option.default]
    on = {OPTIONS[name].operation for name in switches if asked[name]}
    if on & {*ON_POINTS}:
        on.add("sample")
    elif "border" in changes:
        raise UserError("--augment-args", "border has no effect: nothing moves the pixels", "leave it out")
    for name in changes:
        operation = OPTIONS[name].operation
        if operation not in on and name not in switches:
            others = " or ".join(each for each in switches if OPTIONS[each].operation == operation)
            raise UserError("--augment-args", f"{name} has no effect without {others}", "give both or neither")
    return {
        operation: {name: asked[name] for name, option in OPTIONS.items() if option.operation == operation}
        for operation in on
    }
