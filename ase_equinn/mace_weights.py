"""The weights of a mace-torch model in the places and normalisations of models.mace.

mace-torch sees the vector from neighbour to centre, ours is its negative: Y_l changes by (-1)^l, which goes into the last
matrix of the radial network. Constants by which e3nn scales activations (drawn at random, 1.6792 for SiLU) become ours by
way of the matrix after them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .mace_blocks import activation, irreps, layers, part, radial_layers, tensor
from .mace_objects import Bag
from .nn import Linear, second_moment_factor

FACTORS = {
    "silu": second_moment_factor(nn.functional.silu),
    "tanh": second_moment_factor(torch.tanh),
    "abs": 1.0,
    "none": 1.0,
}


def transfer(source: Bag, model: nn.Module, order: list[int], head: int) -> None:
    """Writes the weights of `source` into `model`.

    Args:
        source: the MACE or ScaleShiftMACE.
        model: a models.mace.MACE in float64 with the same hyper-parameters.
        order: for each of the model's species its place in the source.
        head: number of the head.

    Raises:
        ValueError: weights that are missing or have another shape.
    """
    n_source = tensor(source, "atomic_numbers").numel()
    embedding = tensor(part(source, "node_embedding", "LinearNodeEmbeddingBlock"), "linear.weight")
    _put(model.embedding, embedding.reshape(n_source, -1)[order] / n_source**0.5, "node_embedding")
    for k, (interaction, product) in enumerate(layers(source)):
        target = model.interactions[k]
        _put_linear(target.linear_in, part(interaction, "linear_up", "Linear"))
        _put_linear(target.linear_out, part(interaction, "linear", "Linear"))
        _put_species(
            target.linear_species, part(interaction, "skip_tp", "FullyConnectedTensorProduct"), order, n_source
        )
        part(interaction, "conv_tp", "TensorProduct")
        _put_radial(target, interaction)
        if target.density is not None:
            (layer,) = part(interaction, "density_fn", "FullyConnectedNet").children()
            _put(target.density.weights[0], tensor(layer, "weight"), "density_fn")
        _put_product(model.products[k], product, order)
    _put_readouts(source, model, head)


def _put(parameter: nn.Parameter, value: Tensor, name: str) -> None:
    if parameter.shape != value.shape:
        raise ValueError(f"{name} has weights of shape {tuple(value.shape)}, expected {tuple(parameter.shape)}")
    with torch.no_grad():
        parameter.copy_(value)


def _blocks(source: Bag, n_between: int = 1) -> dict[tuple[int, int], Tensor]:
    """The matrix of each output irrep (mul_in, n_between, mul_out); inputs of the same irrep are stacked."""
    first = irreps(source, "irreps_in" if source.kind == "Linear" else "irreps_in1")
    flat, start, found = tensor(source, "weight"), 0, {}
    for mul, l, p in first:
        for mul_out, l_out, p_out in irreps(source, "irreps_out"):
            if (l, p) == (l_out, p_out):
                size = mul * n_between * mul_out
                if start + size > flat.numel():
                    raise ValueError(f"a {source.kind} with {flat.numel()} weights, its irreps want more")
                block = flat[start : start + size].reshape(mul, n_between, mul_out)
                found.setdefault((l, p), []).append(block)
                start += size
    bias = source.get("bias")
    if start != flat.numel() or (isinstance(bias, Tensor) and bias.numel()):
        raise ValueError(f"a {source.kind} with {flat.numel()} weights, its irreps want {start}, or with biases")
    return {key: torch.cat(parts) for key, parts in found.items()}


def _put_linear(target: Linear, source: Bag) -> None:
    blocks, weights = _blocks(source), iter(target.weights)
    for i_in, (_, l, p) in zip(target.source, target.irreps_out):
        if i_in is not None:
            _put(next(weights), blocks[l, p][:, 0], source.kind)


def _put_species(target: Linear, source: Bag, order: list[int], n_source: int) -> None:
    blocks, weights = _blocks(source, n_source), iter(target.weights)
    for _, l, p in target.irreps_out:
        _put(next(weights), blocks[l, p].permute(1, 0, 2)[order] / n_source**0.5, source.kind)


def _put_radial(target: nn.Module, source: Bag) -> None:
    factor, network = 1.0, radial_layers(source)
    if len(network) != len(target.radial.weights):
        raise ValueError(f"radial networks of different depth are not supported: {len(network)} layers")
    sign = torch.ones(target.paths.n_weights, dtype=torch.float64)
    for path in target.paths.paths:
        sign[path.weight : path.weight + path.mul] = (-1) ** path.l_sh
    for k, (layer, parameter) in enumerate(zip(network, target.radial.weights)):
        last = k == len(network) - 1
        _put(parameter, tensor(layer, "weight") * factor * (sign if last else 1.0), "conv_tp_weights")
        name, constant = activation(layer, "act")
        if name != ("none" if last else "silu"):
            raise ValueError(f"the activation {name} of a radial network is not supported, only silu is")
        factor = constant / FACTORS[name]


def _put_product(target: nn.Module, source: Bag, order: list[int]) -> None:
    block = part(source, "symmetric_contractions", "SymmetricContraction")
    contractions = block.get("contractions").children()
    if len(contractions) != len(target.weights):
        raise ValueError(f"a SymmetricContraction with {len(contractions)} outputs, expected {len(target.weights)}")
    for k, contraction in enumerate(contractions):
        n = int(contraction.get("correlation"))
        couplings = [tensor(contraction, f"U_matrix_{degree}").numpy() for degree in range(1, n + 1)]
        weights = [tensor(contraction, f"weights.{n - 1 - degree}") for degree in range(1, n)]
        weights.append(tensor(contraction, "weights_max"))
        weights = [w.expand(len(order), -1, -1) if w.shape[0] == 1 else w[order] for w in weights]
        _put(target.weights[k], target.table.weights_from(k, couplings, weights), "symmetric_contractions")
    _put_linear(target.linear, part(source, "linear", "Linear"))


def _put_readouts(source: Bag, model: nn.Module, head: int) -> None:
    n_heads = len(source.get("heads", ["Default"]))
    for k, target in enumerate(model.readouts):
        nonlinear = len(target.weights) == 2
        block = part(source, f"readouts.{k}", "NonLinearReadoutBlock" if nonlinear else "LinearReadoutBlock")
        first = _blocks(part(block, "linear_1" if nonlinear else "linear", "Linear"))[0, 1][:, 0]
        own = slice(head * first.shape[1] // n_heads, (head + 1) * first.shape[1] // n_heads)
        _put(target.weights[0], first[:, own] / first.shape[0] ** 0.5, block.kind)
        if nonlinear:
            name, constant = activation(block, "non_linearity.acts.0")
            second = _blocks(part(block, "linear_2", "Linear"))[0, 1][own, 0, head : head + 1]
            factor = constant / FACTORS[name] / first.shape[1] ** 0.5
            _put(target.weights[1], second * factor, block.kind)
