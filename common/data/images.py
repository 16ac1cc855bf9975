"""The images of a table as uint8, wherever they lie while they are used.

A pixel table becomes one tensor on the device: 42,000 digits are 33 MB, so a batch is an index into it. Photos are
decoded once into a file that all folds and processes map into memory (common/data/cache.py), or, where they do not
fit, again for each batch by threads that work ahead (common/data/decoding.py). :func:`pixels_of` reads batches from any
of them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from common.base.errors import UserError
from common.data.cache import Cache, keep
from common.data.decoding import Decoder, Preparation, check_photos
from common.data.tables import Table

PAD_UP_TO = 1.25  # a size at most this much above the images' own is reached by a black border
PHOTO_SIDE = 224  # of photos, whose sizes vary, unless the model says otherwise

Images = Tensor | Decoder


def image_shape(table: Table) -> tuple[int, int]:
    """(channels, side) of the images as they are; (3, 224) for photos, whose sizes vary."""
    return (3, PHOTO_SIDE) if table.of_photos else (1, table.images.shape[1])


def load_images(table: Table, channels: int, img_size: int) -> Tensor:
    """All images of a pixel table as uint8 (n, channels, img_size, img_size).

    Grey becomes colour by repeating its channel (a view: no memory). A table is padded when the new size is at most a
    quarter larger, else resized (bilinear).
    """
    return _fit(torch.from_numpy(table.images)[:, None], img_size).expand(-1, channels, -1, -1)


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
    if not table.of_photos:
        return load_images(table, prepare.channels, prepare.side).to(device)
    decoder = Decoder(table, prepare, row_shas, workers)
    try:
        kept = keep(decoder, cache, say)
    except UserError:
        check_photos(table, workers, as_written=True)  # one broken file seldom comes alone
        raise
    return decoder if kept is None else torch.from_numpy(kept)


def pixels_of(images: Images, row_batches: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
    """The pixels of batches of rows, in their order: uint8 (m, channels, side, side) on ``device``."""
    if isinstance(images, Decoder):
        for pixels in images.batches(rows.tolist() for rows in row_batches):
            yield torch.from_numpy(pixels).to(device)
    else:
        for rows in row_batches:
            yield images[rows.to(images.device)].to(device)


def conversion(table: Table, prepare: Preparation) -> str:
    """What is done to the images before a model sees them, in words; empty where they stay as they are."""
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
