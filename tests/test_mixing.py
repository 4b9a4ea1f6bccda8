"""Mixed batches: mixup and CutMix by their formulas, drawn the same again."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from resnetkit.data.loader import Loader
from resnetkit.data.transforms.mixing import Mix, Mixing
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.train.loss import ClassLoss, balanced_weights


@pytest.fixture
def images():
    return torch.rand(5, 3, 12, 12, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)


def test_mixes_equal_torchvisions(images):
    labels = torch.tensor([0, 1, 2, 0, 1])
    for oracle, mix in (
        (v2.MixUp(num_classes=3), Mix(0.7)),
        (v2.CutMix(num_classes=3), Mix(1 - 12 / 144, (2, 3, 6, 6))),
    ):
        params = {"labels": labels, "batch_size": 5, "lam": mix.share, "box": (2, 3, 6, 6), "lam_adjusted": mix.share}
        mixed = mix.images(images)
        torch.testing.assert_close(mixed, oracle.transform(images, params))
        assert mixed.is_contiguous(memory_format=torch.channels_last), "which the kernels need"
        targets = oracle.transform(labels, params)
        logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
        for smoothing in (0.0, 0.1):
            expected = torch.nn.functional.cross_entropy(logits, targets, label_smoothing=smoothing)
            torch.testing.assert_close(ClassLoss(smoothing)(logits, labels, mix), expected)


def test_shares_have_the_beta_distribution_and_boxes_their_share():
    rng = np.random.default_rng(0)
    shares = np.array([Mixing(mixup=0.5).draw(32, rng).share for _ in range(3000)])
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(0.25 / 2, abs=0.01)  # of Beta(a, a): 1 / (4 (2 a + 1))
    for _ in range(500):
        mix = Mixing(cutmix=1.0).draw(32, rng)
        left, top, right, bottom = mix.box
        assert 0 <= left <= right <= 32
        assert 0 <= top <= bottom <= 32
        assert mix.share == 1 - (right - left) * (bottom - top) / 32**2
    kinds = [Mixing(mixup=1.0, cutmix=1.0).draw(32, rng).box is None for _ in range(400)]
    assert np.mean(kinds) == pytest.approx(0.5, abs=0.1)
    assert Mixing().draw(32, rng) is None


def test_batches_are_mixed_the_same_from_any_place_in_an_epoch(cifar_subset):
    train, _ = cifar_subset
    loader = Loader(train, Preprocess(32), batch_size=64, mixing=Mixing(0.4, 1.0), shuffle=True, seed=3)
    whole = [batch.mix for batch in loader.epoch(2)]
    assert None not in whole
    assert len(set(whole)) == len(whole)
    assert [batch.mix for batch in loader.epoch(2, first_batch=3)] == whole[3:]
    assert [batch.mix for batch in loader.epoch(1)] != whole


def test_balanced_weights_give_classes_the_same_sum():
    labels = np.array([0] * 90 + [1] * 9 + [3] * 1)
    weights = balanced_weights(labels, 4)
    sums = np.bincount(labels, weights=weights.numpy()[labels], minlength=4)
    assert sums[[0, 1, 3]] == pytest.approx([100 / 3] * 3)
    assert weights[2] == 1
    assert weights.numpy()[labels].mean() == pytest.approx(1)
    logits, some = torch.randn(6, 4, generator=torch.Generator().manual_seed(2)), torch.tensor([0, 0, 1, 3, 0, 1])
    each = torch.nn.functional.cross_entropy(logits, some, reduction="none")
    torch.testing.assert_close(ClassLoss(weights=weights)(logits, some), (weights[some] * each).sum() / 6)
