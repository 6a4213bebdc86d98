"""Experts as modules of their own, in the place of transformers' fused tensors.

transformers holds the experts of a block in two tensors, in which no linear can be read, watched or
replaced alone. Here each is a module with linears under the names of the checkpoint.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from shiftadd_tvm.decoder_model import Decoder


class Expert(nn.Module):
    """A gated MLP; its linears have the family's names."""

    def __init__(self, decoder: Decoder, activation: nn.Module) -> None:
        super().__init__()
        mlp = decoder.mlp
        self._names = [*(linear.path for linear in mlp.inputs), mlp.output.path]
        for linear in (*mlp.inputs, mlp.output):
            self.add_module(linear.path, nn.Linear(linear.inputs, linear.outputs, linear.bias))
        self._activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs (n, hidden) of tokens (n, hidden)."""
        gate, up, down = (self.get_submodule(name) for name in self._names)
        found: Tensor = down(self._activation(gate(x)) * up(x))
        return found


class SparseExperts(nn.Module):
    """The router and the experts of a block; an expert runs on the tokens that chose it, if any."""

    def __init__(self, decoder: Decoder, activation: nn.Module) -> None:
        """Make it without weights that mean anything."""
        super().__init__()
        assert decoder.experts is not None
        kind = decoder.experts
        self._chosen, self._router = kind.chosen, kind.router
        self.add_module(kind.router, nn.Linear(decoder.hidden, kind.count, bias=False))
        self.experts = nn.ModuleList(Expert(decoder, activation) for _ in range(kind.count))

    def forward(self, hidden: Tensor) -> Tensor:
        """Return what the chosen experts make of states (..., hidden), weighed."""
        rows = hidden.reshape(-1, hidden.shape[-1])
        scores, chosen = self.get_submodule(self._router)(rows).topk(self._chosen, dim=-1)
        weights, total = torch.softmax(scores.float(), dim=-1), torch.zeros_like(rows)
        for index, expert in enumerate(self.experts):
            token, place = torch.where(chosen == index)
            if len(token):
                weighed = expert(rows[token]) * weights[token, place, None]
                total = total.index_add(0, token, weighed.to(total.dtype))
        return total.reshape(hidden.shape)


def separate(model: PreTrainedModel, decoder: Decoder, *, renamed: bool = False) -> None:
    """Put `SparseExperts` in the place of transformers' in every block of `model`.

    They are found under the checkpoint's name and under transformers'; parameters are named by the
    former, or, `renamed`, by the latter. Models without experts stay as they are.
    """
    if decoder.experts is None:
        return
    names = decoder.experts.module, decoder.experts.replaces
    owner, alias = reversed(names) if renamed else names
    for path in decoder.blocks():
        block = model.get_submodule(path)
        delattr(block, decoder.experts.replaces)
        made = SparseExperts(decoder, ACT2FN[model.config.hidden_act])
        block.add_module(owner, made)
        block.__dict__[alias] = made  # not registered twice: every parameter has one name
