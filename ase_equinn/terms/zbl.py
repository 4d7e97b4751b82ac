"""The Ziegler-Biersack-Littmark repulsion: what two nuclei feel when their electron shells overlap."""

from __future__ import annotations

from math import isfinite
from typing import Sequence

import torch
from torch import Tensor, nn

from ..graph import Graph
from ..nn import SpeciesIndex
from ..ops.symbols import Value, is_symbolic
from ..ops.zbl_kernels import Repulsion
from ..radial import check_count, polynomial_envelope
from ..radial_transforms import covalent_radius

COULOMB = 14.399645  # eV A: e^2 / (4 pi epsilon_0)


class ZBL(nn.Module):
    """A screened Coulomb repulsion of the nuclei that ends smoothly at the sum of two radii.

        V(r) = k Z_i Z_j / r * phi(r / a) * envelope(r / (R_i + R_j)),    a = length / (Z_i^exponent + Z_j^exponent)
        phi(x) = sum_n amplitudes_n exp(-decays_n x)

    Half of V belongs to each of the two atoms. The envelope is `radial.polynomial_envelope`.

    Args:
        species: atomic numbers.
        envelope_power: p of the envelope.
        radii: R in A, per species in ascending order of the atomic number; None: covalent radii.
        length: A.
        exponent: of the atomic numbers.
        amplitudes, decays: of the screening function, of equal length.

    Attributes:
        cutoff: A, twice the largest radius.

    Raises:
        ValueError: radii, lengths or decays that are not positive, or not as many as needed, with the value.

    Source: Ziegler, Biersack, Littmark, The Stopping and Range of Ions in Solids (Pergamon, 1985), eq. 2-60 (the
    defaults); the envelope: Batatia et al., arXiv:2401.00096 (MACE-MP-0).
    """

    def __init__(
        self,
        species: Sequence[int],
        envelope_power: int = 6,
        radii: Sequence[float] | None = None,
        length: float = 0.4685,
        exponent: float = 0.23,
        amplitudes: Sequence[float] = (0.18175, 0.50986, 0.28022, 0.02817),
        decays: Sequence[float] = (3.19980, 0.94229, 0.40290, 0.20162),
    ):
        super().__init__()
        self.index = SpeciesIndex(species)
        self.species = self.index.species
        radii = [covalent_radius(z) for z in self.species] if radii is None else [float(r) for r in radii]
        amplitudes, decays = [float(c) for c in amplitudes], [float(d) for d in decays]
        if len(radii) != len(self.species) or not all(0 < r and isfinite(r) for r in radii):
            raise ValueError(f"ZBL: radii must be one positive number for each of {self.species}, got {radii}")
        if len(amplitudes) != len(decays) or not all(map(isfinite, amplitudes)) or not all(d > 0 for d in decays):
            raise ValueError(f"ZBL: each amplitude needs a positive decay, got {amplitudes} and {decays}")
        if not (length > 0 and isfinite(length) and isfinite(exponent)):
            raise ValueError(f"ZBL: length must be positive and exponent finite, got {length} and {exponent}")
        self.n_layers = 1  # an atom sees its neighbours, not theirs
        self.envelope_power = check_count("ZBL", "envelope_power", envelope_power)
        self.cutoff, self.length, self.exponent = 2 * max(radii), float(length), float(exponent)
        self.radii, self.amplitudes, self.decays = radii, amplitudes, decays
        self.hyperparameters = dict(
            species=list(self.species), envelope_power=self.envelope_power, radii=radii, length=self.length,
            exponent=self.exponent, amplitudes=amplitudes, decays=decays,
        )  # fmt: skip
        self.register_buffer(
            "_probe", torch.empty(0), persistent=False
        )  # tells Potential the dtype: there are no weights
        self._tables: dict[tuple, tuple[Tensor, ...]] = {}

    def forward(self, graph: Graph, vectors: Tensor) -> Tensor:
        """Node energies (n_atoms,) in eV; vectors (n_edges, 3) in A."""
        if is_symbolic(vectors):
            return self._traced(graph)
        tables = self._per_species(vectors.dtype, vectors.device)
        i, j = (self.index(graph.numbers).index_select(0, atoms) for atoms in graph.edge_index)
        lengths = vectors.norm(dim=1)
        charge_i, power_i, radius_i = (table.index_select(0, i) for table in tables)
        charge_j, power_j, radius_j = (table.index_select(0, j) for table in tables)
        x = lengths * (power_i + power_j) / self.length
        screening = sum(c * torch.exp(-d * x) for c, d in zip(self.amplitudes, self.decays))
        envelope = polynomial_envelope(lengths / (radius_i + radius_j), 1.0, self.envelope_power)
        energy = 0.5 * COULOMB * charge_i * charge_j / lengths * screening * envelope
        return vectors.new_zeros(len(graph.numbers)).index_add(0, graph.edge_index[0], energy)

    def _traced(self, graph: Graph) -> Value:
        """Records the whole term as one operator of a native program."""
        trace = self.index(graph.numbers).trace
        constants = tuple(self.amplitudes), tuple(self.decays), self.envelope_power
        repulsion = Repulsion(COULOMB, self.length, *constants)
        energy = trace.new(1, 1, ())
        tables = self._per_species(torch.float64, torch.device("cpu"))
        trace.record("zbl", [], [energy], repulsion=repulsion, tables=tables)
        return energy

    def _per_species(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
        """Z, Z^exponent and R of every species, from numbers that no dtype has rounded."""
        key = (dtype, device)
        if key not in self._tables:
            columns = self.species, [z**self.exponent for z in self.species], self.radii
            self._tables[key] = tuple(torch.tensor(column, dtype=dtype, device=device) for column in columns)
        return self._tables[key]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_tables": {}}
