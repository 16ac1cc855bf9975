"""Every loss against its formula or another library's, with soft targets, and that training lowers it."""

import math

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss
from timm.loss import BinaryCrossEntropy
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from common.base.errors import UserError
from common.data.augment import Augmentation
from common.data.batches import TrainBatches
from common.data.inputs import Pixels
from common.data.scales import Normalise
from common.model import losses
from common.model.losses import CosineHead, create_loss, with_head_for
from common.runs.choices import LOSSES
from common.runs.config import Config, check_config, check_signatures

RANDOM = torch.Generator().manual_seed(0)
LOGITS = 3 * torch.randn(40, 5, generator=RANDOM)
LABELS = torch.randint(0, 5, (40,), generator=RANDOM)
ONE_HOT = F.one_hot(LABELS, 5).float()
SMOOTH = 0.9 * ONE_HOT + 0.02
MIXED = 0.3 * ONE_HOT + 0.7 * ONE_HOT.roll(1, 0)

HARDEST = {"focal": {"gamma": 0.5}}  # settings whose gradients come nearest to infinity
MARGIN_LOSSES = [name for name, loss in LOSSES.items() if loss.margin]


def mean_loss(name: str, targets: Tensor = LABELS, classes: int = 5, **loss_args) -> losses.Loss:
    return create_loss(name, targets, classes, **loss_args)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_finite_for_every_kind_of_target(name):
    """One-hot, smoothed and mixed targets; logits right, wrong or all alike: loss and gradient are numbers."""
    size = losses.SCALE if name in MARGIN_LOSSES else 100.0  # a cosine is at most 1
    for targets in (ONE_HOT,) if LOSSES[name].hard_labels else (ONE_HOT, SMOOTH, MIXED):
        for logits in (LOGITS, size * ONE_HOT, -size * ONE_HOT, torch.zeros(40, 5)):
            logits = logits.clamp(-size, size).clone().requires_grad_()
            loss = mean_loss(name, **HARDEST.get(name, {}))(logits, targets)
            loss.backward()
            assert loss.isfinite() and logits.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_training_lowers_every_loss(name):
    """Thirty steps on 200 real digits with smoothed targets: the loss falls and most digits are told apart."""
    digits = load_digits()
    pixels = torch.from_numpy(digits.data[:200]).float() / 16
    labels = torch.from_numpy(digits.target[:200])
    smoothing = 0.0 if LOSSES[name].hard_labels else 0.1
    targets = F.one_hot(labels, 10) * (1 - smoothing) + smoothing / 10
    torch.manual_seed(0)
    model = CosineHead(64, 10, losses.SCALE) if name in MARGIN_LOSSES else torch.nn.Linear(64, 10)
    of_numbers = name in ("mse", "mae", "huber")
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01 if of_numbers else 0.1)
    loss, values = mean_loss(name, targets=labels, classes=10), []
    for _ in range(30):
        optimiser.zero_grad()
        values.append(loss(model(pixels), targets))
        values[-1].backward()
        optimiser.step()
    assert values[-1] < 0.7 * values[0]
    assert of_numbers or (model(pixels).argmax(1) == labels).float().mean() > 0.9


def test_cross_entropy_is_torchs_and_scikit_learns():
    """One-hot: the log loss; smoothed targets: torch's label_smoothing."""
    ours = mean_loss("cross-entropy")
    expected = log_loss(LABELS.numpy(), LOGITS.double().softmax(1).numpy())
    assert ours(LOGITS, ONE_HOT).item() == pytest.approx(expected, rel=1e-6)
    assert ours(LOGITS, SMOOTH) == pytest.approx(F.cross_entropy(LOGITS, LABELS, label_smoothing=0.1))


def test_focal_is_torchvisions_for_two_classes_and_cross_entropy_without_gamma():
    """The softmax of (z, 0) is the sigmoid of z, where torchvision has the loss of the paper."""
    scores, answers = LOGITS[:, 0], (LABELS % 2).float()
    two, targets = torch.stack([scores, torch.zeros(40)], 1), torch.stack([answers, 1 - answers], 1)
    expected = sigmoid_focal_loss(scores, answers, alpha=-1, gamma=1.5)
    torch.testing.assert_close(losses.focal(two, targets, gamma=1.5), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(losses.focal(LOGITS, MIXED, gamma=0.0), losses.cross_entropy(LOGITS, MIXED))


def test_ohem_is_the_mean_of_the_hardest():
    """A quarter of the batch, by topk; of all of it, the plain mean."""
    hardest = F.cross_entropy(LOGITS, SMOOTH, reduction="none").topk(10).values.mean()
    assert mean_loss("ohem", share=0.25)(LOGITS, SMOOTH) == pytest.approx(hardest)
    assert mean_loss("ohem", share=1)(LOGITS, SMOOTH) == pytest.approx(F.cross_entropy(LOGITS, SMOOTH))


def test_bce_is_timms():
    """Summed over classes, on soft targets."""
    expected = BinaryCrossEntropy(smoothing=0.0, sum_classes=True)(LOGITS, MIXED)
    assert mean_loss("bce")(LOGITS, MIXED) == pytest.approx(expected)


def test_generalised_cross_entropy_lies_between_its_two_ends():
    """q = 1 is 1 - p, q -> 0 cross-entropy; between them (1 - p^q) / q."""
    p = LOGITS.softmax(1)[torch.arange(40), LABELS]
    for q in (1.0, 0.7):
        expected = ((1 - p**q) / q).mean()
        assert mean_loss("generalised-cross-entropy", q=q)(LOGITS, ONE_HOT) == pytest.approx(expected)
    nearly = losses.generalised_cross_entropy(LOGITS, MIXED, q=1e-4)
    torch.testing.assert_close(nearly, losses.cross_entropy(LOGITS, MIXED), rtol=1e-2, atol=1e-3)


def test_margins_are_those_of_the_papers():
    """ArcFace adds to the angle of the target's class, CosFace cuts its cosine; without a margin both are softmax."""
    cosines, scale = torch.tanh(LOGITS), 20.0
    angles = torch.acos(cosines.double())
    wider = torch.where(ONE_HOT > 0, torch.cos(angles + 0.4), angles.cos()) * scale
    sound = (angles[torch.arange(40), LABELS] + 0.4) < math.pi  # past pi the paper's code goes on differently
    ours = losses.arcface(cosines * scale, ONE_HOT, scale=scale, margin=0.4)
    expected = F.cross_entropy(wider, LABELS, reduction="none").float()
    assert 20 < sound.sum() < 40
    torch.testing.assert_close(ours[sound], expected[sound], rtol=1e-3, atol=1e-3)

    cut = (cosines - 0.35 * ONE_HOT) * scale
    ours = losses.cosface(cosines * scale, ONE_HOT, scale=scale, margin=0.35)
    torch.testing.assert_close(ours, F.cross_entropy(cut, LABELS, reduction="none"))
    for name in MARGIN_LOSSES:
        plain = mean_loss(name, margin=0.0, scale=scale)(cosines * scale, MIXED)
        assert plain == pytest.approx(F.cross_entropy(cosines * scale, MIXED).item(), rel=1e-4)


def test_a_wider_angle_is_never_an_advantage():
    """The target's logit falls with the margin at every angle, also where angle + margin passes pi."""
    angles = torch.linspace(0, math.pi, 200)
    logits = torch.stack([angles.cos(), torch.zeros(200)], 1) * 16
    targets = torch.tensor([[1.0, 0.0]]).expand(200, 2)
    without, with_margin = (losses.arcface(logits, targets, margin=margin) for margin in (0.0, 0.5))
    assert (with_margin >= without - 1e-4).all() and (with_margin.diff() > -1e-4).all()


def test_lovasz_is_the_extension_of_the_jaccard_loss():
    """By its definition: images by falling error, each weighted by what it adds to the Jaccard loss of the set."""
    p, expected = LOGITS.softmax(1), []
    for number in LABELS.unique().tolist():
        truth = set(LABELS.eq(number).nonzero().flatten().tolist())
        errors = (ONE_HOT[:, number] - p[:, number]).abs()
        order = errors.argsort(descending=True).tolist()

        def jaccard_loss(wrong: set[int], truth: set[int] = truth) -> float:
            return len(wrong) / len(truth | wrong)

        gains = [jaccard_loss(set(order[: k + 1])) - jaccard_loss(set(order[:k])) for k in range(40)]
        expected.append(sum(errors[image].item() * gain for image, gain in zip(order, gains, strict=True)))
    assert mean_loss("lovasz-softmax")(LOGITS, ONE_HOT).item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_class_weights_are_torchs_at_a_mean_of_one():
    """By the user's numbers or by scikit-learn's "balanced" rule, on all losses of an image."""
    for asked, weight in (
        ((1.2, 1.2, 0.8, 1, 1), torch.tensor([1.2, 1.2, 0.8, 1.0, 1.0])),
        ("balanced", 40 / (5 * torch.bincount(LABELS).float())),
    ):
        expected = F.cross_entropy(LOGITS, LABELS, weight=weight)  # the batch here is the whole training set
        assert mean_loss("cross-entropy", class_weights=asked)(LOGITS, ONE_HOT) == pytest.approx(expected)
        per_image = losses.focal(LOGITS, ONE_HOT, gamma=1.0) * weight[LABELS] / weight[LABELS].mean()
        assert mean_loss("focal", class_weights=asked, gamma=1.0)(LOGITS, ONE_HOT) == pytest.approx(per_image.mean())


@pytest.mark.parametrize(
    ("name", "pairs", "message"),
    [
        ("crossentropy", [], "--loss: there is no loss crossentropy; did you mean cross-entropy"),
        ("focal", ["margin=1"], "--loss-args: margin is unknown to focal; known: gamma"),
        ("focal", ["gamma=much"], "--loss-args: gamma=much is not a valid value; use 0 or more"),
        ("focal", ["gamma=None"], "--loss-args: gamma=None is not a valid value; use 0 or more"),
        ("generalised-cross-entropy", ["q=0"], "q=0 is not a valid value; use more than 0, up to 1"),
        ("ohem", ["share=2"], "share=2 is not a valid value; use more than 0, up to 1"),
        ("cross-entropy", ["class_weights=(1,2)"], "is not one positive number for each of 5 classes"),
        ("cross-entropy", ["class_weights=balance"], "is not one positive number for each of 5 classes"),
        ("cross-entropy", ["class_weights=None"], "is not one positive number for each of 5 classes"),
        ("lovasz-softmax", ["class_weights=balanced"], "lovasz-softmax has no loss per image to weight"),
    ],
)
def test_what_a_loss_cannot_do_is_refused(name, pairs, message):
    """One line that names the flag, before anything is trained."""
    cfg = Config(loss=name, loss_args=tuple(pairs), label_smoothing=0.0)
    with pytest.raises(UserError, match=message):
        check_config(cfg, processes=1)
        check_signatures(cfg)
        create_loss(name, LABELS, 5, **cfg.args("loss"))


def test_smoothing_is_refused_where_it_would_mean_nothing():
    """Lovasz-softmax knows sets, and an image is in one or not; a mixed image is in two."""
    with pytest.raises(UserError, match="lovasz-softmax takes hard labels only.*--label-smoothing 0"):
        check_config(Config(loss="lovasz-softmax", label_smoothing=0.1), processes=1)
    cfg = Config(loss="lovasz-softmax", label_smoothing=0.0, augment_args=("mixup=0.4",))
    with pytest.raises(UserError, match="--augment-args: lovasz-softmax takes hard labels only"):
        check_config(cfg, processes=1)


@pytest.mark.parametrize("name", ["resnet10t", "test_vit", "test_efficientnet", "convnext_atto", "digit_cnn"])
def test_a_margin_loss_gets_a_cosine_head(name):
    """In every family the last layer is replaced in place; its outputs are the scale times a cosine."""
    import common.model.networks  # noqa: F401  registers digit_cnn

    model = with_head_for(timm.create_model(name, num_classes=7), "arcface", scale=11)
    assert isinstance(model.get_classifier(), CosineHead)
    side = model.pretrained_cfg["input_size"][-1] if hasattr(model, "pretrained_cfg") else 28
    channels = 1 if name == "digit_cnn" else 3
    logits = model.eval()(torch.rand(3, channels, side, side))
    assert logits.shape == (3, 7) and 0 < logits.abs().max() <= 11


def rows_by_class(**changes) -> TrainBatches:
    """60 rows, of which 40 train: 30 of class 0, 8 of class 1, 2 of class 2; the others are all of class 2."""
    targets = torch.tensor([0] * 30 + [1] * 8 + [2] * 2 + [2] * 20)
    inputs = Pixels(torch.zeros(60, 1, 2, 2, dtype=torch.uint8))
    settings = {"inputs": inputs, "targets": targets, "rows": torch.arange(40)}
    settings |= {"num_classes": 3, "batch_size": 8, "micro_batches": 1, "process": 0, "processes": 1, "seed": 0}
    settings |= {"augment": Augmentation(), "normalise": Normalise((0.0,), (1.0,))}
    return TrainBatches(**(settings | {"label_smoothing": 0.0, "sampling": "balanced"} | changes))


def test_balanced_sampling_deals_out_each_class_alike():
    """An epoch has as many rows as before, a third of each class, no row of a class much oftener than another."""
    batches = rows_by_class()
    order = batches.order_of(0)
    counts = torch.bincount(batches.targets[order], minlength=3)
    assert len(order) == 40 and counts.max() - counts.min() <= 2
    for number, most in ((0, 1), (1, 2), (2, 7)):
        times = torch.bincount(order, minlength=60)[batches.targets[:40].eq(number).nonzero().flatten()]
        assert times.max() <= most and times.max() - times.min() <= 1
    assert torch.equal(order, rows_by_class().order_of(0)) and not torch.equal(order, batches.order_of(1))
    assert len({row for epoch in range(9) for row in batches.order_of(epoch).tolist()}) == 40


def test_balance_is_that_of_the_training_rows():
    """Sampling and weights see no row that the fold held out, whatever its label."""
    held_out_changed = torch.tensor([0] * 30 + [1] * 8 + [2] * 2 + [0] * 20)
    assert rows_by_class().order_of(0).max() < 40
    assert torch.equal(rows_by_class().order_of(0), rows_by_class(targets=held_out_changed).order_of(0))
    weights = losses.class_weights_of("balanced", rows_by_class().targets[:40], 3)
    torch.testing.assert_close(weights, torch.tensor([40 / 90, 40 / 24, 40 / 6]))
