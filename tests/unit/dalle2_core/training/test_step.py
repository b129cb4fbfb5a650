"""One optimizer step by hand: parts and processes add up to the whole batch, and gradients travel once."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from dalle2_core.errors import ConfigError, NonFiniteLoss
from dalle2_core.rng import normal
from dalle2_core.training import OptimConfig, Processes, TrainConfig
from dalle2_core.training.ema import make_ema
from dalle2_core.training.seeding import seeded_layers, step_draws
from dalle2_core.training.state import TrainState
from dalle2_core.training.step import LossPass, refuse_to_cut, take_step
from dalle2_core.types import StepLoss
from tests.rows import Rows

CPU = torch.device("cpu")
FREE = OptimConfig(max_grad_norm=None)
X = torch.tensor([1.0, -2.0, 0.5, 3.0, 1.5])


class Line(torch.nn.Module):
    """w·x, to become 0: the loss is the mean of w²x², its gradient 2w · the mean of x². Remembers its parts."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([3.0]))
        self.parts = []

    def forward(self, x):
        return self.weight * x

    def loss(self, batch, draws):
        autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu")
        self.parts.append((batch.x.tolist(), normal((len(batch),), draws, CPU).tolist(), torch.rand(()), autocast))
        return StepLoss(self(batch.x).square().mean(), {"x": float(batch.x.mean())})


def processes(rank=0, world=1):
    """One of the processes of a run, of which the others say nothing."""
    accelerator = SimpleNamespace(
        mixed_precision="no",
        gradient_accumulation_steps=1,
        num_processes=world,
        process_index=rank,
        device=CPU,
        no_sync=lambda module: module.no_sync(),
        reduce=lambda sums, how: sums,
    )
    return Processes(accelerator)


class Alone(LossPass):
    """A loss pass whose gradients go nowhere, as those of one process."""

    def no_sync(self):
        return torch.enable_grad()


def step(x=X, rate=0.5, optim=FREE, rank=0, world=1, model=None, wrap=Alone, ema=None, **config):
    """(state, loss) after one step of plain gradient descent, in which a weight changes by rate times gradient."""
    model = model or Line()
    config = TrainConfig(**{"batch_size": 5, **config})
    together = processes(rank, world)
    start, stop = together.share(config.batch_size)
    state = TrainState(model, torch.optim.SGD(model.parameters(), lr=100.0), ema and make_ema(model, ema))
    return state, take_step(state, wrap(model), Rows(x[start:stop]), rate, config, optim, together)


def gradient(state, rate=0.5):
    return (3.0 - state.model.weight.item()) / rate


WHOLE = 2 * 3.0 * float(X.square().mean())


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_parts_of_any_size_add_up_to_the_batch(parts):
    state, loss = step(accumulate=parts)
    assert gradient(state) == pytest.approx(WHOLE, rel=1e-5)
    assert loss == pytest.approx(9 * float(X.square().mean()), rel=1e-5)
    assert len(state.model.parts) == parts
    assert [x for part in state.model.parts for x in part[0]] == X.tolist()
    assert (state.step, state.samples) == (1, 5)
    means = state.tally.means()
    assert means.keys() == {"x", "loss", "grad_norm"}
    assert means["x"] == pytest.approx(float(X.mean()), rel=1e-5)
    assert means["loss"] == loss
    assert means["grad_norm"] == pytest.approx(WHOLE, rel=1e-5)
    assert state.tally.counts == {"x": 5, "loss": 5, "grad_norm": 5}


@pytest.mark.parametrize(("world", "parts"), [(2, 1), (2, 2), (3, 1), (5, 1)])
def test_the_mean_over_processes_is_that_over_the_batch_however_uneven_their_shares(world, parts):
    ranks = [step(rank=rank, world=world, accumulate=parts) for rank in range(world)]
    assert sum(gradient(state) for state, _ in ranks) / world == pytest.approx(WHOLE, rel=1e-5)
    assert sum(loss for _, loss in ranks) == pytest.approx(9 * float(X.square().mean()), rel=1e-5)


@pytest.mark.parametrize(("rank", "world", "parts"), [(0, 1, 1), (0, 1, 3), (1, 2, 1), (1, 2, 2)])
def test_rows_draw_what_they_draw_in_the_whole_batch(rank, world, parts):
    state, _ = step(rank=rank, world=world, accumulate=parts, seed=7)
    start, stop = processes(rank, world).share(5)
    whole = normal((5,), step_draws(7, 1, 0, 5, CPU), CPU).tolist()
    drawn = [number for part in state.model.parts for number in part[1]]
    assert drawn == whole[start:stop]
    first = start
    for x, _, dropout, _ in state.model.parts:
        with seeded_layers(7, 1, CPU, f"layers/{first}"):
            assert dropout == torch.rand(())
        first += len(x)


@pytest.mark.parametrize(("precision", "expected"), [("bfloat16", torch.bfloat16), ("float32", False)])
def test_the_precision_is_that_of_the_forward_pass(precision, expected):
    state, _ = step(precision=precision)
    assert state.model.parts[0][3] == expected
    assert state.model.weight.dtype == torch.float32


@pytest.fixture
def group():
    """This process as a group of its own."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_gradients_travel_once_a_step_with_the_last_part(group, parts):
    travelled = []

    def wrap(model):
        def counted(_, bucket):
            travelled.append((len(model.parts), float(bucket.buffer())))
            done = torch.futures.Future()
            done.set_result(bucket.buffer())
            return done

        parallel = DistributedDataParallel(LossPass(model))
        parallel.register_comm_hook(None, counted)
        return parallel

    state, _ = step(accumulate=parts, wrap=wrap)
    assert len(travelled) == 1
    assert travelled[0] == (parts, pytest.approx(WHOLE, rel=1e-5))
    assert gradient(state) == pytest.approx(WHOLE, rel=1e-5)


@pytest.mark.parametrize(("limit", "expected"), [(None, WHOLE), (1000.0, WHOLE), (2.0, 2.0)])
def test_gradients_are_cut_to_their_limit_and_told_as_they_were(limit, expected):
    state, _ = step(optim=OptimConfig(max_grad_norm=limit))
    assert gradient(state) == pytest.approx(expected, rel=1e-4)
    assert state.tally.means()["grad_norm"] == pytest.approx(WHOLE, rel=1e-5)


def test_a_second_step_begins_anew():
    state, _ = step()
    before = state.model.weight.item()
    take_step(state, Alone(state.model), Rows(X), 0.1, TrainConfig(batch_size=5), FREE, processes())
    expected = before - 0.1 * 2 * before * float(X.square().mean())
    assert state.model.weight.item() == pytest.approx(expected, rel=1e-4)
    assert (state.step, state.samples) == (2, 10)
    drawn = normal((5,), step_draws(0, 2, 0, 5, CPU), CPU).tolist()
    assert state.model.parts[1][1] == drawn


def test_the_average_follows_and_what_settles_is_told():
    class Settled(Line):
        def after_step(self, together):
            self.settled = together.world, self.weight.item()

    state, _ = step(model=Settled(), ema=0.9)
    assert state.ema.module.weight.item() == state.model.weight.item() != 3.0
    assert state.model.settled == (1, state.model.weight.item())


@pytest.mark.parametrize(
    ("bad", "parts", "says"),
    [
        (0, 5, "samples 1 to 1"),
        (3, 5, "samples 4 to 4"),
        (4, 2, "samples 3 to 5"),
        (1, 1, "samples 1 to 5"),
    ],
)
def test_a_loss_that_is_not_finite_is_named_by_its_rows_and_changes_nothing(bad, parts, says):
    x = X.clone()
    x[bad] = math.nan
    model = Line()
    with pytest.raises(NonFiniteLoss, match=rf"^step 1, {says}: the loss is nan; the last checkpoint is intact"):
        step(x, model=model, accumulate=parts)
    assert model.weight.item() == 3.0


def test_samples_are_counted_from_the_beginning_of_the_run():
    state, _ = step()
    x = X.clone()
    x[2] = math.inf
    config = TrainConfig(batch_size=5, accumulate=5)
    with pytest.raises(NonFiniteLoss, match="^step 2, samples 8 to 8: the loss is inf") as problem:
        take_step(state, Alone(state.model), Rows(x), 0.1, config, FREE, processes())
    assert problem.value.step == 2
    assert (state.step, state.samples) == (1, 5)


def test_a_gradient_that_is_not_finite_is_told_and_changes_nothing():
    class Root(Line):
        def loss(self, batch, draws):
            return StepLoss((self.weight - 3).abs().sqrt().sum())  # 0, and infinitely steep

    state, _ = step()
    state.model = Root()
    with pytest.raises(NonFiniteLoss, match="^step 2, samples 6 to 10: the gradient's norm is (nan|inf); "):
        take_step(state, Alone(state.model), Rows(X), 0.1, TrainConfig(batch_size=5), FREE, processes())
    assert state.model.weight.item() == 3.0
    assert state.step == 1


def test_a_share_of_another_size_is_refused():
    state, _ = step()
    for rank, rows, says in ((0, 3, "3 rows to process 0 of 2; 2 of"), (1, 2, "2 rows to process 1 of 2; 3 of")):
        with pytest.raises(ConfigError, match=f"the stream gave {says} train.batch_size 5 are its"):
            take_step(
                state, Alone(state.model), Rows(X[:rows]), 0.1, TrainConfig(batch_size=5), FREE, processes(rank, 2)
            )


def test_a_batch_can_be_cut_to_single_rows_and_no_further():
    for world, parts, rows in ((1, 5, 5), (2, 2, 4), (4, 1, 4)):
        refuse_to_cut(Line(), TrainConfig(batch_size=rows, accumulate=parts), processes(0, world))
        with pytest.raises(ConfigError, match=f"train.batch_size {rows - 1} is less than .* give at least {rows}"):
            refuse_to_cut(Line(), TrainConfig(batch_size=rows - 1, accumulate=parts), processes(0, world))


def test_a_loss_that_compares_rows_is_not_cut():
    model = Line()
    model.compares_rows = True
    refuse_to_cut(model, TrainConfig(batch_size=5), processes())
    for world, parts in ((1, 2), (2, 1)):
        with pytest.raises(ConfigError, match="the loss of a Line compares the rows"):
            refuse_to_cut(model, TrainConfig(batch_size=5, accumulate=parts), processes(0, world))
    model.compares_rows = False
    refuse_to_cut(model, TrainConfig(batch_size=5, accumulate=2), processes())
