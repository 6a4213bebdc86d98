"""Asymmetric uniform grids: a float16 scale and a zero point for each group of a row's inputs.

A code u stands for (u - zero) * scale. Groups are cut from the left; the last one may be short.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_SCALE_BITS = 16


@dataclass(frozen=True)
class Grid:
    """Scale and zero point of every group, float32 (N, G)."""

    scale: Tensor
    zero: Tensor
    group: int
    bits: int

    def round(self, weights: Tensor) -> Tensor:
        """Return weights (N, K) on the grid."""
        index = torch.arange(weights.shape[1]) // self.group
        return _round(weights, self.scale[:, index], self.zero[:, index], self.bits)

    def round_column(self, k: int, column: Tensor) -> Tensor:
        """Return the column (N,) of input k on the grid."""
        index = k // self.group
        return _round(column, self.scale[:, index], self.zero[:, index], self.bits)


def fit(weights: Tensor, group: int, bits: int) -> Grid:
    """Return the grid from the least to the largest weight of each group, zero included."""
    outputs, inputs = weights.shape
    padded = torch.nn.functional.pad(weights, (0, -inputs % group))
    groups = padded.reshape(outputs, -1, group)
    high, low = groups.amax(2).clamp_min(0), groups.amin(2).clamp_max(0)
    scale = ((high - low) / (2**bits - 1)).half().float()
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))  # a group of zeros
    zero = torch.round(-low / scale).clamp(0, 2**bits - 1)
    return Grid(scale, zero, group, bits)


def stored_bits(inputs: int, group: int, bits: int) -> float:
    """Return the bits of a weight: its code and its share of scale and zero point."""
    return bits + (_SCALE_BITS + bits) * math.ceil(inputs / group) / inputs


def _round(values: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    codes = torch.round(values / scale + zero).clamp(0, 2**bits - 1)
    return (codes - zero) * scale
