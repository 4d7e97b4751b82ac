"""Reference energies: exact where the data determine them, and honest where they do not."""

import numpy as np
import pytest

from ase_equinn.reference import fit_reference_energies, isolated_atom_energies

TRUE = {1: -13.6, 6: -1029.5, 8: -2042.25}
WATER, METHANE, METHANOL, HYDROGEN = [8, 1, 1], [6, 1, 1, 1, 1], [6, 8, 1, 1, 1, 1], [1, 1]


def energies(frames, extra=0.0):
    return [sum(TRUE[z] for z in frame) + extra for frame in frames]


def test_isolated_atoms_give_their_energies():
    assert isolated_atom_energies([8, 1, 8], [-5.0, -1.0, -5.0 + 5e-4]) == {1: -1.0, 8: -5.0}
    assert list(isolated_atom_energies([8, 1], [-5.0, -1.0])) == [1, 8]
    assert isolated_atom_energies([], []) == {}


def test_isolated_atoms_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="element 8 have the energies -5.0 and -5.1 eV"):
        isolated_atom_energies([8, 8], [-5.0, -5.1])
    with pytest.raises(ValueError, match="element 8 is nan"):
        isolated_atom_energies([8], [float("nan")])


def test_additive_energies_are_recovered_exactly():
    frames = [WATER, METHANE, METHANOL, HYDROGEN, np.array(WATER * 3)]
    fit = fit_reference_energies(frames, energies(frames))
    assert fit.energies == pytest.approx(TRUE, abs=1e-9)
    assert list(fit.energies) == [1, 6, 8] and fit.rmse < 1e-10
    assert fit.warning == "" and 1 < fit.condition < 100


def test_known_energies_are_kept_and_the_rest_fitted():
    """A wrong value that is given stays, and the others answer for it."""
    frames = [WATER, WATER * 2]
    fit = fit_reference_energies(frames, energies(frames), known={1: -13.0, 92: -7.0})
    assert fit.energies == pytest.approx({1: -13.0, 8: TRUE[8] - 1.2, 92: -7.0}, abs=1e-9)
    assert fit.warning == "" and fit.condition == pytest.approx(1.0)
    everything = fit_reference_energies(frames, energies(frames), known=TRUE)
    assert everything.energies == TRUE and everything.warning == "" and everything.rmse < 1e-10


def test_fit_is_the_least_squares_of_the_energy_per_atom():
    """One element: the mean over frames of E/n, not of E over all atoms."""
    fit = fit_reference_energies([[14], [14] * 3], [-5.0, -18.0])
    assert fit.energies == {14: pytest.approx(-5.5)}
    assert fit.rmse == pytest.approx(0.5)


def test_one_composition_does_not_determine_its_elements():
    frames = [WATER, WATER * 4]
    fit = fit_reference_energies(frames, energies(frames))
    assert fit.condition == np.inf
    assert "[1, 8] apart" in fit.warning and "isolated-atom frames" in fit.warning
    assert 2 * fit.energies[1] + fit.energies[8] == pytest.approx(
        2 * TRUE[1] + TRUE[8]
    )  # the sum that is known is right
    assert fit.energies[8] == pytest.approx(0.5 * fit.energies[1])  # the smallest solution is along the composition
    single = fit_reference_energies([METHANOL], energies([METHANOL]))
    assert single.warning and single.rmse < 1e-9


def test_nearly_one_composition_is_no_better():
    """Fractions that differ by 1e-4 would turn 1 meV/atom of noise into 10 eV."""
    frames = [WATER * 2000, WATER * 2000 + [1]]
    fit = fit_reference_energies(frames, np.array(energies(frames)) + [0, 6.0])
    assert fit.condition > 1e3 and fit.warning
    assert max(abs(e) for e in fit.energies.values()) < 2100


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="received 0 and 0"):
        fit_reference_energies([], [])
    with pytest.raises(ValueError, match="received 1 and 2"):
        fit_reference_energies([WATER], [1.0, 2.0])
    with pytest.raises(ValueError, match="frame 1 has 0 atoms"):
        fit_reference_energies([WATER, []], [1.0, 2.0])
    with pytest.raises(ValueError, match="frame 1 has 3 atoms and the energy nan eV"):
        fit_reference_energies([WATER, WATER], [1.0, float("nan")])
