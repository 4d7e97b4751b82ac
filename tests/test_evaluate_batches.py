"""A batch gives what EquiCalculator gives one structure at a time."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import CalculationFailed, PropertyNotImplementedError
from toy import Embedded, Pair

import ase_equinn
from ase_equinn import EquiCalculator, NequIP, Potential, SchNet, evaluate, evaluator
from ase_equinn.evaluate_batches import load_potential


def with_seed(build):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build()


@pytest.fixture(scope="module")
def potential():
    """Two cutoffs and an element without neighbours of its kind."""
    models = with_seed(lambda: [Pair((1, 6, 8, 29), 4.0), Embedded((1, 6, 8, 29), 3.0)])
    return Potential([model.double() for model in models], shift={1: -1.0, 6: -2.0, 8: -3.0, 29: -4.0})


@pytest.fixture
def structures():
    copper = bulk("Cu", cubic=True)
    found = [copper * (k, 1, 1) for k in (1, 3, 2)] + [molecule("CH3CH2OH"), Atoms("O"), bulk("Cu")]
    slab = bulk("Cu", cubic=True)
    slab.pbc[2] = False
    found.append(slab)
    for k, atoms in enumerate(found):
        atoms.rattle(0.05, seed=k)
    return found


def singly(structures, calculator):
    results = []
    for atoms in structures:
        calculator.calculate(atoms, ["forces"])
        results.append(calculator.results)
    return results


def assert_equal(found, expected, tolerance):
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        assert set(one) == set(other)
        for name in one:
            assert np.shape(one[name]) == np.shape(other[name])
            np.testing.assert_allclose(one[name], other[name], atol=tolerance, rtol=tolerance, err_msg=name)


@pytest.mark.parametrize("max_edges", [None, 1, 300])
def test_a_batch_equals_single_structures(potential, structures, max_edges):
    """Float64: only the order of sums may differ."""
    expected = singly(structures, EquiCalculator(potential, dtype="float64", device="cpu"))
    before = [atoms.copy() for atoms in structures]
    found = evaluate(structures, potential, dtype="float64", device="cpu", max_edges=max_edges)
    assert_equal(found, expected, 1e-12)
    assert ["stress" in result for result in found] == [True, True, True, False, False, True, False]
    assert before == structures and not any(atoms.calc for atoms in structures)


@pytest.mark.parametrize("build", [lambda: SchNet((14,), 5.0), lambda: NequIP((14,), 5.0, avg_num_neighbors=16.0)])
def test_a_float32_network_gives_the_same_in_a_batch(build):
    """Round-off of float32 sums in another order, far below 1e-6 of forces of 1 eV/A."""
    network = Potential(with_seed(build))
    crystals = [bulk("Si", cubic=True) * (1, 1, k) for k in (1, 2, 1)]
    for k, atoms in enumerate(crystals):
        atoms.rattle(0.1, seed=k)
    assert_equal(evaluate(crystals, network), singly(crystals, EquiCalculator(network)), 1e-6)


def test_modes_of_the_caller_change_nothing(potential, structures):
    network = Potential(with_seed(lambda: SchNet((1, 6, 8, 29), 4.0)))
    for one, backend in ((potential, "auto"), (network, "reference")):
        expected = evaluate(structures, one, backend=backend, device="cpu")
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            assert_equal(evaluate(structures, one, backend=backend, device="cpu"), expected, 0.0)


def test_memory_that_runs_out_halves_the_batch(potential, structures, monkeypatch, caplog):
    expected = evaluate(structures, potential, dtype="float64")
    real, most = (
        evaluator.derivatives,
        max(len(ase_equinn.from_atoms(atoms, potential.cutoff).shift) for atoms in structures),
    )

    def derivatives(potential, graphs, positions, **known):
        if len(graphs[0].shift) > most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")
        return real(potential, graphs, positions, **known)

    monkeypatch.setattr(evaluator, "derivatives", derivatives)
    assert_equal(evaluate(structures, potential, dtype="float64"), expected, 1e-12)
    assert "out of memory with" in caplog.text
    most = 10
    with pytest.raises(MemoryError, match=r"structure 0 with \d+ edges does not fit"):
        evaluate(structures, potential, dtype="float64")


def test_energies_alone_take_no_gradient(potential, structures, monkeypatch):
    expected = evaluate(structures, potential, dtype="float64")
    monkeypatch.setattr(evaluator, "derivatives", None)
    for properties in (["energy"], ["energies", "free_energy"]):
        found = evaluate(structures, potential, properties, dtype="float64")
        assert_equal(found, [{name: result[name] for name in properties} for result in expected], 1e-12)


def test_only_what_was_asked_for(potential, structures):
    assert set(evaluate(structures, potential, "energy")[3]) == {"energy"}
    found = evaluate(structures[:3], potential, ["stress", "energy"])
    assert [sorted(result) for result in found] == [["energy", "stress"]] * 3
    with pytest.raises(PropertyNotImplementedError, match=r"structure 3: stress needs .* \[False, False, False\]"):
        evaluate(structures, potential, ["stress"])
    with pytest.raises(PropertyNotImplementedError, match="got 'charges'"):
        evaluate(structures, potential, ["charges"])
    assert evaluate([], potential) == []


def test_a_structure_that_cannot_be_evaluated_is_named(potential, structures):
    def refused(structure, error, message):
        with pytest.raises(error, match=message):
            evaluate([*structures, structure], potential)

    refused(bulk("Si"), ValueError, r"structure 7: atom 0 has atomic number 14 \(Si\); supported: H, C, O, Cu")
    wrong = structures[0].copy()
    wrong.positions[2] = np.nan
    refused(wrong, ValueError, r"structure 7: the position of atom 2 is not finite: \[nan")
    wrong = structures[0].copy()
    wrong.positions[3] = wrong.positions[1]
    refused(wrong, ValueError, r"^structure 7: atoms [13] and [13] are 0 A apart")
    refused("Cu", TypeError, "structure 7: expected ase.Atoms, got str")
    with pytest.raises(TypeError, match="takes a list of structures"):
        evaluate(structures[0], potential)
    with pytest.raises(ValueError, match="a committee needs at least one potential"):
        evaluate(structures, [])


def test_what_is_not_finite_is_no_result(potential, structures):
    broken = load_potential(potential).potential
    with torch.no_grad():
        broken.models[0].bias[broken.models[0].index[8]] = torch.nan
    with pytest.raises(CalculationFailed, match=r"structure 3: the potential gives energies of atom \d \(O\) = nan"):
        evaluate(structures, broken)


def test_progress_is_told_to_a_function_and_silent_away_from_a_terminal(potential, structures, capfd):
    told = []
    evaluate(structures, potential, max_edges=100, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (7, 7) and [done for done, _ in told] == sorted({done for done, _ in told})
    evaluate(structures, potential)
    assert capfd.readouterr() == ("", "")


def test_the_callers_potential_stays_as_it_is(potential):
    assert load_potential(potential, dtype="float32").potential is not potential
    assert potential.dtype == torch.float64
