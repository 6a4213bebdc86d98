"""How the results of a bench read: tables for people, made of the JSON fields."""

from collections.abc import Sequence

from shiftadd_tvm.benchmark.turns import Fields
from shiftadd_tvm.console import size

Row = Sequence[str]


def table(rows: Sequence[Row]) -> str:
    """Return rows with aligned columns, the first one to the left and the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def model(fields: Fields) -> str:
    """Return the tables of a whole model."""
    head = f"{fields['model']}, {fields['bits']:g} bits, {fields['target']}, {_threads(fields)}"
    decode, prefill = (fields[f"{k}_tokens_per_second"] for k in ("decode", "prefill"))
    rows: list[Row] = [
        ("", "tokens/s", "± quartiles", "read a token", "GB/s", "of the roof"),
        (
            f"decode ({fields['new_tokens']} after {fields['prompt_tokens']} tokens)",
            f"{decode:.2f}",
            f"{fields['decode_spread']:.1%}",
            size(fields["bytes_per_token"]),
            f"{fields['bytes_per_token'] * decode / 1e9:.1f}",
            f"{fields['bandwidth_fraction']:.0%}",
        ),
        (
            f"prefill ({fields['prompt_tokens']} tokens)",
            f"{prefill:.2f}",
            f"{fields['prefill_spread']:.1%}",
            *("",) * 3,
        ),
    ]
    weights = f"weights {size(fields['weight_bytes'])} (load: {fields['load']})"
    parts = f"{weights}, cache {size(fields['cache_bytes'])}"
    lines = [head, table(rows), f"read a token: {parts}; choosing one: {_sampling(fields)}"]
    lines += [_roof(fields), "", _operators(fields)]
    return "\n".join([*lines, *_model_peers(fields), *_notes(fields)])


def _operators(fields: Fields) -> str:
    """Return where a decode step's time goes; the rest is what lies between the operators."""
    step = 1e3 / fields["decode_tokens_per_second"]
    rows: list[Row] = [("a decode step", "calls", "ms", "share")]
    found = [(row["op"], row["calls"], 1e3 * row["seconds"]) for row in fields["operators"]]
    rest = step - sum(ms for _, _, ms in found)
    for op, calls, ms in [*found, ("between operators", "", rest)]:
        rows.append((op, str(calls), f"{ms:.3f}", f"{ms / step:.1%}"))
    return table(rows)


def _threads(fields: Fields) -> str:
    """Return who computes: threads of a processor, or a GPU."""
    if "device" in fields:
        return str(fields["device"])
    return f"{fields['threads']} thread" + ("s" if fields["threads"] > 1 else "")


def _sampling(fields: Fields) -> str:
    return f"{fields['sample_seconds'] * 1e3:.2f} ms more"


def _roof(fields: Fields) -> str:
    found, best = fields["dram_bandwidth_bytes_per_second"], fields["dram_bandwidth_best"]
    return (
        f"roof: {found / 1e9:.1f} GB/s read from memory in this run by {_threads(fields)} "
        f"(best {best / 1e9:.1f}, ± {fields['dram_bandwidth_spread']:.0%})"
    )


def _notes(fields: Fields) -> list[str]:
    return [f"note: {note}" for note in fields["notes"]]


def _model_peers(fields: Fields) -> list[str]:
    peers = fields["baselines"]
    if not peers:
        return []
    rows: list[Row] = [("", "decode tokens/s", "we are", "prefill tokens/s", "we are")]
    remarks = []
    for name, peer in peers.items():
        if "error" in peer:
            remarks.append(f"{name}: {peer['error']}")
            continue
        rows.append(
            (
                name,
                f"{peer['decode_tokens_per_second']:.2f}",
                f"{peer['ratio']:.2f} x",
                f"{peer['prefill_tokens_per_second']:.2f}",
                f"{peer['prefill_ratio']:.2f} x",
            )
        )
        remarks += [f"{name}: {peer['note']}"] if peer.get("note") else []
    return ["", *([table(rows)] if len(rows) > 1 else []), *remarks]


def kernels(fields: Fields) -> str:
    """Return the table of single operators, or where the program is that measures them."""
    if "program" in fields:
        return f"On the machine with the GPU: python3 {fields['program']}"
    rows: list[Row] = [("", "us", "±", "read", "GB/s", "of the roof", "we are")]
    remarks: dict[str, None] = {}
    for kernel in fields["kernels"]:
        outputs, inputs = kernel["shape"]
        rows.append((f"{outputs} x {inputs}, {fields['bits']} bits", *_kernel_cells(kernel), ""))
        for name, peer in kernel["baselines"].items():
            if "error" in peer:
                remarks[f"{name}: {peer['error']}"] = None
            else:
                rows.append((f"  {name}", *_kernel_cells(peer), f"{peer['ratio']:.2f} x"))
    head = (
        f"one linear of a decode step, weights from memory, {fields['target']}, {_threads(fields)}"
    )
    return "\n".join([head, table(rows), _roof(fields), *remarks, *_notes(fields)])


def _kernel_cells(entry: Fields) -> Row:
    return (
        f"{entry['microseconds']:.1f}",
        f"{entry['spread']:.0%}",
        size(entry["weight_bytes"]),
        f"{entry['bytes_per_second'] / 1e9:.1f}",
        f"{entry['bandwidth_fraction']:.0%}",
    )
