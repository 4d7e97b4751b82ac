"""NequIP passes the contract, sees parity, and rejects what it cannot be."""

import pytest
import torch
from contract import ModelContract

from ase_equinn.models.nequip import NequIP


class TestNequIP(ModelContract):
    def make_model(self, dtype):
        torch.manual_seed(0)
        return NequIP((1, 6, 8), 4.0, 6.0, n_layers=2, irreps_hidden="6x0e+4x1o+3x2e", radial_mlp=[8]).to(dtype)


class TestNequIPWithOddParity(ModelContract):
    def make_model(self, dtype):
        torch.manual_seed(1)
        irreps = "5x0e+3x0o+3x1o+2x1e+2x2e"
        return NequIP((1, 6, 8), 4.0, 6.0, n_layers=3, irreps_hidden=irreps, lmax=2, radial_mlp=[8]).to(dtype)


def test_last_layer_keeps_scalars_only():
    model = NequIP((14,), 5.0, irreps_hidden="8x0e+4x1o", n_layers=3)
    assert [str(layer.irreps_out) for layer in model.layers] == ["8x0e+4x1o", "8x0e+4x1o", "8x0e"]


def test_layers_drop_irreps_that_cannot_be_reached_or_cannot_reach_the_energy():
    model = NequIP((14,), 5.0, irreps_hidden="8x0e+4x0o+4x1o+4x1e", n_layers=4)
    expected = ["8x0e+4x1o", "8x0e+4x1e+4x1o", "8x0e+4x1o", "8x0e"]  # 0o needs 1e and 1o before, and one more layer after
    assert [str(layer.irreps_out) for layer in model.layers] == expected


@pytest.mark.parametrize(
    "bad, message",
    [
        (dict(irreps_hidden="8x1o"), "even scalars"),
        (dict(irreps_hidden="8x0"), "cannot read"),
        (dict(cutoff=0.0), "cutoff must be positive, got 0.0"),
        (dict(cutoff=float("nan")), "cutoff must be positive, got nan"),
        (dict(n_layers=0), "n_layers must be at least 1, got 0"),
        (dict(lmax=-1), "lmax must not be negative, got -1"),
        (dict(avg_num_neighbors=0), "avg_num_neighbors must be positive, got 0"),
        (dict(basis="fourier"), "'fourier'"),
        (dict(species=[]), "species"),
    ],
)
def test_bad_input(bad, message):
    with pytest.raises(ValueError, match=message):
        NequIP(**{"species": (14,), "cutoff": 5.0, **bad})
