"""What a backward pass wants, seen from inside an autograd Function."""

import torch

from ase_equinn.ops.needed import wanted


class Recorder(torch.autograd.Function):
    """a b c, which notes what its backward passes want."""

    seen: list[list[bool]] = []

    @staticmethod
    def forward(ctx, label: str, *factors):
        ctx.save_for_backward(*factors)
        return factors[0] * factors[1] * factors[2]

    @staticmethod
    def backward(ctx, g):
        Recorder.seen.append(wanted(ctx, 3))
        a, b, c = ctx.saved_tensors
        return None, g * b * c, g * a * c, g * a * b


def test_only_what_the_pass_asks_for_is_wanted():
    leaf, position = torch.tensor(2.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)
    inner = position.square()
    out = Recorder.apply("", inner, leaf.exp(), torch.tensor(5.0))
    cases = {
        "position": ([position], [True, False, False]),
        "an intermediate": ([inner], [True, False, False]),
        "weight": ([leaf], [False, True, False]),
        "both": ([leaf, position], [True, True, False]),
    }
    for name, (inputs, expected) in cases.items():
        Recorder.seen.clear()
        found = torch.autograd.grad(out, inputs, create_graph=True)
        assert Recorder.seen == [expected], name
        assert all(gradient.item() != 0 for gradient in found)
    Recorder.seen.clear()
    out.backward()
    assert Recorder.seen == [[True, True, False]] and leaf.grad != 0 and position.grad != 0


def test_a_leaf_is_wanted_in_every_kind_of_pass():
    a, b = (torch.tensor(float(x), requires_grad=True) for x in (2, 3))
    out = Recorder.apply("", a, b, torch.tensor(5.0))
    Recorder.seen.clear()
    assert torch.autograd.grad(out, a, retain_graph=True) == (torch.tensor(15.0),)
    out.backward()
    assert Recorder.seen == [[True, False, False], [True, True, False]]


def test_without_the_question_everything_that_requires_a_gradient_is_wanted(monkeypatch):
    monkeypatch.delattr(torch._C, "_will_engine_execute_node")
    a, b = (torch.tensor(float(x), requires_grad=True) for x in (2, 3))
    Recorder.seen.clear()
    torch.autograd.grad(Recorder.apply("", a.exp(), b.exp(), torch.tensor(5.0)), a)
    assert Recorder.seen == [[True, True, False]]
