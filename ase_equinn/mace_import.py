"""A trained MACE model of mace-torch becomes a Potential: same energies, forces and stress, without mace-torch."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch

from .irreps import Irreps
from .mace_blocks import INTERACTIONS, activation, head_index, irreps, layers, natural, number, part, radial_options
from .mace_blocks import repulsion, tensor
from .mace_file import read_torch_file
from .mace_objects import Bag
from .mace_weights import transfer
from .models.mace import MACE
from .nn_pairs import Pairs
from .potential import Potential
from .potential_build import build_model
from .terms.zbl import COULOMB, ZBL

MAX_CORRELATION = 4
KNOT_TOLERANCE = 1e-7
MAX_KNOTS = 2048
MAX_PAIRS = 5  # of an element with itself, whose radial functions are looked at


def import_mace(path: str | os.PathLike, head: str | None = None) -> Potential:
    """The potential that a `.model` file of mace-torch holds, in float64; nothing in the file is executed.

    Args:
        path: what mace-torch's training writes, or any torch.save of a MACE or ScaleShiftMACE.
        head: name of the head; needed if there are several.

    Returns:
        A MACE, and a ZBL term if the model has a pair repulsion.

    Raises:
        ValueError: not such a file, no such head, or a block that models.mace does not have: the message names it.

    Source: Batatia et al., NeurIPS 2022, arXiv:2206.07697.
    """
    source = read_torch_file(path)
    try:
        return _potential(source, head, path)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error
    except Exception as error:  # whatever else a bag can hold is the file's fault
        raise ValueError(f"{os.fspath(path)}: not a model that can be imported: {str(error)[:500]!r}") from error


def _potential(source, head: str | None, path: str | os.PathLike) -> Potential:
    if not isinstance(source, Bag) or source.kind not in ("MACE", "ScaleShiftMACE"):
        kind = source.kind if isinstance(source, Bag) else type(source).__name__
        raise ValueError(f"it holds a {kind}, expected a MACE or ScaleShiftMACE of mace-torch")
    if source.get("joint_embedding") is not None:
        raise ValueError(f"the block {source.get('joint_embedding').kind} (joint_embedding) is not supported")
    index, heads = head_index(source, head)
    numbers = tensor(source, "atomic_numbers").tolist()
    order = sorted(range(len(numbers)), key=numbers.__getitem__)
    species = [numbers[k] for k in order]
    hyperparameters, n_elements = _hyperparameters(source, species), os.path.getsize(path) // 4
    model = build_model("mace", MACE, hyperparameters, n_elements).double()
    transfer(source, model, order, index)
    terms = [_with_enough_knots(model)]
    block = repulsion(source, species)
    if block is not None:
        terms.append(_zbl(block, species))
    references = torch.atleast_2d(tensor(source, "atomic_energies_fn.atomic_energies"))[index]
    scale, shift = 1.0, 0.0
    if source.kind == "ScaleShiftMACE":
        scale, shift = (_of_head(tensor(source, f"scale_shift.{name}"), index) for name in ("scale", "shift"))
    return Potential(
        terms,
        reference_energies={z: references[k].item() for z, k in zip(species, order)},
        scale=scale,
        shift=shift,
        metadata={
            "imported": {
                "file": Path(path).name,
                "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest(),
                "model": source.name,
                "head": heads[index],
            }
        },
    ).eval()


def _with_enough_knots(model: MACE) -> MACE:
    """The same model with tables of its radial functions so fine that their slopes are right to KNOT_TOLERANCE."""
    while _slope_error(model) > KNOT_TOLERANCE and model.radial.n_knots < MAX_KNOTS:
        options = {**model.hyperparameters["radial"], "n_knots": 2 * model.radial.n_knots}
        weights = model.state_dict()
        model = MACE(**{**model.hyperparameters, "radial": options}).double()
        model.load_state_dict(weights)
    return model


@torch.no_grad()
def _slope_error(model: MACE) -> float:
    """The largest error of a slope in the tables, relative to the largest slope of its network, from 0.5 A to the cutoff.

    Central differences with a step far below the distance of knots: 1e-11 of the slope is their round-off.
    """
    step, errors = 1e-5 * model.cutoff, [0.0]
    lengths = torch.linspace(min(0.5, 0.1 * model.cutoff), model.cutoff - step, 2003, dtype=torch.float64)
    both = torch.cat([lengths + step, lengths - step])
    n_pairs = 1 if model.radial.transform is None else min(len(model.species), MAX_PAIRS)
    for interaction in model.interactions:
        for network in filter(None, (interaction.radial, interaction.density)):
            for pair in ((k, k) for k in range(n_pairs)):
                exact = network(both, pair)
                error = network.table(Pairs((pair,), None))(both) - exact
                largest, scale = ((x[:2003] - x[2003:]).abs().max().item() for x in (error, exact))
                errors.append(largest / max(scale, 1e-300))
    return max(errors)


def _of_head(value: torch.Tensor, head: int) -> float:
    return value.reshape(-1)[head if value.numel() > 1 else 0].item()


def _hyperparameters(source: Bag, species: list[int]) -> dict:
    """Of the MACE with the same function."""
    blocks = layers(source)
    spherical = natural(irreps(source, "spherical_harmonics.irreps_out"), "spherical_harmonics")
    hidden = [natural(irreps(product, "linear.irreps_out"), "products") for _, product in blocks]
    n_channels = hidden[0].count(0, 1)
    wanted = Irreps([(n_channels, l, p) for _, l, p in spherical])
    for interaction, product in blocks:
        if irreps(interaction, "linear.irreps_out") != wanted:
            raise ValueError(
                f"messages {irreps(interaction, 'linear.irreps_out')} are not supported, only {wanted} are"
            )
        if "Residual" in interaction.kind and product.get("use_sc") is not True:
            raise ValueError("a residual block without its self-connection is not supported")
    edge = [natural(irreps(interaction, "linear_up.irreps_out"), "linear_up") for interaction, _ in blocks]
    default = [Irreps([(n_channels, 0, 1)]), *hidden[:-1]]
    neighbors = {number(interaction, "avg_num_neighbors") for interaction, _ in blocks}
    if len(neighbors) > 1:
        raise ValueError(f"layers with different numbers of neighbours {sorted(neighbors)} are not supported")
    return dict(
        species=species,
        cutoff=number(source, "r_max"),
        avg_num_neighbors=neighbors.pop(),
        n_layers=len(blocks),
        irreps_hidden=[str(term) for term in hidden],
        lmax=spherical.lmax,
        correlation=[_correlation(product) for _, product in blocks],
        interactions=[INTERACTIONS[interaction.kind] for interaction, _ in blocks],
        irreps_edge=None if edge == default else [str(term) for term in edge],
        radial=radial_options(source, species),
        readout=_readout(source, len(blocks)),
    )


def _correlation(product: Bag) -> int:
    contractions = part(product, "symmetric_contractions", "SymmetricContraction").get("contractions").children()
    orders = {int(contraction.get("correlation")) for contraction in contractions}
    if len(orders) != 1 or not 1 <= max(orders) <= MAX_CORRELATION:
        raise ValueError(f"correlations {sorted(orders)} are not supported, only one of 1 to {MAX_CORRELATION}")
    return orders.pop()


def _readout(source: Bag, n_layers: int) -> dict:
    blocks = source.get("readouts").children()
    if len(blocks) not in (1, n_layers):
        raise ValueError(f"{len(blocks)} readouts of {n_layers} layers are not supported")
    fields = dict(last_only=len(blocks) < n_layers)
    if n_layers > 1:
        last = part(source, f"readouts.{len(blocks) - 1}", "NonLinearReadoutBlock")
        width = irreps(last, "hidden_irreps").count(0, 1) // len(source.get("heads", ["Default"]))
        fields |= dict(width=width, activation=activation(last, "non_linearity.acts.0")[0])
    return fields


def _zbl(block: Bag, species: list[int]) -> ZBL:
    """mace-torch's constants: 0.529 A for the Bohr radius, 14.3996 eV A, decays that are not in the file."""
    return ZBL(
        species,
        envelope_power=int(number(block, "p")),
        radii=tensor(block, "covalent_radii")[species].tolist(),
        length=number(block, "a_prefactor") * 0.529,
        exponent=number(block, "a_exp"),
        amplitudes=(tensor(block, "c") * (14.3996 / COULOMB)).tolist(),
        decays=(3.2, 0.9423, 0.4028, 0.2016),
    ).double()
