import itertools

import pytest

from da.data.sampler import BLOCK, GlobalBatches, derive_seed, few_of, mixed_index, sample_index


def take(batches: GlobalBatches, count: int) -> list[list[int]]:
    return list(itertools.islice(batches, count))


def test_each_epoch_is_a_fresh_permutation() -> None:
    epochs = [[sample_index(7, "source", n, 20) for n in range(20 * e, 20 * e + 20)] for e in range(3)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != list(range(20))


def test_the_stream_is_a_pure_function_of_seed_and_name() -> None:
    def stream(seed: int, name: str) -> list[int]:
        return [sample_index(seed, name, n, 20) for n in range(40)]

    first = stream(1, "source")
    assert first != stream(2, "source")
    assert first != stream(1, "target")
    assert [sample_index(1, "source", n, 20) for n in reversed(range(40))] == first[::-1]


def test_derived_seeds_never_change() -> None:
    """A change would silently reorder every run that is to be repeated."""
    assert derive_seed(0, "source", "order", 0) == 3518667833359116477
    assert derive_seed(1, "source", "order", 0) != derive_seed(0, "source", "order", 0)


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (1, 4), (2, 2), (4, 1)])
def test_shares_put_together_are_the_global_batch(world: int, accumulate: int) -> None:
    whole = take(GlobalBatches(8), 3)
    shares = [take(GlobalBatches(8, 0, rank, world, accumulate), 3 * accumulate) for rank in range(world)]
    for step in range(3):
        micro = [share[step * accumulate + number] for number in range(accumulate) for share in shares]
        assert list(itertools.chain(*micro)) == whole[step]
        assert {len(b) for b in micro} == {8 // (world * accumulate)}


def test_start_step_continues_the_stream() -> None:
    assert take(GlobalBatches(6, 5, 1, 3, 2), 4) == take(GlobalBatches(6, 0, 1, 3, 2), 14)[10:]


def test_a_mixed_stream_has_its_shares_exactly_and_uses_each_entry_in_order() -> None:
    weights = (3.0, 1.0, 0.5)
    found = [mixed_index(5, "source", n, weights) for n in range(3 * BLOCK)]
    counts = [sum(entry == e for entry, _ in found) for e in range(3)]
    assert counts == [3 * 667, 3 * 222, 3 * 111]
    for e in range(3):
        assert [place for entry, place in found if entry == e] == list(range(counts[e]))
    assert mixed_index(5, "source", 2 * BLOCK + 17, weights) == found[2 * BLOCK + 17]
    assert found[:BLOCK] != found[BLOCK : 2 * BLOCK]
    assert [mixed_index(6, "source", n, weights) for n in range(BLOCK)] != found[:BLOCK]


def test_few_are_the_first_of_a_draw() -> None:
    assert few_of(60, 60, 0) == list(range(60))
    assert set(few_of(60, 5, 1)) < set(few_of(60, 20, 1))
    assert few_of(60, 5, 1) != few_of(60, 5, 2)
