"""The codebook against brute force and against the formulas of 1711.00937."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from dalle2_core.collectives import SingleProcess
from dalle2_core.networks.codebook import Codebook
from dalle2_core.rng import PerSampleRNG

DEVICE = torch.device("cpu")


def codebook(size=5, dim=3, **settings):
    torch.manual_seed(0)
    plain = {"decay": 0.8, "cosine": False, "kmeans_init": False, "revive_below": 0.0}
    return Codebook(size, dim, **{**plain, **settings})


def latents(rows=4, dim=3, side=3, seed=1):
    return torch.randn(rows, dim, side, side, generator=torch.Generator().manual_seed(seed))


def draws(rows=4, start=0, step=0):
    return PerSampleRNG(step, start, rows, DEVICE)


def flat(z):
    return z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])


@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 60), st.booleans(), st.integers(0, 1000))
def test_the_nearest_code_is_that_of_brute_force(size, dim, count, cosine, seed):
    draw = torch.Generator().manual_seed(seed)
    book = codebook(size, dim, cosine=cosine)
    vectors = torch.randn(count, dim, generator=draw)
    if cosine:
        vectors = F.normalize(vectors, dim=-1)
    distances = torch.tensor([[float((v - c).square().sum()) for c in book.codes.double()] for v in vectors.double()])
    chosen = distances.gather(1, book.nearest(vectors)[:, None])[:, 0]
    torch.testing.assert_close(chosen, distances.min(dim=1).values, atol=1e-5, rtol=1e-5)


def test_many_vectors_are_compared_in_pieces(monkeypatch):
    book, vectors = codebook(), flat(latents(8))
    whole = book.nearest(vectors)
    monkeypatch.setattr("dalle2_core.networks.codebook._DISTANCES_AT_ONCE", 12)
    assert torch.equal(book.nearest(vectors), whole)


def test_codes_are_looked_up_and_gradients_pass_straight_through():
    book, z = codebook().eval(), latents().requires_grad_()
    found = book(z)
    expected = book.codes[book.nearest(flat(z.detach()))].view(4, 3, 3, 3).permute(0, 3, 1, 2)
    torch.testing.assert_close(found.vectors, expected)
    assert torch.equal(book.vectors(found.codes), expected)
    slope = torch.randn_like(z)
    (found.vectors * slope).sum().backward()
    torch.testing.assert_close(z.grad, slope)
    z.grad = None
    found.commitment.backward()
    torch.testing.assert_close(z.grad, 2 * (z - expected).detach() / z.numel())


def test_the_codes_follow_by_the_formulas_of_the_paper():
    book = codebook(decay=0.8)
    counts, sums, codes = torch.ones(5), book.codes.clone(), book.codes.clone()
    for step in range(3):
        z = latents(seed=step)
        vectors = flat(z)
        nearest = (vectors[:, None] - codes[None]).square().sum(dim=-1).argmin(dim=1)
        for code in range(5):
            mine = vectors[nearest == code]
            counts[code] = 0.8 * counts[code] + 0.2 * len(mine)
            sums[code] = 0.8 * sums[code] + 0.2 * mine.sum(dim=0)
            codes[code] = sums[code] / counts[code]
        book(z, draws(step=step))
        book.after_step(SingleProcess())
        torch.testing.assert_close(book.codes, codes, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(book.counts, counts)


def test_codes_that_are_compared_by_direction_keep_norm_1():
    book, z = codebook(cosine=True), F.normalize(latents(), dim=1)
    for step in range(3):
        book(z, draws(step=step))
        book.after_step(SingleProcess())
    torch.testing.assert_close(book.codes.norm(dim=1), torch.ones(5))


class Two:
    """Two processes as one of them sees them: the other's numbers are given."""

    def __init__(self, totals, others):
        self.totals, self.others = list(totals), list(others)

    def total(self, tensor):
        return tensor + self.totals.pop(0)

    def gather(self, value):
        return [value, self.others.pop(0)]


@pytest.mark.parametrize("kmeans_init", [False, True])
def test_a_batch_in_parts_and_over_processes_moves_the_codes_as_a_whole_one(kmeans_init):
    whole, parts, first, second = (codebook(kmeans_init=kmeans_init, revive_below=0.9) for _ in range(4))
    for step in range(3):
        z = latents(6, seed=step)
        whole(z, draws(6, step=step))
        for start, stop in ((0, 2), (2, 6)):
            parts(z[start:stop], draws(stop - start, start, step))
        first(z[:2], draws(2, 0, step))
        second(z[2:], draws(4, 2, step))
        theirs = second._seen
        first.after_step(Two([theirs.counts, theirs.sums], [torch.cat(theirs.some).numpy()] * 2))
        whole.after_step(SingleProcess())
        parts.after_step(SingleProcess())
        second._seen = None
        second.load_state_dict(first.state_dict())
        for other in (parts, first):
            for name, tensor in whole.state_dict().items():
                torch.testing.assert_close(other.state_dict()[name], tensor, atol=1e-5, rtol=1e-4)


def test_what_lies_in_clusters_is_found_by_the_first_batch():
    centres = torch.tensor([[5.0, 0, 0], [0, 5, 0], [0, 0, 5], [-5, 0, 0], [0, -5, 0]])
    which = torch.arange(5).repeat(8)[:36].view(4, 3, 3)
    z = centres[which].permute(0, 3, 1, 2) + 0.1 * latents()
    book = codebook(kmeans_init=True, revive_below=0.5)
    assert torch.equal(book(z, draws()).vectors, z)  # the first batch passes as it is
    book.after_step(SingleProcess())
    for step in range(1, 30):
        found = book(z, draws(step=step))
        book.after_step(SingleProcess())
    nearest = torch.cdist(centres, book.codes).min(dim=1)
    assert len(set(nearest.indices.tolist())) == 5
    assert float(nearest.values.max()) < 0.2
    assert float(found.commitment) < 0.02


def test_a_code_that_nothing_is_near_to_dies_and_is_begun_again():
    stays, dies = codebook(), codebook(revive_below=0.2)
    for book in (stays, dies):
        book.codes[2] = 1000.0
        for step in range(12):
            book(latents(seed=step), draws(step=step))
            book.after_step(SingleProcess())
    assert torch.equal(stays.codes[2], torch.full((3,), 1000.0))
    assert float(dies.codes[2].abs().max()) < 10


def test_more_codes_than_vectors_still_begin():
    book = codebook(size=50, kmeans_init=True)
    book(latents(1), draws(1))
    book.after_step(SingleProcess())
    assert bool(torch.isfinite(book.codes).all())
    assert bool(book.begun)


def test_nothing_moves_in_evaluation_or_without_gradients():
    book = codebook()
    before = book.codes.clone()
    book.eval()(latents())
    with torch.no_grad():
        book.train()(latents(), draws())
    book.after_step(SingleProcess())
    assert torch.equal(book.codes, before)
