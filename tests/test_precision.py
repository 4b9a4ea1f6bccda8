"""Exact float32, restored settings, and the processors that multiply bfloat16."""

import threading

import pytest
import torch

from resnetkit.precision import exact_float32, multiplies_bfloat16


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


def test_blocks_that_overlap_in_two_threads() -> None:
    """Of two blocks, the first ends first: the other still computes exactly, and then the settings are restored."""
    before = settings()
    begun, ended = threading.Event(), threading.Event()

    def first() -> None:
        with exact_float32():
            begun.set()
            assert second_begun.wait(60)
        ended.set()

    second_begun = threading.Event()
    thread = threading.Thread(target=first)
    thread.start()
    assert begun.wait(60)
    with exact_float32():
        second_begun.set()
        assert ended.wait(60)
        assert settings() == ("ieee", "ieee")
    thread.join()
    assert settings() == before != ("ieee", "ieee")


def test_settings_come_back_after_an_error() -> None:
    before = settings()
    with pytest.raises(ZeroDivisionError), exact_float32(), exact_float32():
        raise ZeroDivisionError
    assert settings() == before


@pytest.mark.parametrize(
    ("capabilities", "environ", "expected"),
    [
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, {}, False),
        ({"avx2": True, "avx512_bf16": True}, {}, True),
        ({"amx_bf16": True}, {"ONEDNN_MAX_CPU_ISA": "ALL"}, True),
        ({"avx512_bf16": True}, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, True),
        ({"avx512_bf16": True, "amx_bf16": True}, {"ONEDNN_MAX_CPU_ISA": "avx2"}, False),
        ({"avx512_bf16": True}, {"DNNL_MAX_CPU_ISA": "AVX512_CORE_VNNI"}, False),
        ({}, {}, False),
    ],
)
def test_which_processors_multiply_bfloat16(
    capabilities: dict[str, bool], environ: dict[str, str], expected: bool
) -> None:
    """Also if oneDNN is limited to instructions without bfloat16."""
    assert multiplies_bfloat16(capabilities, environ) is expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_convolution_on_a_gpu() -> None:
    torch.manual_seed(0)
    images, weight = torch.randn(8, 64, 32, 32, device="cuda"), torch.randn(64, 64, 3, 3, device="cuda")
    exact = torch.conv2d(images.double(), weight.double())
    with exact_float32():
        assert (torch.conv2d(images, weight) - exact).abs().max() < 1e-4 * exact.abs().max()
