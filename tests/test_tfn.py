"""TFN passes the contract."""

import torch
from contract import ModelContract

from ase_equinn.models.tfn import TFN


class TestTFN(ModelContract):
    def make_model(self, dtype):
        torch.manual_seed(0)
        return TFN((1, 6, 8), 4.0, 6.0, irreps_hidden="6x0e+4x1o+3x2e", n_layers=3, radial_width=8).to(dtype)
