"""Joining a Ray cluster that is not there, or not in this way."""

import pytest

from embedpipe.errors import InputError
from embedpipe.execute.ray_cluster import Cluster, joined_cluster


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:port"])
def test_an_address_where_nobody_listens_is_told_at_once(address):
    pytest.importorskip("ray")
    with (
        pytest.raises(
            InputError, match=f"{address}: no Ray cluster there that can be joined: .*Start its head node .see `ray st"
        ),
        joined_cluster(Cluster(address), 1),
    ):
        pass


def test_rays_client_protocol_is_refused():
    pytest.importorskip("ray")
    with (
        pytest.raises(InputError, match="ray://head:10001: Ray's client protocol is not spoken"),
        joined_cluster(Cluster("ray://head:10001"), 1),
    ):
        pass
