import pytest
import torch

from dalle2_core.errors import ConfigError
from dalle2_core.precision import PRODUCT_PRECISIONS, allowing_tf32, computing


@pytest.mark.parametrize("precision", PRODUCT_PRECISIONS)
def test_products_are_of_the_precision_inside_and_as_before_outside(precision):
    x = torch.randn(3, 3)
    with computing(precision, "cpu"):
        assert (x @ x).dtype == (torch.bfloat16 if precision == "bfloat16" else torch.float32)
        assert torch.backends.cuda.matmul.allow_tf32 == (precision == "tf32")
    assert computing(precision, "cpu")(torch.mm)(x, x).dtype == (torch.bfloat16 if precision[0] == "b" else x.dtype)
    assert not torch.backends.cuda.matmul.allow_tf32
    assert (x @ x).dtype == torch.float32


def test_what_a_caller_allows_stays_allowed():
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with allowing_tf32("float32"):
            assert torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False


def test_another_precision_is_refused():
    said = "no precision 'fp8'; known: float32, tf32, bfloat16"
    with pytest.raises(ConfigError, match=said), computing("fp8", "cpu"):
        pass
