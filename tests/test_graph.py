"""The graph that ships: decode looks up and adds, read off the lowered module."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import kernels
import numpy as np
import pytest
import tvm
from models import save_tiny
from tvm import relax, tirx
from tvm.ir import GlobalVar, IRModule, Op

from shiftadd_tvm import backend, compiler, graph, layers, pipeline, verification
from shiftadd_tvm import parameters as packing
from shiftadd_tvm.bcq import SeparableScales
from shiftadd_tvm.ops import OP, read_memory
from shiftadd_tvm.ops import planes as order
from shiftadd_tvm.packed import PackedModel, open_packed
from shiftadd_tvm.parameters import Parameter
from shiftadd_tvm.quantization import quantize
from shiftadd_tvm.settings import QuantizeSettings

PRESET = "x86-avx2"  # reading its modules needs no such processor
REST = {"embed", "dense", "rms_norm", "activate_mul", "add"}
ATTENTION = {"rope", "rope_angles", "positions", "append", "attend"}
DECODES = [f"decode_b{batch}" for batch in graph.BATCHES]
# The virtual machine's own calls: memory, shapes and checks, no arithmetic.
SIZES = "tirx.is_host_func"  # marks TVM's own functions of int64 sizes
MACHINE = ("vm.builtin.", "relax.vm.", "relax.memory.")

# q of whole row blocks under k; v alone, since its bits differ; gate whole row blocks over up
MIXED = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "attention_bias": True,
}
# name -> (settings, the model's configuration, format of look-ups, stacks of the first block)
QKV, GATE_UP = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")
APART = tuple((name,) for name in (*QKV, "o_proj", *GATE_UP, "down_proj"))
MODELS = {
    "separable": (QuantizeSettings(bits=3), {}, "int16", APART),
    "separable, untied, biased, 8-bit embeddings": (
        QuantizeSettings(bits=2, embedding_bits=8),
        {
            "tie_word_embeddings": False,
            "attention_bias": True,
            "mlp_bias": True,
            "num_hidden_layers": 1,
        },
        "int8",
        APART,
    ),
    "stacked": (
        QuantizeSettings(bits=2),
        {**MIXED, "num_key_value_heads": 2, "mlp_bias": True},
        "int16",
        (QKV, ("o_proj",), GATE_UP, ("down_proj",)),
    ),
    "stacked, mixed bits": (
        QuantizeSettings(bits=2, bits_per_module={"self_attn.v_proj": 3}),
        MIXED,
        "float32",
        (QKV[:2], QKV[2:], ("o_proj",), GATE_UP, ("down_proj",)),
    ),
    "stacked, a part of a row block": (
        QuantizeSettings(bits=1),
        {**MIXED, "intermediate_size": 80},
        "int16",
        (QKV[:2], QKV[2:], ("o_proj",), *((name,) for name in GATE_UP), ("down_proj",)),
    ),
    "row-group, whole numbers": (
        QuantizeSettings(bits=2, scale_format="row-group", columns=8, max_rotation=0),
        {},
        "int16",
        APART,
    ),
    "row-group": (
        QuantizeSettings(bits=2, scale_format="row-group", max_rotation=0),
        {},
        "float32",
        APART,
    ),
}
# (whether separable, whether read in whole numbers) -> what multiplies in decode, and in prefill
PRODUCTS = {
    "separable": {True: ("lut_query", "gemm_fixed"), False: ("lut_float_query", "gemm_planes")},
    "row-group": {True: ("lut_group", "gemm_group"), False: ("lut_block", "gemm_block")},
}


@dataclass(frozen=True)
class Case:
    """A model as the compiler sees it."""

    model: PackedModel
    activations: str
    groups: dict[str, layers.Group]
    parameters: list[Parameter]
    stacks: tuple[tuple[str, ...], ...]

    @property
    def products(self) -> tuple[str, str]:
        """What multiplies by planes in decode, and in prefill."""
        return PRODUCTS[self.model.layout.scale_format][self.activations != "float32"]

    @property
    def build_op(self) -> list[str]:
        """What makes the tables, if that is an operator of its own."""
        names = {"lut_query": "lut_build", "lut_group": "lut_build"}
        found = {**names, "lut_float_query": "lut_float_build"}.get(self.products[0])
        return [found] if found else []

    def module(self, batches: tuple[int, ...] = graph.BATCHES) -> IRModule:
        return graph.build(self.model, self.parameters, self.groups, self.activations, batches)


@pytest.fixture(scope="module", params=MODELS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    settings, overrides, activations, stacks = MODELS[request.param]
    folder, preset = tmp_path_factory.mktemp("model"), backend.load(PRESET)
    save_tiny(folder / "source", **overrides)
    quantize(folder / "source", folder / "packed", settings)
    model = open_packed(folder / "packed")
    groups = packing.groups(model, preset.rows, activations)
    found = packing.parameters(model, groups, preset.lanes, preset.rows)
    return Case(model, activations, groups, found, stacks)


@pytest.fixture(scope="module")
def lowered(case: Case) -> IRModule:
    return pipeline.lower(case.module(), backend.load(PRESET))[0]


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


def parameters_read(module: IRModule, name: str, found: list[Parameter]) -> dict[str, str]:
    """Return the name of the parameter that each variable of a function holds."""
    bundle = module[name].params[-1]
    bindings = [b for block in module[name].body.blocks for b in block.bindings]
    return {
        binding.var.name: found[binding.value.index].name
        for binding in bindings
        if isinstance(binding.value, relax.TupleGetItem)
        and binding.value.tuple_value.same_as(bundle)
    }


def is_rotated(model: PackedModel) -> bool:
    return any(model.weight(name).rotation is not None for name in model.linears())


def all_stacks(case: Case) -> list[layers.Linear]:
    return [stack for group in case.groups.values() for stack in group.stacks]


@pytest.mark.parametrize("name", DECODES)
def test_decode_looks_up_and_adds(lowered: IRModule, case: Case, name: str) -> None:
    found = Counter(op for op, _ in kernels_called(lowered, name))
    query, separable = case.products[0], case.model.layout.scale_format == "separable"
    allowed = {query, *case.build_op, *REST, *ATTENTION}
    if separable:
        allowed |= {"shift"}
    if is_rotated(case.model):
        allowed |= {"hadamard"}
    assert set(found) == allowed
    assert found["dense"] == 1 and found["embed"] == 1  # the head and the embedding
    assert found[query] == len(all_stacks(case))
    groups = {case.model.group(linear) for linear in case.model.linears()}
    for op in case.build_op + (["shift"] if separable else []):
        assert found[op] == len(groups)  # one table for all linears that read an activation


@pytest.mark.parametrize("name", [*DECODES, "prefill"])
def test_every_linear_is_multiplied_once(lowered: IRModule, case: Case, name: str) -> None:
    """By the operator of the phase and by nothing else; both phases read the same planes."""
    names = parameters_read(lowered, name, case.parameters)
    stacks = {f"{stack.name}.planes": stack for stack in all_stacks(case)}
    multiplied: list[str] = []
    for op, call in kernels_called(lowered, name):
        variables = [a.name for a in call.args if isinstance(a, relax.Var)]
        read = [names[variable] for variable in variables if variable in names]
        planes = [parameter for parameter in read if parameter.endswith(".planes")]
        assert len(planes) == (op == case.products[name == "prefill"]), f"{op} reads {planes}"
        multiplied += [member for stored in planes for member in stacks[stored].members]
    assert sorted(multiplied) == sorted(case.model.linears())


def test_linears_are_stacked_where_one_matrix_can_hold_them(case: Case) -> None:
    first = [stack for stack in all_stacks(case) if ".layers.0." in stack.name]
    found = {tuple(member.rpartition(".")[2] for member in stack.members) for stack in first}
    assert found == set(case.stacks)


def test_a_stack_holds_its_linears_one_below_the_other(case: Case) -> None:
    rows, arrays = backend.load(PRESET).rows, {p.name: p.read for p in case.parameters}
    for stack in all_stacks(case):
        planes, start = arrays[f"{stack.name}.planes"](), 0
        for member in stack.members:
            weight = case.model.weight(member)
            packed = order.pack(weight.planes, rows)
            np.testing.assert_array_equal(planes[start : start + len(packed)], packed)
            if isinstance(weight.scales, SeparableScales):
                levels = arrays[f"{stack.name}.plane_terms"]()[start : start + len(packed)]
                assert (levels == weight.scales.plane_terms).all()
                terms = arrays[f"{stack.name}.row_terms"]()[:, start * rows :][:, : weight.shape[0]]
                np.testing.assert_array_equal(terms, weight.scales.row_terms.T)
            start += len(packed)
        assert len(planes) == start
        assert stack.outputs == tuple(case.model.weight(m).shape[0] for m in stack.members)


def test_prefill_is_labelled_as_gemm(lowered: IRModule, case: Case) -> None:
    found = Counter(op for op, _ in kernels_called(lowered, "prefill"))
    assert found[case.products[1]] == len(all_stacks(case))
    looked_up = {op for op in found if op.startswith("lut_")}
    # the numbers that decode looks up
    whole = {"lut_query": {"lut_fix"}, "lut_group": {"lut_round"}}
    assert looked_up == whole.get(case.products[0], set()) and "dense" not in found
    logits = [op for op, _ in kernels_called(lowered, "logits")]
    assert logits == ["gemm_dense"]


def test_what_look_ups_hold_is_read_off_the_module(case: Case) -> None:
    asked = {case.activations, "int8"} if case.build_op == ["lut_build"] else {case.activations}
    for activations in asked:
        assert compiler.held_as(case.module(), activations) == activations


@pytest.mark.parametrize(("columns", "held"), [(24, "int16"), (12, "float32")])
def test_the_loosest_format_that_is_used_counts(columns: int, held: str, tmp_path: Path) -> None:
    """Groups of 24 are whole steps, and fit 96 inputs but not 200; groups of 12 are no whole steps."""
    settings = QuantizeSettings(bits=1, scale_format="row-group", columns=columns)
    source = save_tiny(tmp_path / "source", num_hidden_layers=1)
    quantize(source, tmp_path / "packed", settings)
    model = open_packed(tmp_path / "packed")
    module, _ = compiler.relax_module(model, backend.load(PRESET), "int16", (1,))
    ops = {str(f.attrs[OP]) for _, f in module.functions_items() if isinstance(f, tirx.PrimFunc)}
    assert "lut_block" in ops and ("lut_group" in ops) == (held == "int16")
    assert compiler.held_as(module, "int16") == held


def test_sample_is_made_of_its_operators(lowered: IRModule) -> None:
    found = [op for op, _ in kernels_called(lowered, "sample")]
    keeps = ["sample_keep", "sample_keep"]
    assert found == ["sample_penalize", "sample_soften", *keeps, "sample_draw"]


def test_every_kernel_names_its_operator(lowered: IRModule) -> None:
    functions = [f for _, f in lowered.functions_items() if isinstance(f, tirx.PrimFunc)]
    named = [function for function in functions if not function.attrs.get(SIZES)]
    assert named and all(OP in function.attrs for function in named)


def test_relax_computes_nothing_itself(case: Case) -> None:
    module = case.module()
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


def test_parameters_are_what_they_say(case: Case) -> None:
    parameters = case.parameters
    assert len({parameter.name for parameter in parameters}) == len(parameters)
    for parameter in parameters:
        array = parameter.read()
        assert (array.shape, str(array.dtype)) == (tuple(parameter.shape), parameter.dtype)


@pytest.mark.skipif(PRESET not in kernels.PRESETS, reason=f"{PRESET} does not run on this machine")
def test_decode_and_prefill_reach_the_golden_logits(case: Case) -> None:
    model = case.model
    if case.products[0] == "lut_query" and case.stacks == APART and case.activations == "int16":
        pytest.skip("the compile gate does it")
    executable, _ = pipeline.build(case.module(batches=(1,)), backend.load(PRESET))
    machine, tensor = relax.VirtualMachine(executable, tvm.cpu()), tvm.runtime.tensor
    bundle = [tensor(np.ascontiguousarray(parameter.read())) for parameter in case.parameters]
    decoder, golden, pages = model.decoder, model.golden(), 4
    ids, expected = golden.ids[0][:40], golden.logits[0][:40]
    tolerance = verification.RELATIVE[case.activations] * np.abs(expected).max()

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


def test_parameters_are_not_checked_on_every_call(lowered: IRModule, case: Case) -> None:
    """The checks of a call's own tensors stay, those of the parameter tuple go."""
    text = lowered["decode_b1"].script()
    own = ("ids", "keys", "values", "block_table", "length")
    assert text.count("vm.builtin.check_tensor_info") == len(own)
    assert "check_tuple_info" not in text
    # each parameter is still taken where it is used, a tied embedding twice
    count = len(case.parameters)
    assert count <= text.count("= parameters[") <= count + 2


def test_memory_is_planned_and_nothing_is_killed_early(lowered: IRModule) -> None:
    """A few tensors on fewer storages serve all operators of a step; no call lets go of one."""
    for name in (*DECODES, "prefill"):
        text = lowered[name].script()
        assert text.count("alloc_storage") <= 10
        made = re.findall(r"= (R\.vm\.alloc_tensor\(.*\))$", text, re.MULTILINE)
        assert len(made) == text.count("alloc_tensor") == len(set(made)) <= 20
        assert "kill" not in text and "null_value" not in text
        assert "vm.builtin.copy" not in text and not re.search(r"= lv\d*$", text, re.MULTILINE)
