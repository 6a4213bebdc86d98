"""Run calibration, sensitivities and tuning on a device that is not the processor, without values.

torch lets Python register a device of its own, and `FakeTensorMode` computes shapes, dtypes and devices
alone: an operator whose tensors lie on different devices raises, as it would on a GPU. What needs values
(rounding to powers of two, a loss as a number) is replaced. Registration is for the whole
process, hence a script: `python second_device.py CHECKPOINT PACKED STAGE`.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from shiftadd_tvm import calibration, coded_modules, distillation, families, sensitivity
from shiftadd_tvm.checkpoint import open_checkpoint
from shiftadd_tvm.packed import open_packed

DEVICE = "second"
IDS = np.arange(4 * 16).reshape(4, 16) % 200


def measure(source: Path) -> None:
    checkpoint = open_checkpoint(source)
    walk = calibration.Calibration(checkpoint, IDS, device=DEVICE)
    for block in families.read_config(checkpoint.config).blocks():
        for moments in walk.run(block).values():
            assert moments.device.type == "cpu"
    assert walk.finish().device.type == "cpu"


def compare(source: Path) -> None:
    checkpoint = open_checkpoint(source)
    decoder = families.read_config(checkpoint.config)
    walk = sensitivity.Sensitivity(checkpoint, IDS, DEVICE)
    shapes = decoder.linear_shapes().items()
    coded = lambda block: {f"{block}.{name}": torch.zeros(shape) for name, shape in shapes}
    seen: list[str] = []
    losses = walk.measure(decoder.blocks(), coded, seen.append)
    assert len(losses) == len(shapes) * decoder.layers


def tune(packed: Path) -> None:
    model = open_packed(packed)
    student = distillation.Student(model, DEVICE)
    scales, vectors = student.parameters()
    for vector in vectors.values():
        vector.requires_grad_()
    optimizer = distillation.Adam(list(scales.values()), list(vectors.values()))
    teacher = torch.zeros(1, IDS.shape[1], model.decoder.width, device=DEVICE)
    distillation._accumulate(student, IDS[:1], teacher, 0)
    for parameter in optimizer.parameters:
        parameter.grad = torch.zeros(parameter.shape, device=DEVICE)
    optimizer.step(1e-3)


def backward(states: torch.Tensor, gradient: torch.Tensor) -> None:
    """Check what the way back begins with; its threads know no device that Python registers."""
    assert states.device == gradient.device


def emptied(module: torch.nn.Module, *, device: str) -> None:
    """Do what `Module.to_empty` does, which swaps tensors in place, as those without values refuse."""
    for inner in module.modules():
        for name, parameter in inner.named_parameters(recurse=False):
            empty = torch.empty_like(parameter, device=device)
            setattr(inner, name, torch.nn.Parameter(empty, requires_grad=False))


STAGES = {"measure": measure, "compare": compare, "tune": tune}

if __name__ == "__main__":
    _setup_privateuseone_for_python_backend(DEVICE)
    coded_modules.round_terms = lambda values, terms: values.clone()
    torch.Tensor.__float__ = lambda self: 0.0  # type: ignore[method-assign]
    torch.Tensor.backward = backward  # type: ignore[assignment, method-assign]
    torch.nn.Module.to_empty = emptied  # type: ignore[assignment, method-assign]
    source, packed, stage = sys.argv[1:]
    with FakeTensorMode(allow_non_fake_inputs=True):
        STAGES[stage](Path(packed if stage == "tune" else source))
    print("done")
