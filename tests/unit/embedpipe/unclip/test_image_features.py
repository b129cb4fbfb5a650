"""What scores samples by Inception: torchvision's network, with a state dict as torchvision publishes it."""

import pytest
import torch
from torchvision.models import inception_v3
from torchvision.transforms.functional import normalize

from dalle2_core.training.fid_kid import frechet_distance, kernel_distance
from embedpipe.errors import ModelError
from embedpipe.unclip.evaluate.image_features import open_features


@pytest.fixture(scope="module")
def network():
    """Inception with weights of its own making, and without dropout."""
    torch.manual_seed(0)
    return inception_v3(weights=None, init_weights=False, transform_input=True).eval()


@pytest.fixture(scope="module")
def weights(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "inception_v3.pth"
    torch.save(network.state_dict(), path)
    return path


def pictures(rows, seed=0):
    """Images [n, 3, 299, 299] in [0, 1], the size that Inception takes, each of another colour and coarseness."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(rows, 3, 5, 5, generator=draw) * torch.rand(rows, 3, 1, 1, generator=draw)
    return torch.nn.functional.interpolate(coarse, (299, 299), mode="nearest")


def test_features_are_what_goes_into_the_last_layer(network, weights):
    seen = []
    handle = network.fc.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with torch.no_grad():
        network(normalize(pictures(2), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    handle.remove()
    features = open_features(f"inception:{weights}", None, "cpu")
    found = features.of(pictures(2))
    assert (features.name, features.same_space) == ("inception", False)
    assert (found.shape, found.dtype) == ((2, 2048), torch.float32)
    torch.testing.assert_close(found, seen[0], rtol=1e-3, atol=1e-5)
    assert features.of(torch.rand(1, 3, 64, 64)).shape == (1, 2048), "images of any size are brought to it"


@pytest.mark.slow
def test_distances_of_a_set_to_itself_are_next_to_none(weights):
    of = open_features(f"inception:{weights}", None, "cpu").of
    some, others = of(pictures(8)), of(pictures(8, seed=1) ** 3)
    # Random weights make small features; of a size at which the kernel tells them apart, as trained ones are.
    some, others = some / some.std(), others / some.std()
    far = frechet_distance(some, others)
    assert far > 0
    assert frechet_distance(some, some) < 1e-3 * far
    # Unbiased: of a set and itself it is below 0 by what the pairs of equal rows weigh, not at it.
    apart = kernel_distance(some, others)
    assert kernel_distance(some, some) <= 0 < apart
    halves = kernel_distance(some[:4], some[4:])
    assert abs(halves) < apart


def test_another_file_is_one_clear_line(weights, tmp_path):
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "linear.pth")
    (tmp_path / "text.pth").write_text("no weights")
    for name, said in (
        ("linear.pth", "(RuntimeError)"),
        ("text.pth", "is damaged, or a pickle of something else"),
        ("gone.pth", "no such file"),
    ):
        with pytest.raises(ModelError) as caught:
            open_features(f"inception:{tmp_path / name}", None, "cpu")
        message = str(caught.value)
        assert said in message
        assert name in message
        assert "torchvision" in message
        assert "\n" not in message
