"""Past images and past values."""

import pytest
import torch

from da.config import UserError
from da.engine.history import ImagePool, RunningMean


def images(first: int, count: int = 1) -> torch.Tensor:
    """`count` tiny images whose pixels all hold their number."""
    return torch.arange(first, first + count, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)


def numbers(shown: torch.Tensor) -> list[int]:
    return shown[:, 0, 0, 0].int().tolist()


def test_pool_fills_then_shows_old_and_new():
    pool = ImagePool(4, seed=0)
    assert numbers(pool.exchange(images(0, 4))) == [0, 1, 2, 3]
    shown = [numbers(pool.exchange(images(n)))[0] for n in range(4, 104)]
    old = [s for n, s in zip(range(4, 104), shown) if s != n]
    assert all(s < n for n, s in zip(range(4, 104), shown) if s != n)
    assert 30 < len(old) < 70  # one half, 100 draws
    assert len(set(old)) == len(old)  # exchanged images leave the pool


def test_pool_gives_detached_images_and_keeps_its_own_copies():
    pool = ImagePool(2, seed=0)
    image = images(1, 2).clone().requires_grad_()
    shown = pool.exchange(2 * image)
    assert not shown.requires_grad
    shown.zero_()
    assert [int(i[0, 0, 0]) for i in pool.images] == [2, 4]


def test_pool_resumes():
    first, second = ImagePool(3, seed=5), ImagePool(3, seed=0)
    for n in range(10):
        first.exchange(images(n))
    second.load_state_dict(first.state_dict())
    for n in range(10, 40):
        assert numbers(first.exchange(images(n))) == numbers(second.exchange(images(n)))


def test_pool_of_none_gives_back_what_it_gets_and_refuses_other_sizes():
    assert numbers(ImagePool(0, seed=0).exchange(images(7, 2))) == [7, 8]
    pool = ImagePool(2, seed=0)
    pool.exchange(images(0))
    with pytest.raises(UserError, match=r"data\.source\.crop"):
        pool.exchange(torch.zeros(1, 3, 4, 4))


def test_running_mean_forgets_and_resumes():
    mean = RunningMean(3)
    assert [float(mean.add(torch.tensor(v), t)) for t, v in enumerate((1.0, 3.0, 5.0, 7.0))] == [0.0, 1.0, 2.0, 3.0]
    again = RunningMean(3)
    again.load_state_dict(mean.state_dict())
    assert float(again.add(torch.tensor(0.0), 4)) == 5.0


def test_micro_batches_of_one_update_see_one_mean():
    mean = RunningMean(2, accumulate=2)
    shown = [float(mean.add(torch.tensor(float(v)), v // 2)) for v in range(8)]
    assert shown == [0.0, 0.0, 0.5, 0.5, 1.5, 1.5, 3.5, 3.5]
