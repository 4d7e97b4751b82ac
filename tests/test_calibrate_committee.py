"""A committee calibrated, stored and guarded: on copper, by members whose errors are known factors of the truth."""

import pickle

import numpy as np
import pytest
import torch
import toy
from ase.io import read
from labelled import copper, save

from ase_equinn import Committee, EquiCalculator, Potential, evaluate, read_header
from ase_equinn.calculator_guard import UncertainForces
from ase_equinn.calibrate import calibrate, judge_uncertainty
from ase_equinn.calibrate_committee import (
    calibrate_committee,
    calibrate_committee_files,
    judge_committee,
    spread_errors,
)
from ase_equinn.data import file_sha256, read_frames

SCALES = (1.1, 1.2, 1.3)  # of the members, where the truth has 1: mean error 0.2, standard deviation 0.1


@pytest.fixture(scope="module", autouse=True)
def toys():
    """Models without kernels: nothing is compiled."""
    with pytest.MonkeyPatch.context() as patch:
        toy.register(patch)
        yield


def pair(seed=0, scale=1.0, species=(29,), cutoff=4.0) -> Potential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Potential(toy.Pair(species, cutoff), scale=scale)


def labelled(images, folder, name):
    """The images with the truth's forces, whatever EMT says, as a file."""
    calc = EquiCalculator(pair(), device="cpu", dtype="float64")
    for atoms in images:
        atoms.arrays["REF_forces"] = calc.get_forces(atoms)
    return save(folder / name, images)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Labelled frames, and the members."""
    folder = tmp_path_factory.mktemp("committee")
    found = {
        name: labelled(copper(n, seed), folder, f"{name}.xyz") for name, n, seed in (("valid", 20, 0), ("test", 8, 1))
    }
    return found | {"members": [str(pair(scale=s).save(folder / f"member{s}").parent) for s in SCALES]}


@pytest.fixture(scope="module")
def frames(files):
    return {name: read_frames(files[name]).frames for name in ("valid", "test")}


@pytest.fixture(scope="module")
def committee(files, frames) -> Committee:
    return calibrate_committee(files["members"], frames["valid"], device="cpu")


# ---- calibration


def test_spread_and_error_of_known_factors(files, frames):
    """F_m = s_m F: the spread is std(s) |F|, the error of the mean (mean(s) - 1) |F|."""
    numbers, spread, errors = spread_errors(files["members"], frames["test"], device="cpu", dtype="float64")
    size = np.concatenate([np.linalg.norm(frame.forces, axis=1) for frame in frames["test"]])
    np.testing.assert_allclose(spread, 0.1 * size, rtol=1e-5)  # files of extended XYZ have eight digits
    np.testing.assert_allclose(errors, 0.2 * size, atol=1e-6 * size.max())
    assert numbers.tolist() == [29] * 32


def test_the_factor_is_that_of_the_members(committee, frames):
    """Every error is twice the spread; float32 and the least floor, 2 % of the errors' rms, change little."""
    steps = []
    found = calibrate_committee(
        committee, frames["valid"], device="cpu", dtype="float64", report=lambda *step: steps.append(step)
    )
    assert found.spread.factors[29] == pytest.approx(2.0, rel=1e-3)
    assert committee.spread.factors[29] == pytest.approx(2.0, rel=1e-2)
    judged = found.spread.facts["valid"]
    assert judged["n_atoms"] == 80 and judged["rank_correlation"] > 0.999
    assert found.spread.floor == pytest.approx(0.02 * judged["error_rms"], rel=0.1)
    assert judged["sigma_rms"] == pytest.approx(judged["error_rms"], rel=1e-3)
    assert judged["largest"] == found.spread.largest
    assert {step[0] for step in steps} == {"member 0", "member 1", "member 2"} and steps[-1] == ("member 2", 20, 20)
    tested = judge_committee(found, frames["test"], device="cpu", dtype="float64")
    assert tested["sigma_rms"] == pytest.approx(tested["error_rms"], rel=1e-3)


def test_what_cannot_be_calibrated(files, frames, committee):
    def refused(message, members=files["members"], valid=frames["valid"], error=ValueError):
        with pytest.raises(error, match=message):
            calibrate_committee(members, valid, device="cpu")

    refused("none of 20 frames has forces", valid=[frame._replace(forces=None) for frame in frames["valid"]])
    refused("none of 0 frames has forces", valid=[])
    refused("a committee has 3 to 100 potentials, got 2", files["members"][:2])
    refused("a committee has 3 to 100 potentials, got 1", files["members"][0])
    refused("at least one potential", [])
    refused("members 0 and 2 have the same weights", [*files["members"][:2], files["members"][0]])
    refused(
        r"member 0 knows the elements \(29,\), member 2 knows \(29, 79\)",
        [*files["members"][:2], pair(species=(29, 79))],
    )
    refused("a list holds single potentials, and <Committee of 3.* is a committee", [committee, *files["members"]])
    refused("must be a path, .* got 7", [*files["members"], 7], error=TypeError)
    with pytest.raises(ValueError, match="member1.1 is no calibrated committee"):
        judge_committee(files["members"][0], frames["valid"], device="cpu")


def test_a_damaged_member_is_named(files, frames, tmp_path):
    data = bytearray((pair(5).save(tmp_path / "broken")).read_bytes())
    data[-1] ^= 1
    (tmp_path / "broken/model.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match="broken/model.safetensors: damaged: sha256"):
        calibrate_committee([*files["members"][:2], tmp_path / "broken"], frames["valid"], device="cpu")


# ---- as a file


def test_files_in_and_one_file_out(files, tmp_path):
    path, judged = calibrate_committee_files(
        files["members"], [files["valid"]], tmp_path / "out", test=[files["test"]], device="cpu"
    )
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["model.safetensors"]
    facts = read_header(path)["spread"]["facts"]
    assert set(judged) == {"valid", "test"} and facts["test"] == judged["test"]
    assert facts["files"]["valid"] == [{"file": "valid.xyz", "sha256": file_sha256(files["valid"])}]
    hashes = [read_header(name)["sha256"] for name in files["members"]]
    assert facts["files"]["members"] == [{"file": f, "sha256": h} for f, h in zip(files["members"], hashes)]
    again, _ = calibrate_committee_files([str(path)], [files["test"]], tmp_path / "again", device="cpu")
    found = read_header(again)
    assert found["members"] == read_header(path)["members"]
    assert found["spread"]["facts"]["valid"]["n_atoms"] == 32
    with pytest.raises(ValueError, match="a committee of 3 potentials, not one"):
        calibrate(path, [], [], device="cpu")
    with pytest.raises(ValueError, match="a committee of 3 potentials, not one"):
        judge_uncertainty(path, [], device="cpu")


# ---- in a calculator


def test_forces_sigma_is_the_calibrated_one(files, frames, committee, tmp_path):
    committee.save(tmp_path)
    calc, plain = (EquiCalculator(model, device="cpu") for model in (str(tmp_path), files["members"]))
    for frame in frames["test"][:3]:
        atoms = frame.atoms
        for name in ("energy", "forces", "stress", "forces_std", "energy_std"):
            np.testing.assert_array_equal(calc.get_property(name, atoms), plain.get_property(name, atoms))
        spread = plain.get_property("forces_sigma", atoms)
        expected = np.hypot(committee.spread.floor, committee.spread.factors[29] * spread)
        np.testing.assert_allclose(calc.get_property("forces_sigma", atoms), expected, rtol=1e-12)
        error = np.linalg.norm(calc.get_forces(atoms) - frame.forces, axis=1)
        np.testing.assert_allclose(calc.get_property("forces_sigma", atoms), error, rtol=0.1, atol=0.05 * error.max())
    given = EquiCalculator(committee, device="cpu")
    np.testing.assert_array_equal(given.get_property("forces_sigma", atoms), calc.get_property("forces_sigma", atoms))
    assert given.todict()["model"].startswith("<Committee of 3: <Potential Pair for Z = 29>")


def test_it_survives_pickling_and_set(files, committee, frames, tmp_path):
    committee.save(tmp_path)
    atoms = frames["test"][0].atoms
    calc = EquiCalculator(tmp_path, device="cpu", guard="stop")
    sigma = calc.get_property("forces_sigma", atoms)
    twins = [pickle.loads(pickle.dumps(calc)), EquiCalculator(**calc.todict())]
    for twin in twins:
        twin.reset()
        np.testing.assert_array_equal(twin.get_property("forces_sigma", atoms), sigma)
        assert twin._guard.threshold == calc._guard.threshold == 2 * committee.spread.largest
    with pytest.raises(ValueError, match="equinn calibrate A B C makes a committee"):
        calc.set(model=files["members"])  # a list has no threshold of its own
    np.testing.assert_array_equal(calc.get_property("forces_sigma", atoms), sigma)
    calc.set(model=files["members"], guard=None)
    assert calc.get_property("forces_sigma", atoms).max() < 0.6 * sigma.max()
    calc.set(dtype="float64", model=tmp_path)
    np.testing.assert_allclose(calc.get_property("forces_sigma", atoms), sigma, rtol=1e-3)


def test_the_guard_stops_where_members_disagree(committee, frames, tmp_path):
    committee.save(tmp_path / "model")
    file = tmp_path / "uncertain.xyz"
    calc = EquiCalculator(tmp_path / "model", device="cpu", guard="stop", guard_file=file)
    atoms = frames["valid"][0].atoms.copy()
    assert np.isfinite(calc.get_forces(atoms)).all() and not file.exists()
    atoms.positions[1] += 0.55 * (atoms.positions[0] - atoms.positions[1])
    with pytest.raises(UncertainForces, match=r"forces on \d of 4 atoms .*atom \d \(Cu\).*uncertain.xyz"):
        calc.get_forces(atoms)
    saved = read(file)
    assert saved.arrays["forces_sigma"].max() > 2 * committee.spread.largest
    calc.set(guard_threshold=2 * saved.arrays["forces_sigma"].max())
    assert np.isfinite(calc.get_forces(atoms)).all()


# ---- as a batch


def test_batches_give_the_mean(tmp_path):
    """Members with other cutoffs: the graphs of each are its own."""
    images = copper(3, 0)
    images[1] *= (2, 1, 1)
    members = [pair(0), pair(1, cutoff=5.0)]
    with torch.random.fork_rng():
        torch.manual_seed(2)
        members.append(Potential([toy.Pair([29], 4.5).double(), toy.Embedded([29], 3.5).double()], shift=2.0))
    calc = EquiCalculator(members, device="cpu", dtype="float64")
    found = evaluate(images, members, device="cpu", dtype="float64", progress=False)
    energies = evaluate(images, members, ["energies"], device="cpu", dtype="float64", progress=False)
    for atoms, result, energy in zip(images, found, energies, strict=True):
        for name, value in result.items():
            np.testing.assert_allclose(value, calc.get_property(name, atoms), rtol=1e-10, atol=1e-10, err_msg=name)
        np.testing.assert_allclose(energy["energies"], result["energies"], rtol=1e-10)
    with pytest.raises(ValueError, match="no species in common"):
        evaluate(images, [pair(0), pair(1, species=(79,))], device="cpu", progress=False)
