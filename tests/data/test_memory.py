from __future__ import annotations

import torch

from mim3d.data.memory import KEPT, Pool

SHAPE = (2, 1, 11, 13, 7)


def test_memory_comes_again_only_when_the_last_view_of_it_is_gone():
    pool = Pool()
    first = pool.take(SHAPE)
    place, part = first.data_ptr(), first[1, 0, 3:].transpose(0, 2)

    del first
    second = pool.take(SHAPE)
    assert second.data_ptr() != place
    second.fill_(7)
    part.fill_(1)
    assert (second == 7).all()

    del part
    assert pool.take(SHAPE).data_ptr() == place


def test_a_batch_that_an_autograd_graph_keeps_is_not_written_over():
    pool = Pool()
    batch = pool.take(SHAPE).fill_(2.0)
    weight = torch.ones((), requires_grad=True)
    loss = (batch * weight).sum()

    del batch
    pool.take(SHAPE).fill_(-1.0)
    loss.backward()

    assert weight.grad == 2 * torch.Size(SHAPE).numel()


def test_memory_of_another_size_is_not_kept_and_neither_is_much_of_one():
    pool = Pool()
    many = [pool.take(SHAPE) for _ in range(3 * KEPT)]
    del many

    assert len(pool._waiting) == KEPT
    pool.take((3,))
    assert len(pool._waiting) <= 1
    assert pool.take((3,)).shape == (3,)
