"""float32 that is float32, and settings that come back."""

import pytest
import torch

from resnetkit.precision import exact_float32


def settings() -> tuple[str, str]:
    return torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_within_and_after(precision: str) -> None:
    torch.set_float32_matmul_precision(precision)
    try:
        before = settings()
        with exact_float32():
            assert settings() == ("ieee", "ieee")
        assert settings() == before != ("ieee", "ieee")
        assert torch.get_float32_matmul_precision() == precision
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_convolution_on_a_gpu() -> None:
    torch.manual_seed(0)
    images, weight = torch.randn(8, 64, 32, 32, device="cuda"), torch.randn(64, 64, 3, 3, device="cuda")
    exact = torch.conv2d(images.double(), weight.double())
    with exact_float32():
        assert (torch.conv2d(images, weight) - exact).abs().max() < 1e-4 * exact.abs().max()
