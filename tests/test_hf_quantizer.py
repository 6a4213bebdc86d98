"""A packed model in transformers computes what its dequantized reference computes."""

from pathlib import Path

import numpy as np
import pytest
from models import save_tiny, tiny_tensors, write_checkpoint

import shiftadd_tvm
from shiftadd_tvm import families
from shiftadd_tvm.dequantized import DequantizedModel
from shiftadd_tvm.errors import BadFileError
from shiftadd_tvm.packed import PackedModel, open_packed

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def registered() -> None:
    import shiftadd_tvm.hf_quantizer  # noqa: F401


FORMATS = {
    "separable": {"bits": 3},
    "8-bit embedding, mixed bits": {"bits_per_module": {"mlp.down_proj": 4}, "embedding_bits": 8},
    "not rotated": {"max_rotation": 0, "bits": 2},
    "row-group": {"scale_format": "row-group", "rows": 1, "columns": 32},
    "block-wise": {"scale_format": "block-wise", "rows": 48, "columns": 8, "bits": 2},
    "column-wise": {"scale_format": "column-wise", "bits": 2},
}
CONFIGS = {
    "separable": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    "8-bit embedding, mixed bits": {"tie_word_embeddings": True},
    "block-wise": {"tie_word_embeddings": False},
}


def pack(folder: Path, name: str) -> PackedModel:
    source = save_tiny(folder / "source", **CONFIGS.get(name, {}))
    shiftadd_tvm.quantize(source, folder / "packed", method="alternating", **FORMATS[name])
    return open_packed(folder / "packed")


def load(path: Path, dtype: str = "float32") -> "transformers.PreTrainedModel":
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype)


def logits(model: "transformers.PreTrainedModel", packed: PackedModel) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.tensor(packed.golden().ids, dtype=torch.long)).logits.numpy()


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("name", FORMATS)
def test_logits_are_those_of_the_reference(name: str, tmp_path: Path) -> None:
    packed = pack(tmp_path, name)
    model = load(packed.path)
    expected = packed.golden().logits
    # rotated at run time: the same sums in another order
    np.testing.assert_allclose(logits(model, packed), expected, atol=2e-4 * np.abs(expected).max())

    dense = model.dequantize()
    reference = DequantizedModel(packed)
    for linear in packed.linears():
        found = dense.get_submodule(linear)
        assert type(found) is torch.nn.Linear
        np.testing.assert_array_equal(found.weight.numpy(), reference.read(f"{linear}.weight"))
    for tensor in packed.names():
        if not tensor.endswith("_scale"):
            found = dense.get_parameter(tensor).detach().numpy()
            np.testing.assert_array_equal(found, packed.read(tensor), err_msg=tensor)
    # the same weights; matrix products of another shape may add in another order
    np.testing.assert_allclose(logits(dense, packed), expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("family", families.names())
def test_every_family(family: str, tmp_path: Path) -> None:
    config = families.load({"model_type": family}).tiny_config()
    source = write_checkpoint(tmp_path / "source", config, tiny_tensors(config))
    shiftadd_tvm.quantize(source, tmp_path / "packed", method="alternating", bits=3)
    packed = open_packed(tmp_path / "packed")
    model, expected = load(packed.path), packed.golden().logits
    np.testing.assert_allclose(logits(model, packed), expected, atol=2e-4 * np.abs(expected).max())
    dense = logits(model.dequantize(), packed)
    np.testing.assert_allclose(dense, expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.usefixtures("registered")
def test_coded_weights_are_the_stored_ones(tmp_path: Path) -> None:
    """r, c and s as they are: what a linear applies to a rotated activation is bcq's, bit for bit."""
    from shiftadd_tvm import bcq

    packed = pack(tmp_path, "separable")
    model = load(packed.path)
    for linear in packed.linears():
        weight = packed.weight(linear)
        module = model.get_submodule(linear)
        np.testing.assert_array_equal(
            module.weight_of_rotated().numpy(), bcq.dequantize_rotated(weight)
        )
        rows = np.random.default_rng(0).standard_normal((5, weight.shape[1])).astype(np.float32)
        expected = rows @ bcq.dequantize(weight).T + packed.read(f"{linear}.bias")
        found = module(torch.from_numpy(rows)).detach().numpy()
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.usefixtures("registered")
def test_generates_and_refuses_to_save(tmp_path: Path) -> None:
    packed = pack(tmp_path, "not rotated")
    model = load(packed.path, "bfloat16")
    ids = torch.tensor([[1, 60, 61]])
    assert model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=-1).shape == (1, 7)
    with pytest.raises(ValueError, match="shiftadd_bcq"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "model.safetensors").exists()


@pytest.mark.usefixtures("registered")
def test_damaged_config_is_named(tmp_path: Path) -> None:
    packed = pack(tmp_path, "not rotated")
    config = packed.path / "config.json"
    config.write_text(config.read_text().replace('"max_block"', '"max_blocks"').replace(
        '"embedding_bits": 16', '"embedding_bits": 4'))  # fmt: skip
    with pytest.raises(BadFileError, match="embedding_bits = 4, expected 8 or 16"):
        load(packed.path)
