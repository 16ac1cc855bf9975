"""The images of a table as uint8, wherever they lie while they are used.

A pixel table becomes one tensor on the device: 42,000 digits are 33 MB, so a batch is an index into it. Photos are
decoded once into a file that all folds and processes map into memory (common/data/cache.py), from there to a device
that has room for them, or, where they do not fit into the file, again for each batch by threads that work ahead
(common/data/decoding.py). :func:`pixels_of` reads batches from any of them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from common.base.errors import UserError
from common.data.cache import Cache, keep
from common.data.decoding import Decoder, Preparation, check_photos
from common.data.features import encoded, width
from common.data.tables import Table
from common.data.transfer import HOST, copied_ahead, free_bytes, to_device

PAD_UP_TO = 1.25  # a size at most this much above the images' own is reached by a black border
PHOTO_SIDE = 224  # of photos, whose sizes vary, unless the model says otherwise

RESIDENT = 1 / 3  # of the device's free memory may hold photos, so that a batch is an index into them
WORTH_A_THREAD = 1e6  # bytes of a batch; smaller ones are gathered before a thread has woken up

Images = Tensor | Decoder


def image_shape(table: Table) -> tuple[int, int]:
    """(channels, side) of the images as they are; (3, 224) for photos, whose sizes vary; of n features (0, n)."""
    if table.of_features:
        return 0, width(table.plan)
    return (3, PHOTO_SIDE) if table.of_photos else (1, table.images.shape[1])


def load_images(table: Table, channels: int, img_size: int, device: torch.device = HOST) -> Tensor:
    """All images of a pixel table on the device, uint8 (n, channels, img_size, img_size).

    Grey becomes colour by repeating its channel (a view: no memory). A table is padded when the new size is at most a
    quarter larger, else resized (bilinear).
    """
    return _fit(torch.from_numpy(table.images)[:, None], img_size).to(device).expand(-1, channels, -1, -1)


def read_images(
    table: Table,
    prepare: Preparation,
    device: torch.device,
    cache: Cache,
    row_shas: Sequence[str] = (),
    workers: int = 1,
    say: Callable[[str], None] = print,
) -> Images:
    """The images of a table, ready for :func:`pixels_of`: uint8 (n, channels, stored, stored).

    ``row_shas`` (n) are what photos must hash to (empty: not known). ``say`` is told where they are kept.

    Raises:
        UserError: a photo that is kept cannot be decoded, or is another than the hashes say.
    """
    if table.of_features:
        return torch.from_numpy(encoded(table.source, prepare.features, table.feature_names, table.images)).to(device)
    if not table.of_photos:
        return load_images(table, prepare.channels, prepare.side, device)
    decoder = Decoder(table, prepare, row_shas, workers)
    try:
        kept = keep(decoder, cache, say)
    except UserError:
        check_photos(table, workers, as_written=True)  # one broken file seldom comes alone
        raise
    if kept is None:
        return decoder
    return torch.from_numpy(kept).to(device if kept.nbytes <= RESIDENT * free_bytes(device) else "cpu")


def pixels_of(images: Images, row_batches: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
    """The pixels of batches of rows, in their order: uint8 (m, channels, side, side) on ``device``.

    The rows, int64 (m) each, are in the host's memory. What is not on the device is gathered and copied ahead.
    """
    if isinstance(images, Decoder):
        decoded = map(torch.from_numpy, images.batches(rows.tolist() for rows in row_batches))
        yield from copied_ahead(map(Tensor.pin_memory, decoded) if device.type == "cuda" else decoded, device)
        return
    row_batches = list(row_batches)
    if images.device.type != "cpu":
        rows = to_device(torch.cat(row_batches), images.device)  # of all batches at once
        yield from (images[some] for some in rows.split([len(batch) for batch in row_batches]))
    elif device.type == "cpu" and images[:1].numel() * max(map(len, row_batches), default=0) < WORTH_A_THREAD:
        yield from (images[rows] for rows in row_batches)
    else:
        yield from copied_ahead((_gathered(images, rows, device.type == "cuda") for rows in row_batches), device)


def _gathered(images: Tensor, rows: Tensor, pinned: bool) -> Tensor:
    """Some of the images; torch uses pinned memory again once the copies out of it are done."""
    found = torch.empty((len(rows), *images.shape[1:]), dtype=images.dtype, pin_memory=pinned)
    return torch.index_select(images, 0, rows, out=found)


def conversion(table: Table, prepare: Preparation) -> str:
    """What is done to the images before a model sees them, in words; empty where they stay as they are."""
    if table.of_features:
        return ""
    if table.of_photos:
        return str(prepare)
    (own_channels, own_size), img_size = image_shape(table), prepare.side
    said = []
    if img_size != own_size:
        how = "padded" if own_size < img_size <= own_size * PAD_UP_TO else "resized"
        said.append(f"{own_size} px {how} to {img_size} px")
    if prepare.channels != own_channels:
        said.append("grey repeated as three channels")
    return ", ".join(said)


def _fit(images: Tensor, size: int) -> Tensor:
    own = images.shape[-1]
    if size == own:
        return images
    if own < size <= own * PAD_UP_TO:
        before = (size - own) // 2
        return F.pad(images, [before, size - own - before] * 2)
    shape = (len(images), 1, size, size)
    fitted = torch.empty(shape, dtype=torch.uint8)
    for some, target in zip(images.split(4096), fitted.split(4096), strict=True):  # float copies stay small
        resized = F.interpolate(some.float(), size=(size, size), mode="bilinear", antialias=True)
        target.copy_(resized.round_().clamp_(0, 255))
    return fitted


def shares_of(pixels: Tensor) -> Tensor:
    """Pixels of 0..255 as shares, 0..1; features, which are no whole numbers, as they are."""
    return pixels if pixels.is_floating_point() else pixels.float().div_(255)
