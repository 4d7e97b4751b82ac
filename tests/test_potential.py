"""The Potential object: its sum, its float64 parts, its copies; refusals name what was received."""

import copy
import pickle

import pytest
import torch
import toy
from torch import nn

from ase_equinn.derivatives import derivatives, energy_only
from ase_equinn.graph import edge_vectors
from ase_equinn.potential import ARCHITECTURES, Potential

REFERENCES = {6: -1_037.123456789, 14: -7_889.987654321}  # float32 keeps these to 1e-4 and 5e-4 eV


def make(dtype=torch.float32, **kwargs) -> Potential:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        models = [
            toy.Pair([6, 8, 14], 3.0).to(dtype),
            toy.Embedded([6, 14], 4.0).to(dtype),
            toy.Pair([6, 14], 3.0).to(dtype),
        ]
    return Potential(
        models, **{"reference_energies": REFERENCES, "scale": [1.0, 0.3, -2.0], "shift": {6: 0.5, 14: 0.25}} | kwargs
    )


def test_energy_is_the_scaled_sum_of_the_models_plus_shift_and_reference():
    potential = make(torch.float64)
    assert potential.cutoffs == (4.0, 3.0) and potential.cutoff == 4.0
    assert potential.species == (6, 14)
    numbers, positions, *_, graphs = toy.structure("triclinic", potential.cutoffs)
    vectors = tuple(edge_vectors(graph, positions) for graph in graphs)
    first, second, third = potential.models
    expected = first(graphs[1], vectors[1]) + 0.3 * second(graphs[0], vectors[0]) - 2.0 * third(graphs[1], vectors[1])
    expected += torch.tensor([{6: 0.5, 14: 0.25}[z] + REFERENCES[z] for z in numbers.tolist()], dtype=torch.float64)
    received = potential.node_energy(graphs, vectors)
    assert received.dtype == torch.float64
    assert torch.allclose(received, expected, rtol=0, atol=1e-11)  # eV: ulp of 8000 eV is 1e-12


def test_defaults_are_one_zero_zero():
    model = toy.Embedded([6], 3.0)
    potential = Potential(model)
    assert potential.reference_energies == {6: 0.0} == potential.shift
    assert potential.scale == (1.0,)
    assert potential.isolated_energy(6) == pytest.approx(model.bias.item() - 1.0, rel=1e-6)  # -sqrt(1 + 0)
    assert Potential(model, shift=1.5).shift == {6: 1.5}


def test_per_species_energies_stay_float64_whatever_the_network_runs_in():
    """What an atom has without a network's contribution must not lose a digit by a change of dtype."""
    potential = make(scale=0.0)
    exact = {z: REFERENCES[z] + {6: 0.5, 14: 0.25}[z] for z in potential.species}
    for change in (torch.float64, torch.float32, torch.float16, torch.float64):
        potential = potential.to(change)
        assert potential.dtype == change == potential.models[0].weight.dtype
        assert {z: potential.isolated_energy(z) for z in potential.species} == exact
    potential.float().double().half().bfloat16()
    assert potential.isolated_energies() == exact


def test_sum_over_models_is_float64_in_a_float32_network():
    """The network's 1 eV beside a reference of 8000 eV keeps all digits that float32 has for 1 eV."""
    single, double = make(), make(torch.float64)
    *_, positions, _, _, graphs = toy.structure("triclinic", single.cutoffs)
    difference = (energy_only(single, graphs, positions) - energy_only(double, graphs, positions)).abs().max()
    assert difference < 2e-5  # eV; float32 beside the reference would give 5e-4


def test_isolated_energy_is_the_energy_of_one_atom():
    potential = make(torch.float64)
    for number in potential.species:
        *_, positions, _, _, graphs = toy.structure("molecule", potential.cutoffs, n=1)
        graphs = tuple(graph._replace(numbers=torch.tensor([number])) for graph in graphs)
        result = derivatives(potential, graphs, positions)
        assert result.energy.item() == potential.isolated_energy(number) == potential.isolated_energies()[number]
        assert not result.forces.any()
    with pytest.raises(ValueError, match=r"8 .*\(6, 14\)"):
        potential.isolated_energy(8)


def test_an_unknown_element_gives_nan_not_a_number():
    potential = make()
    *_, positions, _, _, graphs = toy.structure("molecule", potential.cutoffs)
    graphs = tuple(graph._replace(numbers=torch.tensor([6, 14, 8, 92])) for graph in graphs)
    assert energy_only(potential, graphs, positions).isnan()[2:].all()


def test_descriptors_come_from_the_first_model_that_has_some():
    potential = make()
    *_, positions, _, _, graphs = toy.structure("triclinic", potential.cutoffs)
    vectors = tuple(edge_vectors(graph, positions).float() for graph in graphs)
    assert torch.equal(potential.descriptors(graphs, vectors), potential.models[1].descriptors(graphs[0], vectors[0]))
    twice = Potential([potential.models[1], potential.models[1]])
    assert twice.descriptors(graphs[:1], vectors[:1]).shape == (4, 3)
    with pytest.raises(ValueError, match="Pair"):
        Potential(potential.models[0]).descriptors(graphs[1:], vectors[1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference_energies": {6: 1.0}}, r"reference_energies are given for \[6\], the species are \[6, 14\]"),
        ({"reference_energies": {6: 1.0, 14: 1.0, 92: 1.0}}, r"\[6, 14, 92\]"),
        ({"reference_energies": {6: 1.0, 14: float("nan")}}, "element 14 is nan"),
        ({"shift": {6: 1.0}}, r"shift are given for \[6\]"),
        ({"shift": float("inf")}, "shift of element 6 is inf"),
        ({"scale": [1.0, 2.0]}, r"scale \[1.0, 2.0\] is not one finite number for each of 3"),
        ({"scale": float("nan")}, "scale nan"),
    ],
)
def test_bad_energies_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        make(**change)


def test_bad_models_are_refused():
    with pytest.raises(ValueError, match="none"):
        Potential([])
    with pytest.raises(ValueError, match=r"in common: \[\(6,\), \(14,\)\]"):
        Potential([toy.Pair([6], 3.0), toy.Pair([14], 3.0)])
    with pytest.raises(ValueError, match="disagree on dtype"):
        Potential([toy.Pair([6], 3.0), toy.Pair([6], 3.0).double()])
    for cutoff in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="cutoffs"):
            Potential(toy.Pair([6], cutoff))


class Parameterless(nn.Module):
    """A classical term: no weights at all."""

    species, cutoff, hyperparameters = (6, 14), 2.5, {}

    def forward(self, graph, vectors):
        inverse = 1 / vectors.norm(dim=1)
        return inverse.new_zeros(len(graph.numbers)).index_add(0, graph.edge_index[0], inverse)


def test_a_term_without_weights_has_a_dtype_too():
    term = Potential(Parameterless())
    assert term.dtype == torch.float32 and term.to(torch.float64).dtype == torch.float64
    *_, positions, _, _, graphs = toy.structure("triclinic", term.cutoffs)
    assert derivatives(term, graphs, positions).forces.any()
    assert Potential([Parameterless(), toy.Pair([6, 14], 3.0).double()]).dtype == torch.float64


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda potential: pickle.loads(pickle.dumps(potential))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_copies_give_the_same_bits_and_are_independent(copier, dtype):
    potential = make(dtype, metadata={"level_of_theory": "PBE"})
    *_, positions, _, _, graphs = toy.structure("triclinic", potential.cutoffs)
    expected = energy_only(potential, graphs, positions)
    other = copier(potential)
    assert torch.equal(energy_only(other, graphs, positions), expected)
    assert other.metadata == potential.metadata and other.dtype == dtype
    with torch.no_grad():
        other.models[0].weight += 1
    assert torch.equal(energy_only(potential, graphs, positions), expected)


def test_every_architecture_exists_and_has_the_contract():
    for name, (module, class_name) in ARCHITECTURES.items():
        model_class = getattr(__import__(module, fromlist=[class_name]), class_name)
        model = model_class(species=[6, 14], **({} if ".terms." in module else {"cutoff": 4.0}))
        assert model.species == (6, 14) and model.cutoff == (2.22 if name == "zbl" else 4.0), name
        again = model_class(**model.hyperparameters)
        assert again.hyperparameters == model.hyperparameters, name
        assert {k: v.shape for k, v in again.state_dict().items()} == {
            k: v.shape for k, v in model.state_dict().items()
        }


@pytest.mark.gpu
def test_a_potential_moves_to_cuda_and_back():
    potential = make(torch.float64)
    *_, positions, _, _, graphs = toy.structure("triclinic", potential.cutoffs)
    expected, isolated = energy_only(potential, graphs, positions), potential.isolated_energies()
    potential.to("cuda")
    assert potential.device.type == "cuda"
    received = energy_only(potential, tuple(graph.to("cuda") for graph in graphs), positions.cuda()).cpu()
    assert torch.allclose(received, expected, rtol=0, atol=1e-11)
    assert potential.isolated_energies() == pytest.approx(isolated, abs=1e-11)
    assert torch.equal(energy_only(potential.to("cpu"), graphs, positions), expected)
