"""Coded modules compute what is stored; tuning lowers the divergence and resumes to the same bytes."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from models import save_tiny

from shiftadd_tvm import bcq, coded_modules, distillation, reference
from shiftadd_tvm.checkpoint import open_checkpoint
from shiftadd_tvm.dequantized import DequantizedModel
from shiftadd_tvm.distillation import Recipe, Student, tune
from shiftadd_tvm.packed import PackedModel, open_packed
from shiftadd_tvm.quantization import quantize
from shiftadd_tvm.reference import ReferenceModel
from shiftadd_tvm.settings import QuantizeSettings


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with reference.one_thread():  # of tiny operators: more only wait for each other
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "tiny"
    return save_tiny(folder, attention_bias=True, tie_word_embeddings=False)


@pytest.fixture(scope="module")
def packed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> PackedModel:
    output = tmp_path_factory.mktemp("packed") / "out"
    quantize(source, output, QuantizeSettings(bits=2))
    return open_packed(output)


def windows(count: int = 6) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 259, (count, 32)).astype(np.int64)


@pytest.fixture(scope="module")
def teacher(source: Path) -> torch.Tensor:
    return ReferenceModel(open_checkpoint(source)).hidden(windows()).clone()


@pytest.mark.parametrize("block", [4, 16, 64, 256, 1024, 4096])
def test_hadamard_is_that_of_the_representation(block: int) -> None:
    x = torch.randn(3, 2 * block)
    expected = bcq.hadamard(x.numpy().astype(np.float64), block)
    np.testing.assert_allclose(coded_modules.hadamard(x, block).numpy(), expected, atol=1e-5)


def test_student_is_the_dequantized_model(packed: PackedModel) -> None:
    expected = ReferenceModel(DequantizedModel(packed)).hidden(windows())
    torch.testing.assert_close(Student(packed).states(windows()), expected, rtol=1e-3, atol=1e-3)


def test_rounding_passes_the_gradient(packed: PackedModel) -> None:
    scale = torch.tensor([0.3, 1.7, 12.1], requires_grad=True)
    coded_modules.straight_through(scale, 2).sum().backward()
    assert scale.grad is not None and torch.equal(scale.grad, torch.ones(3))


def test_divergence_and_its_gradient_are_autograds() -> None:
    rng = torch.Generator().manual_seed(0)
    head = torch.randn(50, 8, generator=rng)
    student = torch.randn(300, 8, generator=rng, requires_grad=True)
    teacher = torch.randn(300, 8, generator=rng)
    found = torch.log_softmax(student @ head.T, 1)
    wanted = torch.log_softmax(teacher @ head.T, 1)
    loss = (wanted.exp() * (wanted - found)).sum(1).mean()
    loss.backward()
    value, gradient = distillation.divergence_and_gradient(student.detach(), teacher, head)
    both = [student.detach(), teacher]
    assert distillation.divergences(both, teacher, head) == [value, 0.0]
    assert value == pytest.approx(loss.item(), rel=1e-5)
    assert student.grad is not None
    torch.testing.assert_close(gradient, student.grad, rtol=1e-4, atol=1e-6)


def test_tuning_lowers_the_divergence(
    packed: PackedModel, teacher: torch.Tensor, tmp_path: Path
) -> None:
    losses: list[float] = []
    recipe = Recipe(steps=80, windows=2)
    note = lambda step, loss: losses.append(loss)
    tuned = tune(packed, windows(), teacher.__getitem__, recipe, tmp_path / "state", note)
    assert np.mean(losses[-6:]) < 0.9 * np.mean(losses[:3])
    names = {name.rpartition(".")[2] for name in tuned}
    assert names == {"rows", "columns", "weight", "bias"}


class _Stopped(Exception):
    pass


def test_interrupted_tuning_goes_on_to_the_same_values(
    packed: PackedModel, teacher: torch.Tensor, tmp_path: Path
) -> None:
    recipe = Recipe(steps=24)
    inputs = (packed, windows(), teacher.__getitem__, recipe)
    whole = tune(*inputs, tmp_path / "a", lambda step, loss: None)

    def stop(step: int, loss: float) -> None:
        if step == 17:
            raise _Stopped

    with pytest.raises(_Stopped):
        tune(*inputs, tmp_path / "b", stop)
    steps: list[int] = []
    again = tune(*inputs, tmp_path / "b", lambda step, loss: steps.append(step))
    assert steps[0] == 11  # the state is written every ten steps
    assert sorted(again) == sorted(whole)
    assert all(np.array_equal(again[name], whole[name]) for name in whole)
