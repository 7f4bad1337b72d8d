"""Which weights are left out, how many, and when."""

from itertools import pairwise

import pytest
import torch

from lite_transformer.compression import pruning
from lite_transformer.errors import ConfigError


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    small, large = (torch.randn(50, 40, generator=generator) * size for size in (0.01, 1.0))
    return {"small": small, "large": large}


@pytest.mark.parametrize("method", pruning.PRUNING_METHODS)
@pytest.mark.parametrize("wanted", [0.0, 0.3, 0.56, 1.0])
def test_as_many_as_asked_for_are_left_out(method, wanted):
    masks = pruning.masks(weights(), wanted, method)
    kept = sum(int(mask.sum()) for mask in masks.values())
    assert kept == 4000 - round(wanted * 4000)
    for name, mask in masks.items():
        size = weights()[name].abs()
        assert mask.all() or not mask.any() or size[mask].min() >= size[~mask].max()


def test_sensitivity_treats_tensors_by_their_deviation_and_global_does_not():
    by_deviation = pruning.masks(weights(), 0.5)
    parts = {name: 1 - mask.float().mean() for name, mask in by_deviation.items()}
    assert abs(parts["small"] - parts["large"]) < 0.05
    together = pruning.masks(weights(), 0.5, "global")
    assert together["small"].float().mean() < 0.03 and together["large"].float().mean() > 0.97


def test_thresholds_are_one_multiple_of_the_deviations():
    found = pruning.masks(weights(), 0.516)
    thresholds = []
    for name, weight in weights().items():
        assert float(weight.std(unbiased=False)) == pytest.approx(pruning.units(weights())[name])
        thresholds.append(float(weight.abs()[~found[name]].max() / weight.std(unbiased=False)))
    assert thresholds == pytest.approx([0.7, 0.7], abs=0.03)  # a Gaussian has 51.6 % within 0.7 deviations


def test_factors_spare_tensors():
    unit = pruning.units(weights(), {"sm*": 0.5, "small": 9.0})
    assert (
        unit["small"] == 0.5 * pruning.units(weights())["small"] and unit["large"] == pruning.units(weights())["large"]
    )
    found = pruning.masks(weights(), 0.5, measured_in=unit)
    assert found["small"].float().mean() > 0.6 > 0.4 > found["large"].float().mean()


def test_deviations_of_the_dense_weights_can_be_kept():
    units = pruning.units(weights())
    assert units["large"] == pytest.approx(1, abs=0.05)
    pruned = {name: weight * pruning.masks(weights(), 0.5)[name] for name, weight in weights().items()}
    pruned["small"][:25] = 0  # now its own deviation would be another
    kept = pruning.masks(pruned, 0.8, measured_in=units)
    other = pruning.masks(pruned, 0.8)
    assert not torch.equal(kept["small"], other["small"])
    threshold = min(float((pruned[name].abs()[mask] / units[name]).min()) for name, mask in kept.items())
    assert all((pruned[name].abs()[~mask] / units[name]).max() <= threshold for name, mask in kept.items())


def test_zeros_are_left_out_first():
    weight = weights()["large"]
    weight[:, :20] = 0
    mask = pruning.masks({"a": weight}, 0.5)["a"]
    assert torch.equal(mask, weight != 0)
    assert pruning.sparsity([weight]) == 0.5 and pruning.sparsity([]) == 0


def test_equal_magnitudes_and_constant_tensors_are_pruned_exactly():
    masks = pruning.masks({"a": torch.ones(10, 10)}, 0.25)
    assert int(masks["a"].sum()) == 75


def test_schedule_rises_to_the_final_sparsity():
    due = [pruning.cubic_sparsity(update, 100, 200, 0.8) for update in range(90, 221)]
    assert due[:11] == [0.0] * 11 and due[110:] == [0.8] * 21
    steps = [later - earlier for earlier, later in pairwise(due[10:111])]
    assert all(a > b > 0 for a, b in pairwise(steps))
    assert due[60] == pytest.approx(0.8 * (1 - 0.5**3))


def test_what_cannot_be_pruned_is_said():
    with pytest.raises(ConfigError, match=r"unknown pruning method 'odd'. Known: sensitivity, global"):
        pruning.masks(weights(), 0.5, "odd")
    with pytest.raises(ConfigError, match=r"sparsity 1\.5"):
        pruning.masks(weights(), 1.5)


def test_scan_prunes_one_tensor_at_a_time_and_puts_it_back():
    held = weights()
    before = {name: weight.clone() for name, weight in held.items()}
    seen = []

    def score():
        seen.append({name: float((weight == 0).float().mean()) for name, weight in held.items()})
        return len(seen)

    assert pruning.scan(held, score, [0.5, 0.9]) == {"small": [1, 2], "large": [3, 4]}
    wanted = [(0.5, 0), (0.9, 0), (0, 0.5), (0, 0.9)]
    assert [tuple(parts.values()) for parts in seen] == [pytest.approx(pair) for pair in wanted]
    assert all(torch.equal(held[name], before[name]) for name in held)
    with pytest.raises(ZeroDivisionError):
        pruning.scan(held, lambda: 1 / 0, [0.5])
    assert all(torch.equal(held[name], before[name]) for name in held)
