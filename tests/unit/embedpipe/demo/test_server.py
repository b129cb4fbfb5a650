import http.client
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import pytest

from embedpipe.demo.server import serving
from embedpipe.errors import InputError


@pytest.fixture
def base_url(tmp_path):
    (tmp_path / "secret.txt").write_text("outside")
    root = tmp_path / "root"
    (root / "flat").mkdir(parents=True)
    (root / "flat" / "a b.png").write_bytes(b"picture")
    (root / "way-out.txt").symlink_to(tmp_path / "secret.txt")
    with serving(root) as url:
        yield url


def status_of(base_url, path):
    # http.client sends the path as it is; urllib would tidy it up first.
    connection = http.client.HTTPConnection(urlsplit(base_url).netloc, timeout=100)
    connection.request("GET", path)
    return connection.getresponse().status


def test_files_are_served_with_type_and_length(base_url, capfd):
    with urllib.request.urlopen(f"{base_url}/flat/a%20b.png?again=1") as answer:
        assert answer.read() == b"picture"
        assert answer.headers["Content-Type"] == "image/png"
        assert answer.headers["Content-Length"] == "7"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "path",
    ["/", "/flat", "/missing.png", "/../secret.txt", "/flat/../../secret.txt", "/%2e%2e/secret.txt",
     "/..%2fsecret.txt", "/way-out.txt", "//etc/hostname", "/%00"],
)  # fmt: skip
def test_nothing_but_its_own_files(base_url, path):
    assert status_of(base_url, path) == 404


def test_only_loopback_and_closed_afterwards(tmp_path):
    with serving(tmp_path) as url:
        assert url.startswith("http://127.0.0.1:")
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url, timeout=2)


def test_a_missing_folder_is_said(tmp_path):
    with pytest.raises(InputError, match="no such folder"), serving(tmp_path / "nowhere"):
        pass
