"""Uncertainties: distances by brute force, scales that errors were drawn from, files, faults that are refused."""

import math

import numpy as np
import pytest
import torch
import toy
from potential_files import refused

from ase_equinn.potential import Potential, read_header
from ase_equinn.potential_file import decode, encode
from ase_equinn.uncertainty import Scale, Uncertainty
from ase_equinn.uncertainty_fit import cluster, fit_scale, judge
from ase_equinn.uncertainty_nearest import Nearest


def random_uncertainty(species=(6, 14), k=3, seed=0, power=1.3) -> Uncertainty:
    generator = torch.Generator().manual_seed(seed)
    centres = {z: torch.randn(5 + z, k, generator=generator) for z in species}
    widths = {z: torch.rand(k, generator=generator) + 0.1 for z in species}
    scale = Scale(0.01, power, 2.0, {z: 0.2 * z for z in species})
    return Uncertainty(centres, widths, scale, 0.7, {"note": "random"})


def by_hand(uncertainty: Uncertainty, number: int, x) -> tuple[float, float]:
    """d and sigma of one atom, as the module's formula has them."""
    centres, widths = uncertainty.centres[number].double().numpy(), uncertainty.widths[number].double().numpy()
    d = min(math.sqrt(np.mean(((x - centre) / widths) ** 2)) for centre in centres)
    scale = uncertainty.scale
    if d > scale.reach:  # continued in proportion, if it grows more slowly
        term = scale.factors[number] * scale.reach**scale.power * (d / scale.reach) ** max(1.0, scale.power)
    else:
        term = scale.factors[number] * d**scale.power
    return d, math.hypot(scale.floor, term)


@pytest.mark.parametrize("power", [0.6, 1.0, 1.3])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_distances_and_sigma_by_hand(dtype, tolerance, power):
    uncertainty = random_uncertainty(power=power)
    numbers = torch.tensor([6, 14, 14, 6, 14])
    x = (3 * torch.randn(5, 3, generator=torch.Generator().manual_seed(1))).to(dtype)
    expected = np.array([by_hand(uncertainty, int(z), row) for z, row in zip(numbers, x.double().numpy())])
    np.testing.assert_allclose(uncertainty.distances(numbers, x).numpy(), expected[:, 0], rtol=tolerance)
    np.testing.assert_allclose(uncertainty.sigma(numbers, x).numpy(), expected[:, 1], rtol=tolerance)
    assert expected[:, 0].min() < 2.0 < expected[:, 0].max()  # on both sides of the reach
    alone = random_uncertainty((14,), power=power)
    expected = [by_hand(alone, 14, row)[1] for row in x.double().numpy()]
    np.testing.assert_allclose(alone.sigma(torch.full((5,), 14), x).numpy(), expected, rtol=tolerance)
    assert not len(uncertainty.sigma(numbers[:0], x[:0])) and not len(alone.sigma(numbers[:0], x[:0]))


@pytest.mark.parametrize("k, n_centres", [(1, 1), (7, 3), (32, 256), (45, 100)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_nearest_by_kernel_and_by_torch(k, n_centres, dtype, tolerance):
    """Against all distances at once; the features may lie far from zero, and rows far apart in memory."""
    generator = torch.Generator().manual_seed(k)
    centres, widths = 5 + torch.randn(n_centres, k, generator=generator), torch.rand(k, generator=generator) + 0.05
    x = (5 + 2 * torch.randn(33, k + 2, generator=generator)).to(dtype)[:, 1:-1]
    nearest = Nearest(centres, widths, dtype, x.device)
    scaled = (x[:, None].double() - centres.double()) / widths.double()
    expected = scaled.square().mean(2).amin(1)
    torch.testing.assert_close(squares(nearest, x).double(), expected, rtol=tolerance, atol=0)
    torch.testing.assert_close(nearest._by_torch(x).double(), expected, rtol=tolerance, atol=0)
    assert nearest._kernel is not None
    assert squares(nearest, centres.to(dtype)).max() < (1e-10 if dtype == torch.float32 else 1e-26)


def squares(nearest: Nearest, x: torch.Tensor) -> torch.Tensor:
    """Of every row, every third one first: rows come in any order."""
    out = torch.full((len(x),), -1.0, dtype=x.dtype)
    order = torch.arange(len(x))
    for rows in (order[::3].contiguous(), order[order % 3 > 0].flip(0)):
        before = out.clone()
        nearest(x, rows, out)
        others = torch.ones(len(x), dtype=torch.bool).index_fill(0, rows, False)
        assert torch.equal(out[others], before[others])
    return out


def test_nan_and_infinity_are_never_near():
    nearest = Nearest(torch.randn(4, 3), torch.ones(3), torch.float32, torch.device("cpu"))
    x = torch.tensor([[math.nan, 0, 0], [math.inf, 0, 0], [0.0, 0, 0]])
    found = squares(nearest, x)
    assert found[:2].tolist() == [math.inf, math.inf] and found[2] < 100


def test_centres_of_separate_groups_are_their_means():
    generator = torch.Generator().manual_seed(0)
    means = 20 * torch.eye(4, dtype=torch.float64)
    x = (means[:, None] + 0.1 * torch.randn(4, 50, 4, generator=generator, dtype=torch.float64)).reshape(-1, 4)
    centres, widths = cluster(x, 40, seed=3)
    torch.testing.assert_close(widths, x.std(0, correction=0))
    nearest = torch.cdist(x, centres).argmin(1)
    for k, group in enumerate(nearest.view(4, 50)):
        assert not set(group.tolist()) & set(torch.cat([nearest[: 50 * k], nearest[50 * (k + 1) :]]).tolist())
    assert torch.equal(cluster(x, 40, seed=3)[0], centres)
    assert len(cluster(x[:3], 40)[0]) == 3
    flat, narrow = cluster(torch.tensor([[1.0, 2.0], [1.0, 4.0]]), 5)
    assert narrow[0] > 0 and torch.isfinite(flat).all()  # a descriptor that never changes
    with pytest.raises(ValueError, match="no atoms"):
        cluster(x[:0], 4)


def test_the_scale_that_errors_were_drawn_from():
    """3000 atoms of each of two elements: factors to 5 %, the power to 0.05 (statistical errors are half of that)."""
    rng = np.random.default_rng(0)
    numbers, distances = np.repeat([6, 14], 3000), np.exp(rng.uniform(-3, 1, 6000))
    truth = Scale(0.0, 1.4, 1.0, {6: 0.3, 14: 0.1})
    sigma = np.array([truth.factors[z] * d**truth.power for z, d in zip(numbers.tolist(), distances)])
    errors = np.linalg.norm(rng.standard_normal((6000, 3)), axis=1) / math.sqrt(3) * sigma
    found = fit_scale(numbers, distances, errors, (6, 14, 29))
    assert found.power == pytest.approx(1.4, abs=0.05)
    assert found.factors[6] == pytest.approx(0.3, rel=0.05) and found.factors[14] == pytest.approx(0.1, rel=0.05)
    assert found.reach == distances.max()
    assert found.factors[14] < found.factors[29] < found.factors[6]  # none of its own: that of all together
    assert found.floor < 0.1 * sigma.min() + 0.03 * np.sqrt((errors**2).mean())
    judged = judge(errors, sigma)
    for row in judged["coverage"]:
        assert row["fraction"] == pytest.approx(row["normal"], abs=0.02)
    for row in judged["bins"]:
        assert row["sigma"] == pytest.approx(row["error"], rel=0.1)
    assert judged["rank_correlation"] > 0.8 and judged["n_atoms"] == 6000
    constant = judge(errors[:5], np.ones(5))
    assert constant["rank_correlation"] is None and sum(row["n_atoms"] for row in constant["bins"]) == 5
    for bad in (np.zeros(0), np.zeros(9)):
        with pytest.raises(ValueError, match="root mean square 0.0"):
            fit_scale(numbers[: len(bad)], distances[: len(bad)], bad, (6,))


# ---- files


@pytest.fixture
def potential(monkeypatch):
    toy.register(monkeypatch)
    torch.manual_seed(0)
    model = toy.Embedded([6, 14], 4.0)
    return Potential(model, uncertainty=random_uncertainty())


def test_a_file_carries_them(tmp_path, potential):
    path = potential.save(tmp_path)
    assert read_header(path)["format_version"] == 2
    loaded = Potential.load(path)
    assert (loaded.uncertainty.scale, loaded.uncertainty.largest) == (potential.uncertainty.scale, 0.7)
    assert loaded.uncertainty.facts == {"note": "random"} and loaded.uncertainty.species == (6, 14)
    for z in (6, 14):
        assert torch.equal(loaded.uncertainty.centres[z], potential.uncertainty.centres[z])
        assert torch.equal(loaded.uncertainty.widths[z], potential.uncertainty.widths[z])
    assert loaded.save(tmp_path / "again").read_bytes() == path.read_bytes()


def test_without_them_the_format_is_that_of_before(tmp_path, potential):
    potential.uncertainty = None
    header = read_header(potential.save(tmp_path))
    assert header["format_version"] == 1 and "uncertainty" not in header


CHANGES = [
    ({"method": "oracle"}, "is not of the method 'nearest centre'"),
    ({"floor": 0.0}, "floor must be positive and finite, got 0.0"),
    ({"power": -1.0}, "power must be positive"),
    ({"power": "1"}, "is not of the method"),
    ({"reach": 0.0}, "reach must be positive and finite, got 0.0"),
    ({"factors": {"6": 1.0}}, "not one number for each of (6, 14)"),
    ({"factors": {"6": 1.0, "14": "2"}}, "not one number for each"),
    ({"factors": {"6": 1.0, "14": -2.0}}, "factor of element 14 must be positive and finite, got -2.0"),
    ({"largest": -1.0}, "largest sigma must be positive"),
    ({"facts": []}, "is not of the method"),
    ({"more": 1}, "is not of the method"),
]


@pytest.mark.parametrize("change, message", CHANGES, ids=lambda x: str(x)[:30])
def test_damaged_entries_are_refused(tmp_path, potential, change, message):
    header, tensors = decode(potential.save(tmp_path / "good"))
    header["uncertainty"] |= change
    assert message in refused(tmp_path / "a.safetensors", encode(header, tensors))


def test_damaged_tensors_are_refused(tmp_path, potential):
    header, tensors = decode(potential.save(tmp_path / "good"))
    name, width = "uncertainty.centres.6", "uncertainty.widths.14"
    fewer = {k: v for k, v in tensors.items() if k != name}
    bad = {
        "has the tensors": [fewer, tensors | {"uncertainty.x": torch.ones(1)}],
        "not float32": [tensors | {name: tensors[name].double()}],
        "not (n, 3) and (3,)": [tensors | {width: torch.ones(4)}, tensors | {width: torch.ones(3, 1)}],
        "is not finite": [tensors | {name: tensors[name] * math.nan}, tensors | {width: tensors[width] * math.inf}],
        "a width not positive": [tensors | {width: -tensors[width]}],
        "not (n, 0)": [tensors | {name: torch.ones(0, 0), width: torch.ones(0)}],
        "for 4 descriptors, its models have 3": [
            tensors | {n: torch.ones(*t.shape[:-1], 4) for n, t in tensors.items() if n.startswith("uncertainty.")}
        ],
    }
    for message, cases in bad.items():
        for case in cases:
            assert message in refused(tmp_path / "a.safetensors", encode(header, case))
    bare = {key: value for key, value in header.items() if key != "uncertainty"} | {"format_version": 1}
    assert "that no model has: ['uncertainty.centres.14'" in refused(tmp_path / "a.safetensors", encode(bare, tensors))


def test_uncertainties_of_other_elements_or_for_no_descriptors(tmp_path, potential):
    with pytest.raises(ValueError, match=r"species \(6,\), the models for \(6, 14\)"):
        Potential(potential.models[0], uncertainty=random_uncertainty((6,)))
    pair = Potential(toy.Pair([6, 14], 3.0), uncertainty=random_uncertainty())
    assert "need descriptors" in refused(tmp_path / "b.safetensors", pair.save(tmp_path).read_bytes())
