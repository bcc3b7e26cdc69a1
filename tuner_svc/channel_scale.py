"""Networks whose norms only scale and shift each channel, so that nothing depends on the rest of the picture.

A group norm divides by the deviation over the whole picture: a part of it alone would come out differently. Without
the division a network of convolutions makes of a part what it makes of it in the whole picture. Super-resolution does
as well without it (EDSR, arXiv 1707.02921, section 3.1). The tensors keep the norms' names and shapes.
"""

import torch
from torch import Tensor, nn


class ChannelScale(nn.Module):
    """x (n, channels, h, w) -> weight * x + bias, by channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight[:, None, None] + self.bias[:, None, None]


def with_channel_scales(network: nn.Module) -> nn.Module:
    """The network with one in place of each of its group norms, with the same weight and bias; in place."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                scale = ChannelScale(child.num_channels)
                scale.load_state_dict(child.state_dict())
                setattr(module, name, scale)
    return network
