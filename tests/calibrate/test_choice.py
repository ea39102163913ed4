"""The choice of codes and scales, against enumerations and against what it must improve on."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from sherry_gguf.calibrate import feedback, scales
from sherry_gguf.calibrate.hessian import Hessian, damped, upper_factor
from sherry_gguf.calibrate.refit import refit
from sherry_gguf.formats.groups import PATTERNS
from sherry_gguf.formats.sherry_2p import SHERRY_2P

ALL = torch.from_numpy(PATTERNS.copy()).double()


def inputs(tokens: int, k: int) -> Hessian:
    """Statistics of channels that depend on each other and differ in size."""
    torch.manual_seed(2)
    mixed = torch.randn(tokens, k) @ (torch.eye(k) + 0.5 * torch.randn(k, k) / k**0.5)
    hessian = Hessian(k, torch.device("cpu"))
    hessian.add(mixed * torch.rand(k).add(0.1))
    return hessian


def loss(weights: torch.Tensor, planes: feedback.Planes, hessian: Hessian) -> float:
    change = (planes.weights() - weights).double()
    return float(((change @ hessian.sum.double()) * change).sum())


def rounding(k: int) -> torch.Tensor:
    """The factor under which no column can make good what another loses."""
    return torch.eye(k, dtype=torch.float64)


@pytest.mark.parametrize("planes", [1, 2])
def test_a_group_gets_the_sum_of_least_cost(planes):
    torch.manual_seed(1)
    inverse = torch.randn(4, 4, dtype=torch.float64).triu() + torch.eye(4)
    metric = inverse @ inverse.T
    weights, pair = torch.randn(10, 4), torch.rand(2, 10).sort(dim=0, descending=True).values[:planes]
    codes = feedback._choose(weights, pair, metric.float(), feedback._sums(metric, planes).float())
    for row in range(10):

        def cost(*chosen, row=row):
            error = weights[row].double() - sum(pair[i, row].double() * ALL[code] for i, code in enumerate(chosen))
            return float((error @ inverse).square().sum())

        least = min(cost(*chosen) for chosen in itertools.product(range(32), repeat=planes))
        assert cost(*codes[:, row].tolist()) == pytest.approx(least, rel=1e-4, abs=1e-5)


def test_the_factor_is_that_of_the_damped_inverse():
    hessian = inputs(300, 128)
    hessian.sum[5], hessian.sum[:, 5] = 0, 0
    assert hessian.dead == [5]
    upper = upper_factor(damped(hessian.sum))
    expected = hessian.sum.double() + 0.01 * hessian.sum.diagonal().double().mean() * torch.eye(128)
    expected[5, 5] = 1
    assert torch.equal(upper, upper.triu())
    assert torch.allclose(upper.T @ upper @ expected, torch.eye(128, dtype=torch.float64), atol=1e-8)


def singular(why: str) -> Hessian:
    """Statistics of 256 channels that have no inverse before they are damped."""
    if why == "fewer tokens than channels":
        return inputs(40, 256)
    torch.manual_seed(8)
    hessian, seen = Hessian(256, torch.device("cpu")), torch.randn(600, 256)
    seen[:, 17], seen[:, 200] = seen[:, 3], -4 * seen[:, 140]
    if why == "multiples, and one that is dead":
        seen[:, 90] = 0
    hessian.add(seen)
    return hessian


@pytest.mark.parametrize("why", ["fewer tokens than channels", "multiples", "multiples, and one that is dead"])
def test_statistics_that_are_singular(why):
    """They are damped like all others: there is a factor, and with it less is lost than by rounding."""
    hessian, weights = singular(why), torch.randn(64, 256) * 0.02
    assert torch.linalg.matrix_rank(hessian.sum.double(), rtol=1e-6) < 255
    assert hessian.repeated == ([(17, 3), (200, 140)] if "multiples" in why else [])
    assert hessian.dead == ([90] if "dead" in why else [])
    statistics = damped(hessian.sum)
    upper = upper_factor(statistics)
    assert torch.allclose(upper.T @ upper @ statistics, torch.eye(256, dtype=torch.float64), atol=1e-7)
    fed_back = refit(feedback.quantize(weights, upper, 2), weights, statistics)
    fed_back.require_fit()
    rounded = feedback.quantize(weights, rounding(256), 2)
    assert loss(weights, fed_back, hessian) < 0.85 * loss(weights, rounded, hessian)


@pytest.mark.parametrize("planes", [1, 2])
def test_codes_nearest_to_a_block(planes):
    torch.manual_seed(3)
    weights, importance = torch.randn(6, 128), torch.rand(128) + 0.1
    pair = torch.tensor([[0.9] * 6, [0.4 * (planes - 1)] * 6])
    first, second, found = scales.nearest(scales.to_lanes(weights.T).abs(), scales.to_lanes(importance[:, None]), pair)
    assert (first == 0).sum(dim=0).unique().tolist() == [1]
    assert (second == 0).sum(dim=0).unique().tolist() == [1]
    sums = (pair[0, 0] * ALL[:, None] + pair[1, 0] * ALL).view(1024, 4)
    distance = (weights.view(6, 32, 1, 4) - sums).square() * importance.view(32, 1, 4)
    assert torch.allclose(found.double(), distance.sum(dim=-1).amin(dim=-1).sum(dim=-1), rtol=1e-5)


@pytest.mark.parametrize("planes", [1, 2])
def test_without_dependence_feedback_is_rounding(planes):
    torch.manual_seed(4)
    weights, sizes = torch.randn(8, 256), torch.rand(256, dtype=torch.float64) + 0.5
    found = feedback.quantize(weights, sizes.rsqrt().diag(), planes).weights()
    for block in (slice(0, 128), slice(128, 256)):
        importance = (sizes / sizes.mean())[block].float()
        pair = scales.fit_scales(weights[:, block], importance, planes)
        lanes = scales.to_lanes(weights[:, block].T)
        pair = torch.cat([pair, torch.zeros(2 - planes, 8)])
        first, second, _ = scales.nearest(lanes.abs(), scales.to_lanes(importance[:, None]), pair)
        nearest = lanes.sign() * (first * pair[0] + second * pair[1])
        assert torch.allclose(scales.to_lanes(found[:, block].T), nearest, atol=1e-6)


@pytest.mark.parametrize("planes", [1, 2])
def test_feedback_loses_less_than_rounding(planes):
    hessian, weights = inputs(600, 256), torch.randn(64, 256) * 0.02
    fed_back = feedback.quantize(weights, upper_factor(damped(hessian.sum)), planes)
    rounded = feedback.quantize(weights, rounding(256), planes)
    assert loss(weights, fed_back, hessian) < 0.75 * loss(weights, rounded, hessian)
    one_plane = feedback.quantize(weights, upper_factor(damped(hessian.sum)), 1)
    assert planes == 1 or loss(weights, fed_back, hessian) < 0.25 * loss(weights, one_plane, hessian)


@pytest.mark.parametrize("planes", [1, 2])
def test_scales_of_whole_rows(planes):
    """No others cost less for these codes, but for fp16; they are in order, whatever sign they are found with."""
    hessian, weights = inputs(600, 256), torch.randn(16, 256) * 0.02
    before = feedback.quantize(weights, upper_factor(damped(hessian.sum)), planes)
    after = refit(before, weights, hessian.sum)
    assert loss(weights, after, hessian) < 0.995 * loss(weights, before, hessian)
    assert (after.scales[0] >= after.scales[-1]).all()
    assert (after.scales >= 0).all()
    for i in range(planes):
        for factor in (0.98, 1.02):
            scales = after.scales.clone()
            scales[i, :, 0] *= factor
            assert loss(weights, after, hessian) < loss(weights, feedback.Planes(after.codes, scales), hessian)
    wrong_sign = feedback.Planes(before.codes ^ 16, before.scales)
    assert torch.allclose(refit(wrong_sign, weights, hessian.sum).weights(), after.weights(), atol=1e-4)


def test_weights_that_are_two_planes_stay_as_they_are():
    torch.manual_seed(5)
    codes = torch.randint(32, (2, 16, 64), dtype=torch.uint8)
    trained = feedback.Planes(codes, torch.tensor([1.0, 0.37]).half().view(2, 1, 1).expand(2, 16, 2))
    found = feedback.quantize(trained.weights(), rounding(256), 2)
    assert torch.equal(found.weights(), trained.weights())
    assert (found.scales[0] >= found.scales[1]).all()


def test_threads_change_no_bit():
    hessian, weights = inputs(300, 128), torch.randn(1100, 128)
    upper, threads = upper_factor(damped(hessian.sum)), torch.get_num_threads()
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(feedback.quantize(weights, upper, 2))
    torch.set_num_threads(threads)
    assert torch.equal(found[0].codes, found[1].codes)
    assert torch.equal(found[0].scales, found[1].scales)


def test_a_block_of_zeros_has_scales_of_zero():
    found = feedback.quantize(torch.zeros(4, 128), rounding(128), 2)
    assert not found.weights().any()


def test_the_type_holds_every_bit_of_what_is_chosen():
    """Whatever the ratio of the scales is: equal ones, one that is nothing, a sum that two pairs give."""
    torch.manual_seed(6)
    weights = torch.randn(64, 128)
    weights[:16] = weights[:16].sign()
    weights[16:32, 1::4] *= 1e-3
    weights[32:40] = 0
    found = feedback.quantize(weights, rounding(128), 2).weights().numpy()
    assert np.array_equal(SHERRY_2P.dequantize(SHERRY_2P.pack(found)), found)
