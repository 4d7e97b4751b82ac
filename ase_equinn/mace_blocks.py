"""What the blocks of a mace-torch model say, checked to be ones that models.mace represents; anything else is named."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from .irreps import Irreps
from .mace_objects import Bag, Global

INTERACTIONS = {
    "RealAgnosticInteractionBlock": "agnostic",
    "RealAgnosticResidualInteractionBlock": "residual",
    "RealAgnosticDensityInteractionBlock": "agnostic density",
    "RealAgnosticDensityResidualInteractionBlock": "residual density",
}
ACTIVATIONS = ("silu", "tanh", "abs")
_MISSING = object()


def part(bag: Bag, path: str, *kinds: str) -> Bag:
    """A submodule, of one of these classes.

    Raises:
        ValueError: it is missing, or another class: the message names it.
    """
    found = bag.get(path)
    if not isinstance(found, Bag):
        raise ValueError(f"the {bag.kind} has no {path}")
    if found.kind not in kinds:
        raise ValueError(f"the block {found.kind} ({path}) is not supported, only {', '.join(kinds)} are")
    return found


def tensor(bag: Bag, path: str) -> Tensor:
    """A parameter or buffer, float64 if it is floating."""
    found = bag.get(path)
    if not isinstance(found, Tensor):
        raise ValueError(f"the {bag.kind} has no tensor {path}")
    return found.double() if found.is_floating_point() else found


def number(bag: Bag, path: str) -> float:
    found = bag.get(path)
    value = found.item() if isinstance(found, Tensor) and found.numel() == 1 else found
    if type(value) not in (int, float):
        raise ValueError(f"the {bag.kind} has no number {path}")
    return value


def irreps(bag: Bag, path: str) -> Irreps:
    """Irreps, saved by e3nn as an object or as text."""
    found = bag.get(path)
    if isinstance(found, str):
        return Irreps(found)
    try:
        return Irreps([(term.args[0][0], *term.args[0][1].args[0]) for term in found.args[0]])
    except (AttributeError, IndexError, TypeError):
        raise ValueError(f"the {bag.kind} has no irreps {path}") from None


def natural(value: Irreps, where: str) -> Irreps:
    """The same irreps, if they are of parity (-1)^l and in ascending order, one term for each l."""
    if value != value.simplify() or any(p != (-1) ** l for _, l, p in value):
        raise ValueError(f"{where} has the irreps {value}; only 0e, 1o, 2e, ... in this order are supported")
    return value


def layers(model: Bag) -> list[tuple[Bag, Bag]]:
    """Interaction and product block of each layer."""
    interactions, products = model.get("interactions"), model.get("products")
    n_layers = len(interactions.children()) if isinstance(interactions, Bag) else 0
    if not n_layers or not isinstance(products, Bag) or len(products.children()) != n_layers:
        raise ValueError(f"the {model.kind} has no interactions, or not as many products")
    return [
        (part(model, f"interactions.{k}", *INTERACTIONS), part(model, f"products.{k}", "EquivariantProductBasisBlock"))
        for k in range(n_layers)
    ]


def activation(layer: Bag, path: str) -> tuple[str, float]:
    """Name and factor of an activation that e3nn has normalised; ("none", 1.0) if there is none."""
    found = layer.get(path, _MISSING)
    if found is None:
        return "none", 1.0
    function = found.get("f") if isinstance(found, Bag) else None
    name = function.name if isinstance(function, Global | Bag) else str(function)
    short = name.rpartition(".")[2].lower()
    if not isinstance(found, Bag) or found.kind != "normalize2mom" or short not in ACTIVATIONS:
        raise ValueError(f"the activation {name} ({path}) is not supported, only {', '.join(ACTIVATIONS)} are")
    return short, 1.0 if found.get("_is_id") else number(found, "cst")


def radial_options(model: Bag, species: list[int]) -> dict:
    """The fields of nn_radial.RadialOptions."""
    embedding = part(model, "radial_embedding", "RadialEmbeddingBlock")
    basis = part(embedding, "bessel_fn", "BesselBasis", "GaussianBasis")
    envelope = part(embedding, "cutoff_fn", "PolynomialCutoff")
    cutoff = number(model, "r_max")
    name = "bessel" if basis.kind == "BesselBasis" else "gaussian"
    values = tensor(basis, f"{name}_weights").numpy()
    n = len(values)
    expected = np.pi * np.arange(1, n + 1) / cutoff if name == "bessel" else np.linspace(0.0, cutoff, n)
    if not np.allclose(values, expected, rtol=1e-6, atol=1e-6) or abs(number(envelope, "r_max") - cutoff) > 1e-6:
        raise ValueError(f"a {basis.kind} with trained parameters is not supported: {values.tolist()}")
    hidden = [tensor(layer, "weight").shape[1] for layer in radial_layers(model.get("interactions.0"))[:-1]]
    options = dict(
        n_basis=n,
        basis=name,
        envelope_power=int(number(envelope, "p")),
        envelope_last=embedding.get("apply_cutoff", True) is False,
        hidden=hidden,
    )
    if embedding.get("distance_transform") is not None:
        transform = part(embedding, "distance_transform", "AgnesiTransform", "SoftTransform")
        agnesi = transform.kind == "AgnesiTransform"
        options["transform"] = "agnesi" if agnesi else "soft"
        options["parameters"] = [number(transform, key) for key in (("q", "p", "a") if agnesi else ("alpha",))]
        options["radii"] = tensor(transform, "covalent_radii")[species].tolist()
    return options


def radial_layers(interaction: Bag) -> list[Bag]:
    """The linear layers of the radial network."""
    network = part(interaction, "conv_tp_weights", "FullyConnectedNet")
    if any(layer.kind != "_Layer" for layer in network.children()):
        raise ValueError("a FullyConnectedNet with other layers than e3nn's is not supported")
    shapes = [tensor(layer, "weight").shape for layer in network.children()]
    if network.get("hs") != [shapes[0][0], *(shape[1] for shape in shapes)]:
        raise ValueError(f"a FullyConnectedNet whose layers are not of the sizes {network.get('hs')}")
    return network.children()


def repulsion(model: Bag, species: list[int]) -> Bag | None:
    """The block of the pair repulsion, if the model has one."""
    if model.get("pair_repulsion_fn") is None and not model.get("pair_repulsion"):
        return None
    block = part(model, "pair_repulsion_fn", "ZBLBasis")
    if block.get("covalent_radii") is None:
        raise ValueError("a ZBLBasis without covalent radii (mace-torch before 0.3.6) is not supported")
    return block


def head_index(model: Bag, head: str | None) -> tuple[int, list[str]]:
    """Which head is wanted, and their names.

    Raises:
        ValueError: there are several and none is chosen, or there is none of this name.
    """
    heads: Any = model.get("heads", ["Default"])
    if not isinstance(heads, list) or not heads or not all(isinstance(name, str) for name in heads):
        raise ValueError("the names of the heads cannot be read")
    if head is None and len(heads) > 1:
        raise ValueError(f"the model has the heads {', '.join(heads)}: choose one")
    if head is not None and head not in heads:
        raise ValueError(f"there is no head {head!r}, the model has {', '.join(heads)}")
    return (0 if head is None else heads.index(head)), heads
