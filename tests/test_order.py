"""The order of pictures: each picture once in an epoch, from any batch on, and the same for any number of processes."""

import numpy as np
import pytest

from resnetkit.data.order import Order
from resnetkit.errors import DataError, UsageError

FIRST = [10, 19, 16, 4, 2, 12, 6, 20, 3, 11, 8, 0, 18, 13, 7, 21, 5, 17, 14, 9, 1, 15]


def plain(batches):
    return [(b.number, list(b.positions), b.indices.tolist(), b.mirrored.tolist()) for b in batches]


def test_the_first_epoch_is_golden():
    (batch,) = Order(22, batch_size=22, shuffle=True).batches()
    assert batch.indices.tolist() == FIRST
    assert batch.indices.dtype == np.int64
    batches = list(Order(22, batch_size=5, shuffle=True).batches())
    assert [batch.indices.tolist() for batch in batches] == [FIRST[i : i + 5] for i in range(0, 22, 5)]
    assert [batch.positions for batch in batches] == [range(i, min(i + 5, 22)) for i in range(0, 22, 5)]
    assert [batch.number for batch in batches] == [0, 1, 2, 3, 4]


def test_the_random_streams_are_golden():
    order = Order(9, batch_size=4, seed=7)
    assert order.batch_rng(1, 2).integers(0, 1000, 3).tolist() == [796, 956, 30]
    assert order.picture_rng(1, 2).integers(0, 1000, 3).tolist() == [238, 946, 429]
    expected = np.random.Generator(np.random.PCG64(np.random.SeedSequence([7, 1, 2, 5])))
    assert order.picture_rng(1, 5).random() == expected.random()
    (batch,) = Order(12, batch_size=12, seed=7, alternate_flip=True).batches()
    assert batch.mirrored.astype(int).tolist() == [0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("alternate_flip", [False, True])
def test_an_epoch_begins_at_any_batch(shuffle, alternate_flip):
    order = Order(23, batch_size=4, shuffle=shuffle, seed=3, alternate_flip=alternate_flip)
    for epoch in range(3):
        whole = plain(order.batches(epoch))
        assert sorted(index for _, _, indices, _ in whole for index in indices) == list(range(23))
        for first in range(len(order) + 1):
            assert plain(order.batches(epoch, first)) == whole[first:]


def test_seed_and_epoch_decide_the_order():
    orders = {
        tuple(next(Order(22, batch_size=22, shuffle=True, seed=seed).batches(epoch)).indices.tolist())
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9
    assert next(Order(22, batch_size=22, seed=4).batches(5)).indices.tolist() == list(range(22))


@pytest.mark.parametrize(
    ("pictures", "drop_last", "sizes"),
    [(10, True, [5, 5]), (11, True, [5, 5]), (11, False, [5, 5, 1]), (4, False, [4]), (5, True, [5])],
)
def test_the_last_batch(pictures, drop_last, sizes):
    order = Order(pictures, batch_size=5, drop_last=drop_last)
    assert len(order) == len(sizes)
    assert [len(batch.indices) for batch in order.batches()] == sizes
    assert [len(batch.positions) for batch in order.batches()] == sizes


def test_alternating_flips_follow_the_picture_through_the_shuffles():
    order = Order(22, batch_size=5, shuffle=True, seed=3, alternate_flip=True)

    def mirrored(epoch):
        return {int(i): bool(m) for b in order.batches(epoch) for i, m in zip(b.indices, b.mirrored, strict=True)}

    assert 4 < sum(mirrored(0).values()) < 18
    assert mirrored(1) == {index: not turned for index, turned in mirrored(0).items()}
    assert mirrored(2) == mirrored(0)


@pytest.mark.parametrize("pictures", [1, 7, 22, 24])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("drop_last", [False, True])
def test_the_shares_of_all_ranks_are_the_batch(pictures, world_size, drop_last):
    order = Order(pictures, batch_size=min(pictures, 6), shuffle=True, seed=1, alternate_flip=True, drop_last=drop_last)
    seen = []
    for batch in order.batches(2):
        shares = [batch.share(rank, world_size) for rank in range(world_size)]
        sizes = [len(share.indices) for share in shares]
        assert max(sizes) - min(sizes) <= 1
        assert {share.number for share in shares} == {batch.number}
        # Position, index and mirroring of a picture stay together, so its random numbers are those of one process.
        together = sorted(
            picture
            for share in shares
            for picture in zip(share.positions, share.indices.tolist(), share.mirrored.tolist(), strict=True)
        )
        assert together == list(zip(batch.positions, batch.indices.tolist(), batch.mirrored.tolist(), strict=True))
        seen += [index for share in shares for index in share.indices.tolist()]
    assert len(set(seen)) == len(seen) == (pictures - pictures % order.batch_size if drop_last else pictures)


@pytest.mark.parametrize(("rank", "world_size"), [(-1, 2), (2, 2), (0, 0)])
def test_a_rank_that_does_not_exist_is_refused(rank, world_size):
    (batch,) = Order(4, batch_size=4).batches()
    with pytest.raises(
        UsageError, match=f"`rank` is {rank} and `world_size` {world_size}; ranks go from 0 to world_size - 1"
    ):
        batch.share(rank, world_size)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "`batch_size` is 0; it must be at least 1"),
        ({"seed": -1}, "`seed` is -1; it must be at least 0"),
        ({"batch_size": 23, "drop_last": True}, "22 pictures don't fill a batch of 23; lower `batch_size`"),
    ],
)
def test_impossible_orders_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        Order(22, **{"batch_size": 4, **changes})
    with pytest.raises(DataError, match="there are no pictures to load"):
        Order(0, batch_size=4)


def test_an_epoch_or_batch_that_does_not_exist_is_refused_at_once():
    with pytest.raises(UsageError, match="`first_batch` is 7; an epoch has 6 batches"):
        Order(22, batch_size=4).batches(0, 7)
    with pytest.raises(UsageError, match="`epoch` is -1; it must be at least 0"):
        Order(22, batch_size=4).batches(-1)


def test_balanced_epochs_have_each_class_equally_often_and_no_picture_twice_before_its_turn():
    labels = np.array([0] * 70 + [1] * 25 + [2] * 5)
    order = Order(100, batch_size=10, shuffle=True, seed=4, balanced=labels)
    epochs = [np.concatenate([batch.indices for batch in order.batches(epoch)]) for epoch in range(3)]
    for drawn in epochs:
        assert len(drawn) == 100
        assert sorted(np.bincount(labels[drawn]).tolist()) == [33, 33, 34]
        times = np.bincount(drawn, minlength=100)
        for label in range(3):
            assert np.ptp(times[labels == label]) <= 1
    assert (np.bincount(np.concatenate(epochs), minlength=100)[:70] > 0).sum() > 50, "others in each epoch"
    again = np.concatenate([batch.indices for batch in order.batches(1, first_batch=4)])
    assert np.array_equal(again, epochs[1][40:])
