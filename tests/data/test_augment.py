"""Each augmentation does what its name says, to each image alike however many processes share the batch."""

import inspect

import matplotlib.image
import numpy as np
import pytest
import torch
from conftest import SMALL
from switches import SWITCHES

import train_fold
from common.base.errors import UserError
from common.data import augment
from common.data.augment import create_augmentation
from common.data.augment_options import AUGMENTS, ON_PIXELS, ON_POINTS, OPTIONS
from common.data.batches import TrainBatches
from common.data.inputs import Pixels
from common.data.mixing import Mix
from common.data.scales import Normalise

SIDE = 16
NONE = Normalise((0.0,), (1.0,))


@pytest.fixture(scope="module")
def photos() -> torch.Tensor:
    """48 small colour images, smooth with some grain: uint8 (48, 3, 16, 16)."""
    random = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.rand(48, 3, 4, 4, generator=random), SIDE, mode="bicubic")
    grain = 0.1 * torch.rand(48, 3, SIDE, SIDE, generator=random)
    return ((smooth + grain).clamp(0, 1) * 255).to(torch.uint8)


def uniform_of(seed: int, count: int = 48):
    generator = torch.Generator().manual_seed(seed)
    return lambda k: torch.rand(count, k, generator=generator)


def augmented(photos: torch.Tensor, seed: int = 0, **changes) -> torch.Tensor:
    return create_augmentation("none", changes, grey=False)(photos.float() / 255, uniform_of(seed, len(photos)))


def batches(photos: torch.Tensor, changes: dict, **more) -> TrainBatches:
    settings = {"batch_size": 16, "micro_batches": 1, "process": 0, "processes": 1, "seed": 0, "label_smoothing": 0.1}
    return TrainBatches(
        inputs=Pixels(photos),
        targets=torch.arange(len(photos)) % 4,
        rows=torch.arange(len(photos)),
        num_classes=4,
        augment=create_augmentation("none", changes, grey=False),
        normalise=NONE,
        epochs=10,
        **(settings | more),
    )


def test_every_switch_is_tested():
    """Whatever switches an operation on has a line in SWITCHES."""
    assert {name for name, option in OPTIONS.items() if not option.default} == SWITCHES.keys()


@pytest.mark.parametrize("operation", [*ON_POINTS, *ON_PIXELS])
def test_an_operation_takes_the_options_of_its_rows(operation):
    """After images (or points) and their random numbers, these and no others."""
    parameters = list(inspect.signature(getattr(augment, operation)).parameters)
    assert parameters[2:] == [name for name, option in OPTIONS.items() if option.operation == operation]


@pytest.mark.parametrize("name", SWITCHES)
def test_a_batch_is_the_same_however_it_is_shared(photos, name):
    """Two processes with two accumulation steps see, together, the images and targets of one process."""
    changes = {name: SWITCHES[name]}
    whole = list(batches(photos, changes).epoch(2))
    parts = [list(batches(photos, changes, processes=2, process=rank, micro_batches=2).epoch(2)) for rank in (0, 1)]
    for step, batch in enumerate(whole):
        shares = [parts[rank][2 * step + micro] for micro in (0, 1) for rank in (0, 1)]
        torch.testing.assert_close(torch.cat([share.inputs for share in shares]), batch.inputs, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(torch.cat([share.targets for share in shares]), batch.targets)
        assert torch.equal(torch.cat([share.rows for share in shares]), batch.rows)


@pytest.mark.parametrize("name", [name for name in SWITCHES if name not in ("mixup", "cutmix", "sizes")])
def test_each_operation_changes_images_within_their_range(photos, name):
    """Different images of the same size in 0..1, the same for the same random numbers, others for others."""
    first, again, other = (augmented(photos, seed, **{name: SWITCHES[name]}) for seed in (0, 0, 1))
    assert first.shape == photos.shape and torch.equal(first, again)
    assert first.min() >= -1e-4 and first.max() <= 1 + 1e-4
    assert (first - photos.float() / 255).abs().mean() > 1e-3
    assert name in ("centre_crop", "median_blur") or not torch.equal(first, other)


@pytest.mark.parametrize("preset", AUGMENTS)
def test_presets_work_and_those_for_digits_take_grey(photos, preset):
    """Every preset augments colour images; grey ones too, unless it changes colours."""
    create_augmentation(preset, {}, grey=False)(photos.float() / 255, uniform_of(0))
    if not any(OPTIONS[name].colours for name in AUGMENTS[preset]):
        grey = photos[:, :1].float() / 255
        assert create_augmentation(preset, {}, grey=True)(grey, uniform_of(0)).shape == grey.shape
    assert "flip" not in AUGMENTS["digits"] and "flip_vertical" not in AUGMENTS["digits"]  # a mirrored 2 is no 2


def test_geometry_is_what_it_says(photos):
    """Flips mirror exactly, a centre crop enlarges the middle, a share of 0.3 touches about 0.3 of the images."""
    pixels = photos.float() / 255
    torch.testing.assert_close(augmented(photos, flip=1.0), pixels.flip(-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(augmented(photos, flip_vertical=1.0), pixels.flip(-2), atol=1e-5, rtol=0)
    middle = torch.nn.functional.interpolate(pixels[..., 4:12, 4:12], SIDE, mode="bilinear")
    torch.testing.assert_close(augmented(photos, centre_crop=0.5)[..., 2:-2, 2:-2], middle[..., 2:-2, 2:-2])
    many = photos.repeat(20, 1, 1, 1)
    touched = (augmented(many, elastic=0.1, elastic_share=0.3) - many.float() / 255).abs().amax((1, 2, 3)) > 1e-3
    assert 0.25 < touched.float().mean() < 0.35


def test_several_moves_cost_one_interpolation(photos):
    """Turning by a random angle within a flipped crop loses no more detail than each of them: it is sampled once."""

    def detail(images: torch.Tensor) -> float:
        return images.diff(dim=3).abs().mean().item()

    noise = torch.rand(48, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3)) * 255
    alone = detail(augmented(noise.to(torch.uint8), rotation=10.0, border="reflect"))
    together = detail(
        augmented(noise.to(torch.uint8), rotation=10.0, flip=0.5, shear=5.0, optical=0.02, border="reflect")
    )
    assert together > 0.9 * alone


def test_pixels_are_changed_as_the_names_say(photos):
    """Blur flattens, a median removes specks, noise adds its deviation, erasing covers its area, colours fade."""
    pixels = photos.float() / 255
    for name in ("blur", "motion_blur"):
        blurred = augmented(photos, **{name: 0.2, f"{name}_share": 1.0})
        assert blurred.diff(dim=3).abs().mean() < 0.8 * pixels.diff(dim=3).abs().mean()
        torch.testing.assert_close(blurred.mean((1, 2, 3)), pixels.mean((1, 2, 3)), atol=0.05, rtol=0)
    specks = torch.zeros(48, 1, SIDE, SIDE, dtype=torch.uint8)
    specks[..., ::4, ::4] = 255
    assert augmented(specks, median_blur=3, median_blur_share=1.0).max() == 0
    grey = torch.full((48, 1, SIDE, SIDE), 128, dtype=torch.uint8)
    deviations = augmented(grey, noise=0.1, noise_share=1.0).std((1, 2, 3))
    assert deviations.max() < 0.12 and 0.035 < deviations.mean() < 0.065
    white = (torch.arange(SIDE * SIDE) % 2 * 255).view(1, 1, SIDE, SIDE).repeat(48, 1, 1, 1).to(torch.uint8)
    covered = (augmented(white, erasing=0.5, erasing_share=1.0) == 127.5 / 255).float().mean((1, 2, 3))
    assert covered.max() <= 0.36 and covered.mean() > 0.03
    turned = create_augmentation("none", {"saturation": 1.0}, grey=False)(pixels, lambda k: torch.zeros(48, k))
    assert turned.std(dim=1).mean() < 0.02  # saturation 1 - 1


def test_policies_leave_torchs_randomness_alone(photos):
    """AutoAugment and its like draw from the global generator; dropout after them must not notice."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    for policy in ("auto", "rand", "trivial"):
        torch.manual_seed(5)
        assert not torch.equal(augmented(photos, policy=policy), photos.float() / 255)
        assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("changes", [{"mixup": 0.5}, {"cutmix": 1.0}, {"mixup": 0.5, "cutmix": 1.0}])
def test_a_mixed_target_holds_what_the_image_holds(changes):
    """White images mixed with black ones: the share of white in the picture is the share of its class."""
    images = (torch.arange(32) % 2 * 255).view(32, 1, 1, 1).expand(-1, 1, SIDE, SIDE).to(torch.uint8)
    mixed = TrainBatches(
        inputs=Pixels(images),
        targets=torch.arange(32) % 2,
        rows=torch.arange(32),
        num_classes=2,
        batch_size=32,
        micro_batches=1,
        process=0,
        processes=1,
        seed=0,
        augment=create_augmentation("none", changes, grey=True),
        normalise=NONE,
        label_smoothing=0.0,
    )
    batch = next(mixed.epoch(0))
    pixels, targets = batch.inputs, batch.targets
    torch.testing.assert_close(targets.sum(1), torch.ones(32))
    torch.testing.assert_close(targets[:, 1], pixels.mean((1, 2, 3)))
    blended = ((pixels > 0) & (pixels < 1)).flatten(1).any(dim=1)
    assert bool(blended.any()) == ("mixup" in changes)
    assert ((targets[:, 1] > 0.02) & (targets[:, 1] < 0.98) & ~blended).any() == ("cutmix" in changes)


def test_mixing_stops_for_the_last_epochs_and_spares_its_share(photos):
    """mix_until=0.5 of ten epochs mixes in the fifth and not in the sixth; mix_share=0.25 mixes about a quarter."""
    late = batches(photos, {"mixup": 1.0, "mix_until": 0.5}, label_smoothing=0.0)
    mixed = [(next(late.epoch(epoch)).targets.max(dim=1).values < 1).any().item() for epoch in (4, 5)]
    assert mixed == [True, False]
    share = Mix(mixup=1.0, mix_share=0.25)(0, 1000)[0]
    assert 0.2 < np.mean(share < 1) < 0.3


def test_sizes_change_from_batch_to_batch(photos):
    """Multi-scale: each batch has one of the sizes, an epoch has several, another seed has another order."""

    def sizes(**more) -> list[int]:
        return [
            batch.inputs.shape[-1]
            for epoch in range(4)
            for batch in batches(photos, {"sizes": (8, 16)}, **more).epoch(epoch)
        ]

    assert set(sizes()) == {8, 16} and sizes() == sizes() != sizes(seed=1)


@pytest.mark.parametrize(
    ("preset", "changes", "grey", "message"),
    [
        ("digit", {}, True, "--augment: there is no augment digit; did you mean digits\\?"),
        ("digits", {"rotate": 3}, True, "rotate is unknown; known: .*rotation"),
        ("digits", {"rotation": "much"}, True, "rotation=much is not a valid value; use 0 or more"),
        ("digits", {"rotation": -3}, True, "rotation=-3 is not a valid value; use 0 or more"),
        ("none", {"blur": 0.1, "blur_share": 1.5}, True, "blur_share=1.5 is not a valid value; use 0 to 1"),
        ("none", {"median_blur": 4}, True, "median_blur=4 is not a valid value"),
        ("none", {"sizes": 28}, True, r"sizes=28 is not a valid value; use a list such as \(1,2\)"),
        ("none", {"sizes": (28.5,)}, True, r"sizes=\(28.5,\) is not a valid value"),
        ("digits", {"rotation": None}, True, "rotation=None is not a valid value; use 0 or more"),
        ("digits", {"blur_share": 0.5}, True, "blur_share has no effect without blur"),
        ("none", {"border": "edge"}, True, "border has no effect: nothing moves the pixels"),
        ("none", {"policy": "best"}, False, "policy=best is not a valid value; use one of auto, rand, trivial"),
        ("none", {"mix_until": 0.5}, False, "mix_until has no effect without mixup or cutmix"),
        ("photos", {}, True, r"saturation would change the colours of grey images; switch it off .*saturation=0.0"),
        ("none", {"policy": "rand"}, True, r"policy would change the colours .*--augment-args policy=\)"),
    ],
)
def test_an_augmentation_without_sense_is_refused(preset, changes, grey, message):
    """Misspelt, of the wrong type, without effect, or colours where there are none: one line that says what to do."""
    with pytest.raises(UserError, match=message):
        create_augmentation(preset, changes, grey)


def test_the_remedy_for_grey_images_works(photos):
    """Switched off as the message says, the preset takes grey images."""
    assert (
        create_augmentation("photos", {"saturation": 0.0}, grey=True)(photos[:, :1] / 255, uniform_of(0))
        .isfinite()
        .all()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--augment", "photos"], "colours of grey images"),
        (["--augment", "photos", "--channels", "3"], "colours of grey images"),
        (["--augment-args", "sizes=(8,16)"], "digit_cnn, built for 8 px, does not work at 16 px"),
    ],
)
def test_training_refuses_what_its_images_or_model_cannot_take(tiny, tmp_path, arguments, message):
    """Before the run's folder is made: grey digits stay grey in three channels, a fixed size stays fixed."""
    places = ["--data", tiny / "train.csv", "--folds", tiny / "folds.csv", "--runs-dir", tmp_path / "runs"]
    with pytest.raises(UserError, match=message):
        train_fold.main([str(each) for each in [*places, *SMALL, "--fold", 0, *arguments]])
    assert not list((tmp_path / "runs").glob("*"))


def test_show_batch_draws_and_trains_nothing(tiny, tmp_path):
    """A png with a picture for each image of the batch; no run is begun."""
    places = ["--data", tiny / "train.csv", "--folds", tiny / "folds.csv", "--runs-dir", tmp_path / "runs"]
    path = tmp_path / "batch.png"
    mixed = ["--augment-args", "mixup=1", "--show-batch", path]
    train_fold.main([str(each) for each in [*places, *SMALL, "--fold", 0, *mixed]])
    picture = matplotlib.image.imread(path)
    assert picture.shape[0] > 100 and picture.shape[1] > 8 * 100 and picture[..., :3].std() > 0.1
    assert not (tmp_path / "runs").exists()
