import pytest
import torch

from tests.helpers.compare import assert_same


@pytest.mark.parametrize(
    ("actual", "text"),
    [
        (torch.zeros(3), "shape"),
        (torch.zeros(2, dtype=torch.float64), "dtype"),
        (torch.tensor([0.0, float("nan")]), "NaN"),
        (torch.tensor([0.0, 1e-3]), "largest difference"),
    ],
)
def test_assert_same_fails_on(actual, text):
    with pytest.raises(AssertionError, match=text):
        assert_same(actual, torch.zeros(2), atol=1e-4)


def test_assert_same_accepts_what_is_within_tolerance():
    assert_same(torch.tensor([0.0, 1e-5]), torch.zeros(2), atol=1e-4)
