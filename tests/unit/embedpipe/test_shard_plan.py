"""The plan only grows; no number ever moves."""

from hypothesis import given
from hypothesis import strategies as st

from embedpipe.shard_plan import grow_plan
from embedpipe.types import SourceShard

shards = st.dictionaries(st.text("abc", min_size=1, max_size=3), st.integers(0, 3), max_size=8).map(
    lambda sizes: [SourceShard(name, size, "m") for name, size in sizes.items()]
)


@given(shards, shards, shards)
def test_numbers_never_move(first, second, third):
    plan = grow_plan((), first).shards
    assert [s.name for s in plan] == [s.name for s in first]
    for found in (second, third):
        change = grow_plan(plan, found)
        assert change.shards[: len(plan)] == plan
        assert len({s.name for s in change.shards}) == len(change.shards)
        now = {s.name: s for s in found}
        assert change.added == len(change.shards) - len(plan)
        assert {plan[i].name for i in change.vanished} == {s.name for s in plan} - now.keys()
        assert set(change.changed) == {i for i, s in enumerate(plan) if s.name in now and now[s.name] != s}
        plan = change.shards


def test_a_shard_that_sorts_first_is_still_appended():
    a, b, c = (SourceShard(name, 1, "") for name in "abc")
    change = grow_plan((b, c), [a, b, c])
    assert change.shards == (b, c, a)
