"""Conversion from our channel-innermost blocks to e3nn's flat layout, for tests against e3nn."""

import torch


def to_e3nn(blocks):
    """(n, 2l+1, mul) blocks -> (n, sum mul*(2l+1)), mul first."""
    return torch.cat([block.transpose(1, 2).reshape(block.shape[0], -1) for block in blocks], dim=1)
