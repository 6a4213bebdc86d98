"""What an instruction does to data: tables from mnemonics to classes, for x86-64 and aarch64.

A dot-product or multiply-add instruction counts as multiply and as add, whatever it is used for;
divisions, square roots and reciprocals count as multiply too. An instruction on vector registers that
no table knows is "unknown": a kernel that holds one is proved to be nothing.
"""

import re
from functools import cache

from shiftadd_tvm.disassembly import UNKNOWN, Instruction

MULTIPLY, ADD, SHIFT, SHUFFLE, LOAD = "multiply", "add", "shift", "shuffle", "load"
STORE, LOGIC, COMPARE, CONVERT, MOVE, SCALAR = (
    "store",
    "logic",
    "compare",
    "convert",
    "move",
    "scalar",
)
CLASSES = (
    *(MULTIPLY, ADD, SHIFT, SHUFFLE, LOAD),
    *(LOGIC, COMPARE, CONVERT, MOVE, STORE, SCALAR, UNKNOWN),
)
Rule = tuple[str, tuple[str, ...]]  # a pattern of whole mnemonics, and their classes

# Mnemonics without AVX's leading v. The first pattern that matches decides.
X86: tuple[Rule, ...] = (
    (r"fn?m(add|sub)(add|sub)?(132|213|231)?[ps][sdh]|fc?maddc[ps]h", (MULTIPLY, ADD)),
    (r"pmadd(wd|ubsw|52[lh]uq)|p4dpwssds?|4fn?madd[ps]s", (MULTIPLY, ADD)),
    (r"pdp[bw][su][sud]s?d?s?|dp(bf16|ph)ps|dpp[sd]|tdp\w+|tcmm\w+", (MULTIPLY, ADD)),
    (r"(mul|div|sqrt)[ps][sdh]|r(cp|sqrt)(14|28)?[ps][sdh]|fc?mulc[ps]h", (MULTIPLY,)),
    (r"(mul|div|sqrt|rcp|rsqrt)n?e?pbf16|pf(mul|rcp|rsq)\w*", (MULTIPLY,)),
    (r"pmul(?!ti)\w+|pclmul\w+|gf2p8\w+|fi?(mul|div)r?p?|fsqrt", (MULTIPLY,)),
    (r"fn?m(add|sub)(132|213|231)?n?e?pbf16", (MULTIPLY, ADD)),
    (r"ps[lr]ldq|p?align[rdq]|pshuf\w+|shuf[pfi]\w+|perm\w+|pperm", (SHUFFLE,)),
    (r"p?unpck[lh]\w+|p?broadcast\w+|(p?insert|pinsr|p?extr)\w*", (SHUFFLE,)),
    (r"mov(hl|lh)ps|mov(d|sh|sl)dup|p?(compress|expand)\w+", (SHUFFLE,)),
    (r"ps[lr][la]v?[wdq]|pro[lr]v?[dq]|psh[lr]dv?[wdq]|pmultishiftqb|scalef\w+", (SHIFT,)),
    (r"h?(add|sub)[ps][sdh]|addsubp[sd]|ph?(add|sub)\w+|fi?(add|sub)r?p?", (ADD,)),
    (r"(m|db)?psadbw|pabs[bwdq]|psign[bwd]|pavg[bw]|(add|sub)n?e?pbf16", (ADD,)),
    (r"(andn?|x?or)p[sd]|p(andn?|x?or)[dq]?|pternlog[dq]|p?blend\w+|p?cmov", (LOGIC,)),
    (r"popcnt[bwdq]|plzcnt[dq]|pconflict[dq]|k(andn?|x?n?or|not|shift|unpck|add)\w+", (LOGIC,)),
    (r"p?cmp\w+|pcom\w+|u?comis[sdh]|p?(min|max)\w+|p?testn?m?\w*|k(or)?test\w+", (COMPARE,)),
    (r"fpclass\w+|range[ps][sd]|fu?comi?p?p?", (COMPARE,)),
    (r"cvt\w+|pmov[sz]x\w+|pmovu?s?(wb|[dq]b|[dq]w|qd)|pack[us]s(wb|dw)", (CONVERT,)),
    (r"round[ps][sd]|rndscale\w+|reduce[ps][sdh]|get(exp|mant)\w+|frndint", (CONVERT,)),
    (r"mov[au]p[sd]|movdq[au](8|16|32|64)?|mov[dqw]|movs[sdh]|mov[hl]p[sd]", (MOVE,)),
    (r"movnt\w+|lddqu|movq2dq|movdq2q|p?movmsk\w+|pmov(m2[bwdq]|[bwdq]2m)", (MOVE,)),
    (r"p?maskmov\w+|p?gather\w+|p?scatter\w+|kmov[bwdq]|tile\w+", (MOVE,)),
    (r"fi?ld\w*|fi?st\w*|fxch|fchs|fabs|ffree\w*", (MOVE,)),
)
ARM: tuple[Rule, ...] = (
    (r"f?n?m(la|ls|ad|sb)|fn?m(add|sub)|fm[ls][as]l[bt]?2?|f?cmla|cdot", (MULTIPLY, ADD)),
    (r"[us]ml[as]l[bt]?2?|sqr?dml[as]\w+|[us]{1,2}dot|bf(dot|ml[as]l\w*)", (MULTIPLY, ADD)),
    (r"([us]{1,2}|bf|f)mmla|fml[as]l\w*", (MULTIPLY, ADD)),
    (r"f?n?mulx?|[us]mull[bt]?2?|sqr?dmul[hl][bt]?2?|[us]mulh|pmull?[bt]?2?", (MULTIPLY,)),
    (r"fdivr?|[us]divr?|fsqrt|[uf]r(ecp|sqrt)[esx]|f(tmad|tsmul|expa)", (MULTIPLY,)),
    (
        r"tb[lx]q?|(zip|uzp|trn)q?[12]|ext|dup\w?|rev\d*\w?|ins|insr|splice|compact|last[ab]",
        (SHUFFLE,),
    ),
    (r"[us]?q?r?shll?[bt]?2?r?|sqshlu|[us]r?shr|[us]r?sra|sli|sri|[us]xtl2?", (SHIFT,)),
    (r"[us]?q?r?shru?n[bt]?2?|ls[lr]r?|asrr?|asrd|fscale|xar", (SHIFT,)),
    (
        r"f?(add|sub)[pvar]?|fadda|f?abs|f?neg|fabd|fcadd|sq(abs|neg)|cadd|r?(add|sub)hn[bt]?2?",
        (ADD,),
    ),
    (r"[us]q?(add|sub)(l|w|lp|lv|v|lb|lt|wb|wt)?2?|[us]adalp|[us]r?h(add|sub)", (ADD,)),
    (r"(us|su)qadd|[us]aba?d?l?[bt]?2?|(inc|dec)[bhwdp]", (ADD,)),
    (r"and[sv]?|orrs?|orv|eor3?|eorv|bics?|orn|nor|nand|not|mvn|bsl\w*|nbsl|bi[tf]", (LOGIC,)),
    (r"bcax|rax1|cnt|clz|cls|rbit|sel|ptest|fcsel", (LOGIC,)),
    (r"f?cm(eq|g[et]|hi|hs|l[eost]|ne|tst)|cmp\w\w|fcmp?\w*|fac(g|l)[et]", (COMPARE,)),
    (r"[usf]?(min|max)(nm)?[pv]?|f(min|max)nm[pv]|fccmpe?|while\w+", (COMPARE,)),
    (r"[su]cvtf|b?fcvt\w*|frint\w+|[su]?q?xtu?n[bt]?2?|[us]unpk(lo|hi)|[us]xt[bhw]", (CONVERT,)),
    (r"f?mov|movi|mvni|[us]mov|movprfx|ld\w+|st\w+|ptrues?|pfalse|cpy|prf\w+", (MOVE,)),
)
PRODUCTS = re.compile(  # on general registers
    r"i?mulx?|i?div|m(ul|add|sub|neg)|[us]mull|[us]m(add|sub|neg)l|[us]mulh|[us]div"
)


def classify(instruction: Instruction, machine: str) -> tuple[str, ...]:
    """Return the classes of an instruction: one, or several (a load that adds, a fused multiply-add).

    What touches no vector register is "scalar" (addresses, counters, control), and a load or store
    where it touches memory.
    """
    memory = (LOAD,) * bool(instruction.loaded) + (STORE,) * bool(instruction.stored)
    if instruction.mnemonic == UNKNOWN:
        return (UNKNOWN,)
    if not instruction.vector:
        return memory or (SCALAR,)
    found = _wide(instruction.mnemonic, machine)
    moves = found == (MOVE,) or (found == (SHUFFLE,) and "broadcast" in instruction.mnemonic)
    return memory if memory and moves else (*found, *memory)


def is_scalar_product(instruction: Instruction) -> bool:
    """Tell whether an instruction multiplies or divides general registers."""
    return not instruction.vector and PRODUCTS.fullmatch(instruction.mnemonic) is not None


@cache
def _wide(mnemonic: str, machine: str) -> tuple[str, ...]:
    rules = X86 if machine == "x86_64" else ARM
    name = mnemonic.removeprefix("v") if machine == "x86_64" else mnemonic
    return next((found for rule, found in rules if re.fullmatch(rule, name)), (UNKNOWN,))
