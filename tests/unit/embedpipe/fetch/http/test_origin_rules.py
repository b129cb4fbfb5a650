"""What hosts say of the use of their files is asked for once and kept within bounds."""

import threading

from embedpipe.fetch.http.origin_rules import OriginRules, RulesCache
from embedpipe.fetch.http.robots import parse_robots
from embedpipe.fetch.http.tdmrep import parse_tdmrep

NOTHING = OriginRules()


def test_an_origin_is_asked_for_once_while_others_wait_and_others_are_not_held_up():
    asked, go_on = [], threading.Event()

    def fetch(origin):
        asked.append(origin)
        if origin[1] == "slow":
            go_on.wait(10)
        return NOTHING

    cache = RulesCache(fetch)
    slow, other = ("http", "slow", 80), ("http", "other", 80)
    threads = [threading.Thread(target=cache.rules, args=(slow,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert cache.rules(other) == NOTHING
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert sorted(asked) == [other, slow]


def test_the_cache_is_bounded_by_origins_and_by_size():
    cache = RulesCache(lambda origin: NOTHING)
    for i in range(3_000):
        cache.rules(("http", str(i), 80))
    assert len(cache.kept) == 2_000
    said = "User-agent: *\n" + "".join(f"Disallow: /{i}\n" for i in range(60_000))
    long = OriginRules(parse_robots(said, "embedpipe"))
    cache = RulesCache(lambda origin: long)
    for i in range(6):
        assert isinstance(cache.rules(("http", str(i), 80)), OriginRules)
    assert len(cache.kept) == 5_000_000 // long.size < 6


def test_robots_txt_and_tdmrep_each_forbid():
    rules = OriginRules(
        parse_robots("User-agent: *\nDisallow: /a", "embedpipe"),
        parse_tdmrep(b'[{"location": "/b", "tdm-reservation": 1, "tdm-policy": "https://x/p"}]'),
    )
    assert rules.refusal("h", "/c") is None
    assert rules.refusal("h", "/a").message == "forbidden by robots.txt of h"
    found = rules.refusal("h", "/b/1.jpg")
    assert (found.error_class, found.message) == (
        "opt_out",
        "data mining is reserved by tdmrep.json of h (policy: https://x/p)",
    )
