"""place: what attention of a prompt does before it looks at the cache, as one operator on GPUs.

    queries (n, heads D)   the query heads, turned (`heads.rope`)
    the cache              this call's keys, turned, and values are written into it (`attention.append`)

Only for caches of float32 and tokens of one sequence; the numbers are those of the operators that it
stands for. A decode step does the same where it attends (`ops/attend_parts.py`).
"""

from tvm import tirx
from tvm.script import tirx as T

from shiftadd_tvm.ops import OP, attention, heads
from shiftadd_tvm.ops.attention import PAGE
from shiftadd_tvm.ops.heads import Heads
from shiftadd_tvm.ops.shift import Array


def place(of: Heads):
    """Return the TIR function (keys, values, queries' source, keys', values', angles, table, length,
    layer, queries) that writes the cache in place; queries (n, heads D) are its result."""
    query, key, value = of.query, of.key, of.value
    size, kv_heads, width_q, width_k, width_v = query.size, key.heads, *of.columns
    layers, pages, s, width, n = (
        tirx.Var(name, "int64") for name in ("layers", "pages", "s", "width", "n")
    )

    @T.prim_func(s_tir=True, private=True)
    def place(
        keys: T.Buffer((layers, pages, kv_heads, size, PAGE), "float32"),
        values: T.Buffer((layers, pages, kv_heads, PAGE, size), "float32"),
        given_q: T.Buffer((n, width_q), "float32"),
        given_k: T.Buffer((n, width_k), "float32"),
        given_v: T.Buffer((n, width_v), "float32"),
        angles: T.Buffer((n, 2, of.angles), "float32"),
        table: T.Buffer((s, width), "int32"),
        length: T.Buffer((s,), "int32"),
        layer: T.int64,
        queries: T.Buffer((n, query.heads * size), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, OP: "place"})
        for i, h, d in T.grid(n, query.heads + kv_heads, size):
            with T.sblock("place"):
                vi, vh, vd = T.axis.remap("SSS", [i, h, d])
                T.reads()  # which page is written depends on data: the block is opaque
                T.writes()
                if vh < query.heads:
                    queries[vi, vh * size + vd] = heads.turned(given_q, angles, query, vi, vh, vd)
                else:
                    head = T.bind(vh - query.heads)
                    position = T.bind(length[0] + T.Cast("int32", vi))
                    page = T.bind(table[0, position // PAGE])
                    turned = T.bind(heads.turned(given_k, angles, key, vi, head, vd))
                    keys[layer, page, head, vd, position % PAGE] = turned
                    values[layer, page, head, position % PAGE, vd] = given_v[
                        vi, value.column(head, vd)
                    ]

    return place


def reference_place(
    keys: Array,
    values: Array,
    given: tuple[Array, Array, Array],
    angles: Array,
    table: Array,
    length: Array,
    layer: int,
    of: Heads,
) -> Array:
    """Write the call's keys and values into the cache, in place; return the queries (n, heads D)."""
    new_keys = heads.reference_rope(given[1], angles, of.key)
    new_values = heads.reference_take_heads(given[2], of.value)
    attention.reference_append(keys, values, new_keys, new_values, table, length, layer, True)
    return heads.reference_rope(given[0], angles, of.query)


REFERENCES = {"place": reference_place}
