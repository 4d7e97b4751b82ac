"""SchNet passes the contract and computes what its formula says."""

import math

import numpy as np
import pytest
import torch
from contract import ModelContract, batch, molecule

from ase_equinn.graph import edge_vectors
from ase_equinn.models.schnet import SchNet, shifted_softplus
from ase_equinn.potential import Potential


class TestSchNet(ModelContract):
    def make_model(self, dtype):
        torch.manual_seed(0)
        return SchNet((1, 6, 8), 4.0, 6.0, n_channels=16, n_layers=3, n_basis=12).to(dtype)
