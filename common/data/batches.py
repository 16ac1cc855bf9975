"""The batches of a training, cut from the images by a rule that knows nothing but the seed and the epoch."""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.base.profiling import part
from common.data.augment import Augmentation, Uniform
from common.data.inputs import Inputs, padded_to
from common.data.lessons import Lessons
from common.data.mixing import Mixture, size_of_batch
from common.data.scales import Scale
from common.data.transfer import HOST, ahead, to_device
from common.score.task import MULTICLASS, Task

POOL = 8  # batches whose rows are sorted by length
MANY = 4096  # random numbers an image: as many are drawn where they are used, and only a block of rows at a time


def seed_of(purpose: str, *parts: int) -> int:
    """One well-mixed seed for a purpose from several small numbers, such as ("order", seed, epoch)."""
    entropy = [zlib.crc32(purpose.encode()), *parts]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]) >> 1  # torch's seeds are signed


@dataclass(frozen=True)
class Examples:
    """What a fold trains on: ``rows`` of a table, its inputs and targets."""

    inputs: Inputs  # of all n rows of the table
    targets: Tensor  # of all n rows, as the task encodes them, on the training device
    rows: Tensor  # those to train on, int64 (m), in the host's memory
    output_names: Sequence[str]
    lessons: Lessons = Lessons()

    @cached_property
    def normalise(self) -> Scale:
        """What brings the inputs of the rows to zero mean and unit deviation; rows that joined have no part in it."""
        return self.inputs.scale_of(self.lessons.own(self.rows), self.targets.device)

    @cached_property
    def known(self) -> Tensor:
        """The targets of the rows whose labels are known."""
        return self.targets[self.lessons.own(self.rows)]


@dataclass(frozen=True)
class Batch:
    """The rows that a process takes at a time: m of a table."""

    inputs: Tensor  # what the model is given, float (m, channels, side, side), or (m, width) of features
    targets: Tensor  # soft, float (m, outputs)
    rows: Tensor  # their numbers in the table, int64 (m); a mixed image goes by its own
    weights: Tensor | None = None  # what their targets count for, float (m); None: 1 each
    taught: Tensor | None = None  # what teachers say of them, probabilities, float (m, outputs)
    again: Tensor | None = None  # the inputs in another augmentation, where an objective compares two


@dataclass(frozen=True)
class Share:
    """A process's part of a global batch, before it is looked up."""

    step: int  # of the pass over the rows: the number of the global batch
    place: slice  # in the global batch
    rows: Tensor  # int64 (m)
    partners: Tensor  # the rows that they are mixed with, int64 (m); empty without mixing
    mixture: Mixture | None  # how
    longest: int  # of the global batch, where lengths differ; 0: they do not


@dataclass(frozen=True)
class TrainBatches:
    """The micro-batches that one process trains on, epoch by epoch.

    ``rows``, in the host's memory, index ``inputs`` and ``targets``, which are of all rows of the table (as the task
    encodes them) and on the training device, where the batches are too. An epoch's order and mixtures are drawn on the
    host and moved once, before its first batch, so that no step waits for the device.

    The order of an epoch and each image's augmentation follow from (seed, epoch) alone: every process walks the same
    global batches of ``batch_size`` rows and takes its share, and the rows left over after the last whole batch wait
    for another epoch.
    """

    inputs: Inputs
    targets: Tensor
    rows: Tensor
    num_classes: int
    batch_size: int
    micro_batches: int
    process: int
    processes: int
    seed: int
    augment: Augmentation
    normalise: Scale
    label_smoothing: float
    epochs: int = 1  # of the training
    first_epoch: int = 0  # its number in the fold: the nets of --select members draw other orders
    steps_an_epoch: int = 0  # optimiser steps, where an epoch is a part of --steps and no pass over the rows
    sampling: str = "uniform"  # or "balanced"
    side: int = 0  # of the model's input, where the images are larger (0: the images' own)
    task: Task = MULTICLASS
    lessons: Lessons = Lessons()
    twice: bool = False  # whether each batch comes in two augmentations

    @property
    def device(self) -> torch.device:
        """Where the batches are."""
        return self.targets.device

    @property
    def augments_ahead(self) -> bool:
        """Whether images are augmented before they are copied: a GPU would idle for a policy's many small steps."""
        return self.augment.on_host and self.device.type != "cpu"

    @cached_property
    def lengths(self) -> Tensor | None:
        """How long each row of the table is in training, int64 (n), in the host's memory; None: all have one shape."""
        lengths, most = self.inputs.lengths, self.augment.crop_frames
        return lengths.clamp_max(most) if lengths is not None and most else lengths

    @property
    def steps(self) -> int:
        """Optimiser steps per epoch."""
        return self.steps_an_epoch or self.steps_of_a_pass

    @property
    def steps_of_a_pass(self) -> int:
        """Whole batches that the rows fill."""
        return len(self.rows) // self.batch_size

    @property
    def micro_batch_size(self) -> int:
        """Images that a process takes at a time."""
        return self.batch_size // (self.processes * self.micro_batches)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The micro-batches of an epoch (from 0), ``micro_batches`` of them for each optimiser step."""
        mixes = self.augment.mix is not None and self.augment.mix.mixes_in(epoch, self.epochs)
        first = (self.first_epoch + epoch) * self.steps
        last = first + self.steps
        while first < last:
            number, begin = divmod(first, self.steps_of_a_pass)
            steps = range(begin, min(begin + last - first, self.steps_of_a_pass))
            yield from self._of_pass(number, steps, mixes)
            first += len(steps)

    def _of_pass(self, epoch: int, steps: range, mixes: bool) -> Iterator[Batch]:
        """The micro-batches of some steps of a pass over the rows, the ``epoch``-th of the fold (from 0)."""
        order = self.order_of(epoch)
        wanted = (torch.cat([share.rows, share.partners]) for share in self._shares(order, steps, mixes))
        mixtures = self._mixtures(epoch, steps) if mixes else ()
        shares = self._shares(to_device(order, self.device), steps, mixes, mixtures, self._longest(order))
        found = self.inputs.batches(wanted, HOST if self.augments_ahead else self.device)
        if self.augments_ahead:
            of_shares = zip(found, shares, strict=True)
            found = ahead(self._augmented(pixels, share, epoch, HOST) for pixels, share in of_shares)
        for share in shares:
            with part("data"):
                images = next(found)
            with part("augmentation"):
                if not self.augments_ahead:
                    images = self._augmented(images, share, epoch, self.device)
                batch = self._batch(images, share, epoch)
            yield batch

    def _mixtures(self, epoch: int, steps: range) -> Tensor:
        """Those of a pass's global batches, float (steps, 4, batch size)."""
        seeds = (seed_of("mixing", self.seed, epoch, step) for step in steps)
        return to_device(
            torch.from_numpy(np.stack([self.augment.mix(seed, self.batch_size) for seed in seeds])), self.device
        )

    def _longest(self, order: Tensor) -> list[int]:
        """The longest row of each global batch of a pass, whose rows are in ``order``; nothing where all are alike."""
        if self.lengths is None:
            return []
        whole = order[: self.steps_of_a_pass * self.batch_size]
        return self.lengths[whole].view(-1, self.batch_size).amax(1).tolist()

    def _shares(
        self,
        order: Tensor,
        steps: range,
        mixes: bool,
        mixtures: Sequence[Tensor] | Tensor = (),
        longest: Sequence[int] = (),
    ) -> list[Share]:
        """What this process takes of each global batch of some steps of a pass, whose rows are in ``order``, int64 (n).

        An image's partner in mixing is the one at the same place from the global batch's end.
        """
        size, shares = self.micro_batch_size, []
        batches = order.split(self.batch_size)
        for number, step in enumerate(steps):
            batch = batches[step]
            for micro_batch in range(self.micro_batches):
                first = (micro_batch * self.processes + self.process) * size
                place = slice(first, first + size)
                partners = batch.flip(0)[place] if mixes else batch[:0]
                mixture = Mixture(*mixtures[number][:, place]) if len(mixtures) else None
                of_all = longest[step] if longest else 0
                shares.append(Share(step, place, batch[place], partners, mixture, of_all))
        return shares

    def _augmented(self, pixels: Tensor, share: Share, epoch: int, device: torch.device) -> list[list[Tensor]]:
        """A share's images, augmented on ``device``, where their pixels are, and then on the training device.

        They are those of its rows and, with mixing, those of its partners, each augmented as it is in its own place; in
        one augmentation or two.
        """
        count, found = len(share.rows), []
        for purpose in ("augmentation", "second augmentation")[: 1 + self.twice]:
            seed = seed_of(purpose, self.seed, epoch, share.step)
            images = [self.augmented(pixels[:count], self._uniform(seed, share.place, device))]
            if share.longest:
                images[0] = padded_to(share.longest, images[0])
            if share.mixture is not None:
                uniform = self._uniform(seed, share.place, device, from_end=True)
                images.append(self.augmented(pixels[count:], uniform))
            found.append(images if device == self.device else [to_device(some, self.device) for some in images])
        return found

    def _batch(self, augmented: list[list[Tensor]], share: Share, epoch: int) -> Batch:
        """A share as the model is given it: mixed and brought to the batch's size where asked for."""
        columns, inputs = self._columns(share.rows), [images[0] for images in augmented]
        if share.mixture is not None:
            partners = self._columns(share.partners)
            mixed = [share.mixture(images[0], columns, images[1], partners) for images in augmented]
            inputs, columns = [images for images, _ in mixed], mixed[0][1]
        if self.augment.sizes:
            side = size_of_batch(seed_of("size", self.seed, epoch, share.step), self.augment.sizes)
            inputs = [F.interpolate(images, (side, side), mode="bilinear", antialias=True) for images in inputs]
        targets, weights, taught = self.lessons.parts(columns, self.num_classes)
        return Batch(inputs[0], targets, share.rows, weights, taught, inputs[1] if self.twice else None)

    def _columns(self, rows: Tensor) -> Tensor:
        """All that the loss compares of rows, side by side so that it is mixed alike."""
        return self.lessons.columns(rows, self.targets_of(rows))

    def order_of(self, epoch: int) -> Tensor:
        """The rows of an epoch in order, int64 (n), in the host's memory.

        Each comes once, or with "balanced" sampling each class equally often. A class's rows are then dealt out like
        cards, all of them before one comes again: of a common class some wait for another epoch, of a rare one none is
        drawn more than one time more often than another. Where so many rows without labels joined that batches would
        have too few others, both kinds are dealt out so, and each batch has the same number of either.
        """
        generator = torch.Generator().manual_seed(seed_of("order", self.seed, epoch))

        def shuffled(rows: Tensor) -> Tensor:
            return rows[torch.randperm(len(rows), generator=generator)]

        def dealt(rows: Tensor, count: int) -> Tensor:
            return torch.cat([shuffled(rows) for _ in range(-(-count // len(rows)))])[:count]

        if known := self.lessons.in_each_batch:
            steps, is_own = self.steps_of_a_pass, self.rows < self.lessons.first_joined
            own = dealt(self.rows[is_own], steps * known).view(steps, known)
            others = dealt(self.rows[~is_own], steps * (self.batch_size - known)).view(steps, -1)
            places = torch.rand(steps, self.batch_size, generator=generator).argsort(dim=1, stable=True)
            return torch.cat([own, others], dim=1).gather(1, places).flatten()
        if self.inputs.together > 1:
            return self._in_runs(generator)
        if self.sampling == "uniform":
            return self._by_length(shuffled(self.rows), generator)
        targets = self.targets.cpu()[self.rows]
        by_class = self.rows[targets.argsort(stable=True)]
        classes = by_class.split(targets.unique(return_counts=True)[1].tolist())
        share = -(-len(self.rows) // len(classes))
        order = shuffled(torch.cat([dealt(rows, share) for rows in classes]))[: len(self.rows)]
        return self._by_length(order, generator)

    def _in_runs(self, generator: torch.Generator) -> Tensor:
        """The rows of an epoch as runs of some that follow one another, the first of which begins anywhere."""
        shift = int(torch.randint(self.inputs.together, (1,), generator=generator))
        runs = [run for part in self.rows.tensor_split([shift]) for run in part.split(self.inputs.together)]
        return torch.cat([runs[number] for number in torch.randperm(len(runs), generator=generator).tolist()])

    def _by_length(self, order: Tensor, generator: torch.Generator) -> Tensor:
        """An epoch's rows so that those of a batch are about as long as each other, where their lengths differ.

        Pools of POOL batches are sorted, and all batches shuffled again. What is left over after the last whole batch
        stays at the end, as it was drawn.
        """
        if self.lengths is None:
            return order
        whole, left = order.tensor_split([self.steps_of_a_pass * self.batch_size])
        pools = whole.split(POOL * self.batch_size)
        batches = torch.cat([pool[self.lengths[pool].argsort(stable=True)] for pool in pools]).view(-1, self.batch_size)
        return torch.cat([batches[torch.randperm(len(batches), generator=generator)].flatten(), left])

    def augmented(self, raw: Tensor, uniform: Uniform) -> Tensor:
        """Augmented and scaled inputs, float (m, channels, side, side) or (m, ...), of raw ones."""
        return self.normalise(self.inputs.augmented(raw, self.augment, uniform, self.side))

    def targets_of(self, rows: Tensor) -> Tensor:
        """What the loss compares, smoothed: the task's soft targets, float (m, outputs)."""
        numbers = torch.arange(self.num_classes, device=self.targets.device)
        if not self.lessons.joined:
            return self.task.soft(self.targets[rows], numbers, self.label_smoothing)
        own = rows.clamp_max(self.lessons.first_joined - 1)
        return self.lessons.with_joined(rows, self.task.soft(self.targets[own], numbers, self.label_smoothing))

    def _uniform(self, seed: int, share: slice, device: torch.device, from_end: bool = False) -> Uniform:
        """Random numbers on ``device`` for the images in a share of the global batch, counted from either end.

        All are drawn on the host, where every machine draws the same; but for those of whole images, which would take
        longer to copy than the device takes to draw them.
        """
        host = torch.Generator().manual_seed(seed)
        own = host if device.type == "cpu" else torch.Generator(device).manual_seed(seed)
        wanted = slice(self.batch_size - share.stop, self.batch_size - share.start) if from_end else share

        def uniform(k: int) -> Tensor:
            generator = own if k > MANY else host
            at_once = max(1, MANY * MANY // k)  # rows; what other processes use is drawn and thrown away
            drawn = []
            for first in range(0, self.batch_size, at_once):
                count = min(at_once, self.batch_size - first)
                numbers = torch.rand(count, k, generator=generator, device=generator.device)
                drawn.append(numbers[max(0, wanted.start - first) : max(0, wanted.stop - first)])
            numbers = torch.cat(drawn) if len(drawn) > 1 else drawn[0]
            return to_device(numbers.flip(0) if from_end else numbers, device)

        return uniform
