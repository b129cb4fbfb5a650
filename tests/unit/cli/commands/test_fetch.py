"""fetch says what failed and what to do about it, and ends with 3 where nothing came."""

import pytest

from tests import web


@pytest.fixture(scope="module")
def site():
    with web.serving() as running:
        yield running


@pytest.fixture
def fetch(embedpipe, tmp_path):
    def run(urls, *words, out="out"):
        table = tmp_path / "urls.txt"
        table.write_text("".join(f"{url}\n" for url in urls))
        return embedpipe("fetch", table, tmp_path / out, "--retries", 0, "--processes", 1, *words)

    return run


def test_a_host_that_was_not_allowed_is_named_with_the_option_and_the_way_on(fetch, site):
    urls = [site.url(f"/png/{i}") for i in range(3)]
    for first in (True, False):
        refused = fetch(urls)
        assert refused.exit_code == 3
        assert "none of 3 images was fetched: 3 rejected as refused_address" in refused.stderr
        assert "see --allow-host, and add --retry-failed --only refused_address" in refused.stdout
        assert "nothing to do" not in refused.stdout
        assert ("every row was tried before" in refused.stdout) is not first
    done = fetch(urls, "--allow-host", "127.0.0.1", "--retry-failed", "--only", "refused_address")
    assert (done.exit_code, done.stderr.count("error")) == (0, 0), done.stderr
    assert "3 of 3 images" in done.stdout
    assert "--retry-failed" not in done.stdout


def test_only_what_may_pass_is_suggested_for_another_time(fetch, site):
    some = fetch([site.url(f"/{it}") for it in ("png/0", "status/503", "status/404")], "--allow-host", "127.0.0.1")
    assert some.exit_code == 0
    assert "1 row may succeed another time: run the same command with --retry-failed --only http_5xx\n" in some.stdout
    gone = fetch([site.url("/png/0"), site.url("/status/404")], "--allow-host", "127.0.0.1", out="gone")
    assert "--retry-failed" not in gone.stdout


def test_a_json_report_of_nothing_is_whole_and_ends_with_3(fetch, site):
    refused = fetch([site.url("/png/0")], "--json")
    assert refused.exit_code == 3
    assert '"succeeded": 0' in refused.stdout
