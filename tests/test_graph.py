"""The graph that ships: decode looks up and adds, read off the lowered module."""

from collections import Counter
from collections.abc import Iterator

import kernels
import numpy as np
import pytest
import tvm
from models import save_tiny
from tvm import relax, tirx
from tvm.ir import GlobalVar, IRModule, Op

from shiftadd_tvm import backend, graph, layers, pipeline
from shiftadd_tvm.ops import OP, read_memory
from shiftadd_tvm.packed import PackedModel, open_packed
from shiftadd_tvm.quantization import quantize
from shiftadd_tvm.settings import QuantizeSettings

PRESET = "x86-avx2"  # reading its modules needs no such processor
REST = {"embed", "dense", "rms_norm", "silu_mul", "add"}
ATTENTION = {"rope", "rope_angles", "positions", "append", "attend"}
DECODES = [f"decode_b{batch}" for batch in graph.BATCHES]
# The virtual machine's own calls: memory, shapes and checks, no arithmetic.
SIZES = "tirx.is_host_func"  # marks TVM's own functions of int64 sizes
MACHINE = ("vm.builtin.", "relax.vm.", "relax.memory.")

MODELS = {
    "separable": (QuantizeSettings(bits=3), {}),
    "separable, untied, biased, 8-bit embeddings": (
        QuantizeSettings(bits=2, embedding_bits=8),
        {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True},
    ),
    "row-group": (QuantizeSettings(bits=2, scale_format="row-group", max_rotation=0), {}),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PackedModel:
    settings, overrides = MODELS[request.param]
    folder = tmp_path_factory.mktemp("model")
    save_tiny(folder / "source", **overrides)
    quantize(folder / "source", folder / "packed", settings)
    return open_packed(folder / "packed")


@pytest.fixture(scope="module")
def parameters(model: PackedModel) -> list[graph.Parameter]:
    return graph.parameters(model, backend.load(PRESET).lanes)


@pytest.fixture(scope="module")
def lowered(model: PackedModel, parameters: list[graph.Parameter]) -> IRModule:
    return pipeline.lower(graph.build(model, parameters), backend.load(PRESET))[0]


def calls(module: IRModule, name: str) -> Iterator[relax.Call]:
    found: list[relax.Call] = []
    visit = lambda node: found.append(node) if isinstance(node, relax.Call) else None
    relax.analysis.post_order_visit(module[name], visit)
    yield from found


def kernels_called(module: IRModule, name: str) -> list[tuple[str, relax.Call]]:
    """Return (operator, call) of every PrimFunc that a function calls; anything else must be the
    virtual machine's own."""
    found = []
    for call in calls(module, name):
        if isinstance(call.op, GlobalVar):
            function = module[call.op]
            assert isinstance(function, tirx.PrimFunc), f"{name} calls {call.op.name_hint}"
            if function.attrs.get(SIZES):
                continue
            found.append((str(function.attrs[OP]), call))
        elif isinstance(call.op, Op):
            assert call.op.name.startswith((*MACHINE, "relax.call_")), call.op
        else:
            assert isinstance(call.op, relax.ExternFunc), call.op
            assert str(call.op.global_symbol).startswith(MACHINE), call.op
    return found


def parameters_read(module: IRModule, name: str, found: list[graph.Parameter]) -> dict[str, str]:
    """Return the name of the parameter that each variable of a function holds."""
    bundle = module[name].params[-1]
    bindings = [b for block in module[name].body.blocks for b in block.bindings]
    return {
        binding.var.name: found[binding.value.index].name
        for binding in bindings
        if isinstance(binding.value, relax.TupleGetItem)
        and binding.value.tuple_value.same_as(bundle)
    }


def query_op(model: PackedModel) -> str:
    return "lut_query" if model.layout.scale_format == "separable" else "lut_block"


def is_rotated(model: PackedModel) -> bool:
    return any(model.weight(name).rotation is not None for name in model.linears())


@pytest.mark.parametrize("name", DECODES)
def test_decode_looks_up_and_adds(lowered: IRModule, model: PackedModel, name: str) -> None:
    found = Counter(op for op, _ in kernels_called(lowered, name))
    allowed = {query_op(model), *REST, *ATTENTION}
    if query_op(model) == "lut_query":
        allowed |= {"lut_build", "shift"}
    if is_rotated(model):
        allowed |= {"hadamard"}
    assert set(found) == allowed
    assert found["dense"] == 1 and found["embed"] == 1  # the head and the embedding
    assert found[query_op(model)] == len(model.linears())
    if query_op(model) == "lut_query":  # one table for all linears that read an activation
        groups = {model.group(name) for name in model.linears()}
        assert found["lut_build"] == found["shift"] == len(groups)


@pytest.mark.parametrize("name", DECODES)
def test_decode_queries_every_linear_once(
    lowered: IRModule, model: PackedModel, parameters: list[graph.Parameter], name: str
) -> None:
    names = parameters_read(lowered, name, parameters)
    queried = []
    for op, call in kernels_called(lowered, name):
        variables = [a.name for a in call.args if isinstance(a, relax.Var)]
        read = [names[variable] for variable in variables if variable in names]
        planes = [parameter for parameter in read if parameter.endswith(".planes")]
        assert len(planes) == (op == query_op(model)), f"{op} reads {planes}"
        queried += planes
    assert sorted(queried) == sorted(f"{linear}.planes" for linear in model.linears())


def test_prefill_is_labelled_as_gemm(lowered: IRModule, model: PackedModel) -> None:
    found = Counter(op for op, _ in kernels_called(lowered, "prefill"))
    gemm = "gemm_planes" if query_op(model) == "lut_query" else "gemm_block"
    assert found[gemm] == len(model.linears())
    assert not [op for op in found if op.startswith("lut_")] and "dense" not in found
    logits = [op for op, _ in kernels_called(lowered, "logits")]
    assert logits == ["gemm_dense"]


def test_sample_is_made_of_its_operators(lowered: IRModule) -> None:
    found = [op for op, _ in kernels_called(lowered, "sample")]
    keeps = ["sample_keep", "sample_keep"]
    assert found == ["sample_penalize", "sample_soften", *keeps, "sample_draw"]


def test_every_kernel_names_its_operator(lowered: IRModule) -> None:
    functions = [f for _, f in lowered.functions_items() if isinstance(f, tirx.PrimFunc)]
    named = [function for function in functions if not function.attrs.get(SIZES)]
    assert named and all(OP in function.attrs for function in named)


def test_relax_computes_nothing_itself(
    model: PackedModel, parameters: list[graph.Parameter]
) -> None:
    module = graph.build(model, parameters)
    allowed = {"relax.call_tir", "relax.call_tir_inplace"}
    for variable, function in module.functions_items():
        if isinstance(function, relax.Function):
            ops = {c.op.name for c in calls(module, variable.name_hint) if isinstance(c.op, Op)}
            assert ops <= allowed


def test_exported_functions_and_their_inputs(lowered: IRModule) -> None:
    inputs = {
        v.name_hint: [p.name for p in f.params]
        for v, f in lowered.functions_items()
        if isinstance(f, relax.Function)
    }
    cache = ["keys", "values", "block_table", "length"]
    assert inputs == {
        "embed": ["ids", "parameters"],
        "prefill": ["x", *cache, "parameters"],
        "logits": ["x", "parameters"],
        **{name: ["ids", *cache, "parameters"] for name in DECODES},
        "sample": ["logits", *layers.SAMPLING],
        **dict.fromkeys(read_memory.SHAPES, ["words"]),
    }


def test_parameters_are_what_they_say(parameters: list[graph.Parameter]) -> None:
    assert len({parameter.name for parameter in parameters}) == len(parameters)
    for parameter in parameters:
        array = parameter.read()
        assert (array.shape, str(array.dtype)) == (tuple(parameter.shape), parameter.dtype)


@pytest.mark.skipif(PRESET not in kernels.PRESETS, reason=f"{PRESET} does not run on this machine")
def test_decode_and_prefill_reach_the_golden_logits(
    model: PackedModel, parameters: list[graph.Parameter]
) -> None:
    if query_op(model) == "lut_query":
        pytest.skip("the compile gate does it")
    executable, _ = pipeline.build(graph.build(model, parameters), backend.load(PRESET))
    machine, tensor = relax.VirtualMachine(executable, tvm.cpu()), tvm.runtime.tensor
    bundle = [tensor(np.ascontiguousarray(parameter.read())) for parameter in parameters]
    decoder, golden, pages = model.decoder, model.golden(), 4
    ids, expected = golden.ids[0][:40], golden.logits[0][:40]
    tolerance = 2e-3 * np.abs(expected).max()

    def cache() -> list[object]:
        sides = (decoder.head_dim, 16), (16, decoder.head_dim)
        head = (decoder.layers, pages, decoder.kv_heads)
        table = np.array([[2, 0, 3, 1]], np.int32)
        return [*(tensor(np.full(head + side, 1e9, np.float32)) for side in sides), tensor(table)]

    length = lambda n: tensor(np.array([n], np.int32))
    one = cache()
    for position in range(len(ids)):
        token = tensor(ids[position : position + 1])
        found = machine["decode_b1"](token, *one, length(position), bundle).numpy()
        np.testing.assert_allclose(found[0], expected[position], 0, tolerance)
    many = cache()
    for start, stop in ((0, 23), (23, len(ids))):  # in two chunks, off the page's edge
        x = machine["embed"](tensor(ids[start:stop]), bundle)
        hidden = machine["prefill"](x, *many, length(start), bundle)
        found = machine["logits"](hidden, bundle).numpy()
        np.testing.assert_allclose(found, expected[start:stop], 0, tolerance)


def test_parameters_are_not_checked_on_every_call(
    lowered: IRModule, parameters: list[graph.Parameter]
) -> None:
    """The checks of a call's own tensors stay, those of the parameter tuple go."""
    text = lowered["decode_b1"].script()
    own = ("ids", "keys", "values", "block_table", "length")
    assert text.count("vm.builtin.check_tensor_info") == len(own)
    assert "check_tuple_info" not in text
    # each parameter is still taken where it is used, a tied embedding twice
    assert len(parameters) <= text.count("= parameters[") <= len(parameters) + 2
