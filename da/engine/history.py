"""What a method remembers from one update to the next: past images, past values. Equal on every process.

Each is filled from the whole global batch, so that several processes remember what one would, and a run may go on
with another number of them. `state_dict` and `load_state_dict` make it part of the checkpoint.
"""

from typing import Any

import torch
from torch import Tensor

from da.config import UserError
from da.engine import dist


class ImagePool:
    """Past translations, so that a discriminator does not forget them.

    Shrivastava et al., "Learning from Simulated and Unsupervised Images through Adversarial Training", CVPR 2017,
    section 2.3, as CycleGAN uses it: until the pool is full every image is stored and given back; then each is,
    with probability one half, exchanged for a random stored one.

    Args:
        capacity: images it holds; 0 gives every image back.
        seed: of its own draws.
    """

    def __init__(self, capacity: int, seed: int) -> None:
        self.capacity = capacity
        self.images: list[Tensor] = []  # each (3, H, W)
        self.random = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def exchange(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W), detached, to show to the discriminator instead of `images`.

        Raises:
            UserError: the size differs from the stored images' or another process's.
        """
        if not self.capacity:
            return images.detach()
        sizes = [self.images[0].shape] if self.images else dist.gather(images.shape[1:])  # stored: the same everywhere
        if any(size != images.shape[1:] for size in sizes):
            raise UserError("the images of a run differ in size; set data.source.crop and data.target.crop")
        everyone = dist.gather_batch(images.detach())
        shown = torch.stack([self._exchange_one(image) for image in everyone])
        first = dist.rank() * len(images)
        return shown[first : first + len(images)]

    def _exchange_one(self, image: Tensor) -> Tensor:
        if len(self.images) < self.capacity:
            self.images.append(image.clone())
            return image
        if torch.rand((), generator=self.random) < 0.5:
            return image
        chosen = int(torch.randint(self.capacity, (), generator=self.random))
        old, self.images[chosen] = self.images[chosen].to(image.device), image.clone()
        return old

    def state_dict(self) -> dict[str, Any]:
        return {"images": self.images, "random": self.random.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.images = list(state["images"])
        self.random.set_state(state["random"])


class RunningMean:
    """Mean of a scalar over the last updates; stays on the device.

    Each update is shown the mean of those before it: all its micro-batches and processes see the same.

    Args:
        length: of the mean, in updates.
        accumulate: values per update, one of each micro-batch.
    """

    def __init__(self, length: int, accumulate: int = 1) -> None:
        self.length = length * accumulate
        self.values = torch.zeros(0)
        self.update, self.mean = -1, torch.zeros(())

    def add(self, value: Tensor, update: int) -> Tensor:
        """Take in a 0-d value of update number `update`; returns the 0-d mean over the updates before, at first 0."""
        value = dist.mean_over_ranks(value.detach().float().clone())
        self.values = self.values.to(value.device)
        if update != self.update:
            self.update, self.mean = update, self.values.sum() / max(len(self.values), 1)
        self.values = torch.cat([self.values, value[None]])[-self.length :]
        return self.mean

    def state_dict(self) -> dict[str, Any]:
        return {"values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.values = state["values"]
