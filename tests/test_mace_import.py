"""Imported MACE models give what mace-torch gave (tests/data/mace/make_fixtures.py), and what cannot be imported is named."""

import json
import lzma
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from typer.testing import CliRunner

from ase_equinn.backend import use_backend
from ase_equinn.calculator import EquiCalculator
from ase_equinn.cli import app
from ase_equinn.derivatives import derivatives
from ase_equinn.graph import from_atoms
from ase_equinn.mace_file import read_torch_file
from ase_equinn.mace_import import _potential, import_mace
from ase_equinn.mace_objects import Bag, Global
from ase_equinn.nn_pairs import Pairs
from ase_equinn.potential import Potential

FIXTURES = Path(__file__).parent / "data" / "mace"
RECORDS = json.loads((FIXTURES / "records.json").read_text())
CASES = [(name, head) for name, record in RECORDS.items() for head in record["heads"]]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The file of a fixture by its name."""
    folder = tmp_path_factory.mktemp("mace")

    def unpack(name: str) -> Path:
        path = folder / f"{name}.model"
        if not path.exists():
            path.write_bytes(lzma.decompress((FIXTURES / f"{name}.model.xz").read_bytes()))
        return path

    return unpack


def structure(name: str) -> Atoms:
    record = RECORDS[name]
    return Atoms(record["numbers"], record["positions"], cell=record["cell"], pbc=True)


def difference(potential: Potential, name: str, head: str = "Default") -> float:
    """The largest deviation of energies of the atoms, forces and stress, each relative to its largest number."""
    use_backend(potential, "reference")
    atoms, expected = structure(name), RECORDS[name]["heads"][head]
    graphs = tuple(from_atoms(atoms, cutoff) for cutoff in potential.cutoffs)
    result = derivatives(potential, graphs, torch.from_numpy(atoms.positions.copy()))
    # MACECalculator's energies of the atoms are without the reference energies
    references = np.array([potential.reference_energies[z] for z in atoms.numbers])
    pairs = [
        (result.energy[0].item() - references.sum(), expected["energy"] - references.sum()),
        (result.node_energy.detach().numpy() - references, np.array(expected["energies"])),
        (result.forces.detach().numpy(), np.array(expected["forces"])),
        (result.stress[0].detach().numpy(), np.array(expected["stress"])),
    ]
    return max(np.abs(ours - theirs).max() / np.abs(theirs).max() for ours, theirs in pairs)


@pytest.mark.parametrize("name, head", CASES)
def test_energies_forces_and_stress_of_mace_torch(models, name, head):
    """The radial table costs up to 2e-8 of the forces; in the float32 file the constants themselves are rounded."""
    potential = import_mace(models(name), head)
    assert potential.dtype == torch.float64
    assert difference(potential, name, head) < (1e-6 if name.endswith("float32") else 1e-7)


def test_fixtures_see_every_part(models):
    """Where a part is taken away, the fixture that has it changes by far more than the tolerance of the test above."""

    def changed(name, change, head="Default"):
        potential = import_mace(models(name), head)
        with torch.no_grad():
            change(potential)
        return difference(potential, name, head)

    def without_highest_correlation(layer):
        def change(potential):
            product = potential.models[0].products[layer]
            for rows, weight in zip(product.table.outputs, product.weights, strict=True):
                orders = [len(product.table.nodes[row].factors) for row in rows]
                weight[:, [k for k, order in enumerate(orders) if order == max(orders)]] = 0.0

        return change

    def without_first(group, parameter):
        return lambda potential: getattr(getattr(potential.models[0], group)[0], parameter).weights[0].zero_()

    def without_repulsion(potential):
        potential.models[1].amplitudes = [0.0] * 4

    assert changed("si_L0", without_highest_correlation(0)) > 1e-3
    assert changed("si_L0", without_highest_correlation(1)) > 1e-5
    assert changed("hco_L1", without_first("interactions", "linear_species")) > 1e-3
    assert changed("sige_L2_density", without_first("interactions", "density")) > 1e-3
    assert changed("sige_L2_density", without_repulsion) > 1e-3
    assert changed("hco_heads", without_repulsion, "pbe") > 1e-3
    assert changed("sige_plain_soft", lambda p: p.models[0].readouts[0].weights[0].zero_()) > 1e-3


def test_file_and_calculator(models, tmp_path):
    """Through our format, the generated operators and float32: forces to single precision."""
    path = import_mace(models("sige_L2_density")).save(tmp_path / "potential")
    assert difference(Potential.load(path), "sige_L2_density") < 1e-7
    atoms, expected = structure("sige_L2_density"), RECORDS["sige_L2_density"]["heads"]["Default"]
    atoms.calc = EquiCalculator(tmp_path / "potential")
    assert atoms.calc.backend == "llvm"
    assert atoms.get_potential_energy() == pytest.approx(expected["energy"], abs=1e-4)
    largest = np.abs(expected["forces"]).max()
    np.testing.assert_allclose(atoms.get_forces(), expected["forces"], atol=1e-4 * largest)


def test_order_of_the_elements_in_the_file(models):
    """A file that lists its elements in another order gives the same potential."""
    path = models("hco_L1")
    source, order = read_torch_file(path), [2, 0, 1]

    def permute(bag: Bag, path: str, axis: int, shape: tuple | None = None):
        owner, _, name = path.rpartition(".")
        table = bag.get(owner).state if owner else bag.state
        for key in ("_parameters", "_buffers"):
            if name in table[key]:
                old = table[key][name]
                values = old if shape is None else old.reshape(shape)
                table[key][name] = values.index_select(axis, torch.tensor(order)).reshape(old.shape)

    permute(source, "atomic_numbers", 0)
    permute(source, "atomic_energies_fn.atomic_energies", 0)
    permute(source, "node_embedding.linear.weight", 0, (3, -1))
    for layer, shapes in enumerate([[(32, 3, 32)], [(32, 3, 32)]]):
        permute(source, f"interactions.{layer}.skip_tp.weight", 1, shapes[0])
        for k in range(2 - layer):
            contraction = source.get(f"products.{layer}.symmetric_contractions.contractions.{k}")
            permute(contraction, "weights_max", 0)
            permute(contraction, "weights.0", 0)
            permute(contraction, "weights.1", 0)
    potential = _potential(source, None, path)
    assert potential.species == (1, 6, 8)
    assert difference(potential, "hco_L1") < 1e-7


@pytest.mark.parametrize("stretch, n_knots", [(1.0, 256), (6.0, 1024)])
def test_tables_are_fine_enough(models, monkeypatch, stretch, n_knots):
    """Rougher radial functions get more knots: slopes of the table are right to 1e-7 of the largest."""
    source = read_torch_file(models("si_128"))
    source.get("interactions.0.conv_tp_weights.layer0.weight").mul_(stretch)
    monkeypatch.setattr("ase_equinn.mace_import.read_torch_file", lambda _: source)
    (model,) = import_mace(models("si_128")).models
    network, step = model.interactions[0].radial, 1e-5
    table, lengths = network.table(Pairs(((0, 0),), None)), torch.linspace(0.5, 3.99, 777, dtype=torch.float64)

    def slope(function):
        return (function(lengths + step) - function(lengths - step)) / (2 * step)

    with torch.no_grad():
        exact = slope(network)
        error = slope(lambda r: table(r) - network(r)).abs().max() / exact.abs().max()
    assert error < 1.5e-7
    assert model.radial.n_knots == model.hyperparameters["radial"]["n_knots"] == n_knots


# Refusals


def test_unsupported_block_is_named(models):
    with pytest.raises(ValueError, match=r"si_nonlinear.model: .*RealAgnosticResidualNonLinearInteractionBlock"):
        import_mace(models("si_nonlinear"))


def test_heads(models):
    path = models("hco_heads")
    with pytest.raises(ValueError, match="hco_heads.model: the model has the heads pbe, r2scan: choose one"):
        import_mace(path)
    with pytest.raises(ValueError, match="there is no head 'scan', the model has pbe, r2scan"):
        import_mace(path, "scan")
    assert import_mace(path, "r2scan").metadata["imported"]["head"] == "r2scan"


def test_other_objects(tmp_path):
    torch.save(torch.nn.Linear(2, 3), tmp_path / "linear.model")
    torch.save({"state_dict": {}}, tmp_path / "dict.model")
    with pytest.raises(ValueError, match="linear.model: it holds a Linear, expected a MACE or ScaleShiftMACE"):
        import_mace(tmp_path / "linear.model")
    with pytest.raises(ValueError, match="dict.model: it holds a dict"):
        import_mace(tmp_path / "dict.model")
    with pytest.raises(FileNotFoundError):
        import_mace(tmp_path / "missing.model")


def replaced(bag: Bag, path: str, value) -> None:
    owner, _, name = path.rpartition(".")
    state = (bag.get(owner) if owner else bag).state
    for key in ("_parameters", "_buffers", "_modules"):
        if name in state[key]:
            state[key][name] = value
            return
    state[name] = value


@pytest.mark.parametrize(
    "path, value, message",
    [
        ("radial_embedding.bessel_fn", Bag("mace.modules.radial.ChebychevBasis"), "block ChebychevBasis"),
        ("radial_embedding.bessel_fn.bessel_weights", torch.arange(8.0), "BesselBasis with trained parameters"),
        ("radial_embedding.distance_transform", Bag("x.Other"), "block Other"),
        ("interactions.0.skip_tp", Bag("cuet.Linear2"), "block Linear2"),
        ("interactions.0.conv_tp", Bag("oeq.TensorProductConv"), "block TensorProductConv"),
        ("interactions.0.linear.bias", torch.ones(3), "or with biases"),
        ("interactions.0.linear.weight", torch.ones(32773), "a Linear with 32773 weights, its irreps want 32768"),
        ("interactions.0.linear.weight", torch.ones(5), "a Linear with 5 weights, its irreps want more"),
        ("interactions.0.avg_num_neighbors", "many", "no number avg_num_neighbors"),
        ("interactions.0.conv_tp_weights.layer0.act.f", Global("torch.relu"), "activation torch.relu"),
        ("products.0.use_sc", False, "without its self-connection"),
        ("products.0.symmetric_contractions", Bag("cuet.SymmetricContraction3"), "block SymmetricContraction3"),
        ("products.0.symmetric_contractions.contractions.0.correlation", 9, "correlations"),
        ("products.0.symmetric_contractions.contractions.0.U_matrix_2", torch.ones(4, 4, 2), "not equivariant"),
        ("readouts.0", Bag("x.NonLinearDipoleReadoutBlock"), "block NonLinearDipoleReadoutBlock"),
        ("spherical_harmonics.irreps_out", "1x0e+1x1e", "irreps 1x0e"),
        ("joint_embedding", Bag("x.GenericJointEmbedding"), "block GenericJointEmbedding"),
        ("pair_repulsion_fn", Bag("x.ZBLBasis"), "ZBLBasis without covalent radii"),
        ("heads", [], "names of the heads"),
        ("atomic_numbers", torch.tensor([200]), ""),
    ],
)
def test_what_cannot_be_represented_is_named(models, monkeypatch, path, value, message):
    source = read_torch_file(models("si_128"))
    replaced(source, path, value)
    monkeypatch.setattr("ase_equinn.mace_import.read_torch_file", lambda _: source)
    with pytest.raises(ValueError, match=f"si_128.model: .*{message}"):
        import_mace(models("si_128"))


def test_incomplete_models_are_refused(models, monkeypatch):
    """Each part is taken away in turn: an error that names the file, or (a part without meaning) the same potential."""
    path, refused = models("si_128"), 0
    names = []

    def visit(bag, prefix):
        for key in ("_parameters", "_buffers", "_modules"):
            names.extend((prefix, key, name) for name in bag.state.get(key, {}))
        for name, child in bag.state.get("_modules", {}).items():
            if isinstance(child, Bag):
                visit(child, f"{prefix}.{name}" if prefix else name)

    visit(read_torch_file(path), "")
    for prefix, key, name in names[:: max(1, len(names) // 25)]:
        source = read_torch_file(path)
        del (source.get(prefix) if prefix else source).state[key][name]
        monkeypatch.setattr("ase_equinn.mace_import.read_torch_file", lambda _, source=source: source)
        try:
            assert difference(import_mace(path), "si_128") < 1e-7, (prefix, name)
        except ValueError as error:
            assert "si_128.model: " in str(error)
            refused += 1
    assert refused > 8


# Command


def test_command(models, tmp_path):
    run, out = CliRunner(), tmp_path / "potential"
    command = ["import", "mace", str(models("hco_heads")), "-o", str(out)]
    result = run.invoke(app, command)
    assert result.exit_code == 2 and "pbe, r2scan" in result.output and not out.exists()
    result = run.invoke(app, [*command, "--head", "pbe"])
    assert result.exit_code == 0, result.output
    assert "mace" in result.output and "zbl" in result.output
    assert difference(Potential.load(out), "hco_heads", "pbe") < 1e-7
    result = run.invoke(app, [*command, "--head", "r2scan"])
    assert result.exit_code == 2 and "exists" in result.output
    assert run.invoke(app, [*command, "--head", "r2scan", "--overwrite"]).exit_code == 0
    assert difference(Potential.load(out), "hco_heads", "r2scan") < 1e-7


def test_malicious_file(tmp_path):
    import zipfile

    marker = tmp_path / "marker"
    with zipfile.ZipFile(tmp_path / "bad.model", "w") as file:
        file.writestr("a/data.pkl", b"cos\nsystem\n(S'touch " + str(marker).encode() + b"'\ntR.")
    result = CliRunner().invoke(app, ["import", "mace", str(tmp_path / "bad.model"), "-o", str(tmp_path / "out")])
    assert result.exit_code == 2 and "it holds a system" in result.output.replace("\n", " ")
    assert not marker.exists() and not (tmp_path / "out").exists()
