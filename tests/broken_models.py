"""A sound model and, derived from it, models with one defect each; tests/test_contract.py says which test sees it."""

import numpy as np
import torch

from ase_equinn.models.schnet import SchNet


class Sound(SchNet):
    """The models below differ from this one in a single line."""

    def __init__(self, species=(1, 6, 8), cutoff=4.0, n_channels=4):
        super().__init__(species, cutoff, n_channels=n_channels, n_layers=2, n_basis=6)
        self.hyperparameters = dict(species=list(species), cutoff=cutoff, n_channels=n_channels)
        torch.nn.init.normal_(self.readout[0].bias)
        self.extend()

    def extend(self):
        """More to construct."""

    def edge_sum(self, graph, values):
        return values.new_zeros(len(graph.numbers)).index_add(0, graph.edge_index[0], values)

    def inside(self, graph, vectors):
        """A smooth weight of each edge that vanishes at the cutoff."""
        return (1 - (vectors / self.cutoff).square().sum(1)).clamp(min=0) ** 3


class Anisotropic(Sound):
    def forward(self, graph, vectors):
        return super().forward(graph, vectors) + self.edge_sum(graph, self.inside(graph, vectors) * vectors[:, 2] ** 2)


class Chiral(Sound):
    """Adds (a x b) . c, where a, b, c are weighted sums of the neighbours' vectors: odd under reflection."""

    def forward(self, graph, vectors):
        weight = self.inside(graph, vectors)[:, None]
        sums = [
            vectors.new_zeros(len(graph.numbers), 3).index_add(0, graph.edge_index[0], vectors * weight**k)
            for k in (1, 2, 3)
        ]
        return super().forward(graph, vectors) + (torch.linalg.cross(sums[0], sums[1]) * sums[2]).sum(1)


class CountsImages(Sound):
    def forward(self, graph, vectors):
        return super().forward(graph, vectors) + self.edge_sum(graph, graph.shift.abs().sum(1).to(vectors.dtype))


class KnowsTheVolume(Sound):
    def forward(self, graph, vectors):
        volume = torch.linalg.det(graph.cell).abs()[graph.batch].to(vectors.dtype)
        return super().forward(graph, vectors) + 1e-3 * volume


class KnowsTheOrder(Sound):
    def forward(self, graph, vectors):
        factor = 1 + 1e-3 * torch.arange(len(graph.numbers), device=vectors.device)
        return super().forward(graph, vectors) * factor.to(vectors.dtype)


class CapsNeighbours(Sound):
    """The first 20 edges of each atom count, as in a neighbour search with a limit."""

    def forward(self, graph, vectors):
        rank = torch.arange(len(vectors)) - graph.row_ptr[graph.edge_index[0]]
        return super().forward(graph, torch.where((rank < 20)[:, None], vectors, self.cutoff))


class NormalisesTheBatch(Sound):
    def forward(self, graph, vectors):
        energy = super().forward(graph, vectors)
        return energy - energy.mean() if len(energy) else energy


class NormalisesTheStructure(Sound):
    def forward(self, graph, vectors):
        energy = super().forward(graph, vectors)
        count = torch.bincount(graph.batch, minlength=graph.n_graphs)
        mean = energy.new_zeros(graph.n_graphs).index_add(0, graph.batch, energy) / count.clamp(min=1)
        return energy * (1 + mean[graph.batch])


class CentreIsSender(Sound):
    def forward(self, graph, vectors):
        order = torch.argsort(graph.edge_index[1], stable=True)
        flipped = graph.edge_index.flip(0)[:, order]
        row_ptr = torch.searchsorted(flipped[0], torch.arange(len(graph.numbers) + 1))
        return super().forward(graph._replace(edge_index=flipped, row_ptr=row_ptr), vectors[order])


class MeanOverNeighbours(Sound):
    def forward(self, graph, vectors):
        weight = self.inside(graph, vectors)
        return super().forward(graph, vectors) + self.edge_sum(graph, weight**2) / self.edge_sum(graph, weight)


class SeesWhetherThereAreEdges(Sound):
    def forward(self, graph, vectors):
        return super().forward(graph, vectors) + (0.0 if len(vectors) else 1e-6)


class LinearCutoff(Sound):
    def forward(self, graph, vectors):
        return super().forward(graph, vectors) + self.edge_sum(
            graph, 1 - torch.linalg.norm(vectors, dim=1) / self.cutoff
        )


class NoCutoff(Sound):
    def forward(self, graph, vectors):
        return super().forward(graph, vectors) + self.edge_sum(graph, torch.linalg.norm(vectors, dim=1))


class Detached(Sound):
    def forward(self, graph, vectors):
        hidden = self.inside(graph, vectors.detach())
        return super().forward(graph, vectors) + self.edge_sum(graph, self.inside(graph, vectors) * hidden)


class SingleInside(Sound):
    def forward(self, graph, vectors):
        return super().forward(graph, vectors) + self.edge_sum(
            graph, self.inside(graph, vectors.float()).to(vectors.dtype)
        )


class FirstOrderOnly(torch.autograd.Function):
    """x^3 with a right derivative whose own derivative is lost."""

    @staticmethod
    def forward(ctx, x):
        ctx.slope = 3 * x.detach() ** 2
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.slope


class WrongSecondDerivative(Sound):
    def forward(self, graph, vectors):
        return super().forward(graph, vectors) + FirstOrderOnly.apply(super().forward(graph, vectors))


class UnusedParameter(Sound):
    def extend(self):
        self.unused = torch.nn.Parameter(torch.ones(3))


class ElementBlind(Sound):
    def descriptors(self, graph, vectors):
        return super().descriptors(graph._replace(numbers=torch.full_like(graph.numbers, self.species[0])), vectors)


class AnyElement(Sound):
    def forward(self, graph, vectors):
        known = torch.isin(graph.numbers, torch.tensor(self.species, device=graph.numbers.device))
        return super().forward(graph._replace(numbers=graph.numbers.where(known, self.species[0])), vectors)


class Forgetful(Sound):
    """A weight that neither a file nor the seed keeps."""

    def extend(self):
        noise = np.random.default_rng().normal(size=())
        self.register_buffer("noise", torch.tensor(1 + 0.1 * noise), persistent=False)

    def forward(self, graph, vectors):
        return super().forward(graph, vectors) * self.noise


class WrongHyperparameters(Sound):
    def extend(self):
        self.hyperparameters["cutoff"] = 5.0


class Random(Sound):
    def forward(self, graph, vectors):
        return super().forward(graph, vectors) * (1 + 1e-6 * torch.rand(()))


class Reseeds(Sound):
    def forward(self, graph, vectors):
        torch.manual_seed(0)
        return super().forward(graph, vectors)


class WritesIntoItsInput(Sound):
    def forward(self, graph, vectors):
        graph.numbers.copy_(graph.numbers.flip(0))
        return super().forward(graph, vectors)


class AlwaysDouble(Sound):
    def forward(self, graph, vectors):
        return super().forward(graph, vectors).double()


class RoughInSingle(Sound):
    def forward(self, graph, vectors):
        energy = super().forward(graph, vectors)
        return energy * 1.001 if energy.dtype == torch.float32 else energy


class VectorDescriptors(Sound):
    def descriptors(self, graph, vectors):
        sums = vectors.new_zeros(len(graph.numbers), 3).index_add(0, graph.edge_index[0], vectors)
        return super().descriptors(graph, vectors) + sums[:, :1]

    def forward(self, graph, vectors):
        return self.readout(super().descriptors(graph, vectors)).squeeze(1)
