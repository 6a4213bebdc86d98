"""Instructions of the GPU that CUDA has no expression for, each behind a device function of its own.

A host that emulates a GPU defines SHIFTADD_EMULATED and these functions itself (`tests/cuda_emulated.h`):
the text of the kernels stays the same.
"""

from dataclasses import dataclass

from tvm.script import tirx as T


@dataclass(frozen=True)
class Instruction:
    """A device function: its name, its parameters, and the statements that are its body."""

    name: str
    parameters: str
    body: str

    @property
    def source(self) -> str:
        """The CUDA source, left out where a host defines the function."""
        head = f"static __device__ __forceinline__ void {self.name}({self.parameters})"
        return f"#ifndef SHIFTADD_EMULATED\n{head} {{ {self.body} }}\n#endif\n"

    def __call__(self, *arguments):
        """Return the call as an expression."""
        return T.cuda.func_call(self.name, *arguments, source_code=self.source)


# 16 bytes that are read once: they need no place in the first cache
LOAD16 = Instruction(
    "shiftadd_load16",
    "void* to, const void* from",
    "unsigned* r = (unsigned*)to; "
    'asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];" '
    ': "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "l"(from));',
)
# 16 bytes that other warps read too
LOAD16_KEPT = Instruction(
    "shiftadd_load16_kept",
    "void* to, const void* from",
    "unsigned* r = (unsigned*)to; "
    'asm volatile("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];" '
    ': "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "l"(from));',
)
# 16 bytes of what a kernel before may have written, read once
LOAD16_WRITTEN = Instruction(
    "shiftadd_load16_written",
    "void* to, const void* from",
    "unsigned* r = (unsigned*)to; "
    'asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];" '
    ': "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "l"(from));',
)
# asks for bytes, a multiple of 16 from a multiple of 16 on, by the second cache; one thread of a block
# is enough. From sm_90 on, like the next two
PREFETCH = Instruction(
    "shiftadd_prefetch",
    "const void* from, unsigned bytes",
    'if (threadIdx.x == 0) asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" '
    ': : "l"(from), "r"(bytes));',
)
# lets the next kernel begin, once all blocks of threads of this one have said so
LAUNCH_NEXT = Instruction(
    "shiftadd_launch_next", "", 'asm volatile("griddepcontrol.launch_dependents;" : : : "memory");'
)
# waits for the kernels before: they have ended, and what they wrote is there
WAIT = Instruction("shiftadd_wait", "", 'asm volatile("griddepcontrol.wait;" : : : "memory");')
# d (16 x 8) += a (16 x 16) · b (16 x 8), of two float16 a word, summed in float32
MMA_F16 = Instruction(
    "shiftadd_mma_f16",
    "void* to, const void* left, unsigned low, unsigned high",
    "float* d = (float*)to; const unsigned* a = (const unsigned*)left; "
    'asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 '
    '{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" '
    ': "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) '
    ': "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(low), "r"(high));',
)
# d (16 x 8) += a (16 x 8) · b (8 x 8) of float32, of which TF32 holds 11 bits, summed in float32
MMA_TF32 = Instruction(
    "shiftadd_mma_tf32",
    "void* to, const void* left, float low, float high",
    "float* d = (float*)to; const unsigned* a = (const unsigned*)left; "
    'asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 '
    '{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" '
    ': "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) '
    ': "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), '
    '"r"(__float_as_uint(low)), "r"(__float_as_uint(high)));',
)
# adds two float16 to two others
ADD_F16 = Instruction(
    "shiftadd_add_f16",
    "void* to, unsigned value",
    'unsigned* sum = (unsigned*)to; asm("add.rn.f16x2 %0, %0, %1;" : "+r"(*sum) : "r"(value));',
)
# d (16 x 8) += popcount of a (16 x 256 bits) and b (256 x 8 bits), by the tensor cores
MMA_B1 = Instruction(
    "shiftadd_mma_b1",
    "void* to, const void* left, unsigned low, unsigned high",
    "unsigned* d = (unsigned*)to; const unsigned* a = (const unsigned*)left; "
    'asm volatile("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc '
    '{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" '
    ': "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]) '
    ': "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(low), "r"(high));',
)
# d (16 x 8) += popcount of a (16 x 128 bits) and b (128 x 8 bits)
MMA_B1_HALF = Instruction(
    "shiftadd_mma_b1_half",
    "void* to, const void* left, unsigned right",
    "unsigned* d = (unsigned*)to; const unsigned* a = (const unsigned*)left; "
    'asm volatile("mma.sync.aligned.m16n8k128.row.col.s32.b1.b1.s32.and.popc '
    '{%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};" '
    ': "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(right));',
)
def _bytes(kind: str) -> Instruction:
    return Instruction(
        f"shiftadd_mma_{kind}",
        "void* to, const void* left, unsigned low, unsigned high",
        "unsigned* d = (unsigned*)to; const unsigned* a = (const unsigned*)left; "
        f'asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.{kind}.s32 '
        '{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" '
        ': "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]) '
        ': "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(low), "r"(high));',
    )


# d (16 x 8) += a (16 x 32) · b (32 x 8), bytes without a sign by bytes without or with one
MMA_U8, MMA_S8 = _bytes("u8"), _bytes("s8")
# adds the value that the lane `index % 32` of the warp holds
ADD_SHUFFLED = Instruction(
    "shiftadd_add_shuffled",
    "void* to, unsigned value, unsigned index",
    'unsigned found; asm volatile("shfl.sync.idx.b32 %0, %1, %2, 31, -1;" '
    ': "=r"(found) : "r"(value), "r"(index)); *(unsigned*)to += found;',
)
# adds the value that the lane `lane ^ mask` of the warp holds to this lane's
ADD_ACROSS = Instruction(
    "shiftadd_add_across",
    "void* to, unsigned mask",
    "unsigned* value = (unsigned*)to; unsigned found; "
    'asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 31, -1;" '
    ': "=r"(found) : "r"(*value), "r"(mask)); *value += found;',
)
# adds the float32 that the lane `lane ^ mask` holds to this lane's; in the end all lanes have the same
ADD_FLOATS_ACROSS = Instruction(
    "shiftadd_add_floats_across",
    "void* to, unsigned mask",
    "float* value = (float*)to; float found; "
    'asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 31, -1;" '
    ': "=f"(found) : "f"(*value), "r"(mask)); *value += found;',
)
# likewise the larger one of both; of a number and no number, the number
MAX_FLOATS_ACROSS = Instruction(
    "shiftadd_max_floats_across",
    "void* to, unsigned mask",
    "float* value = (float*)to; float found; "
    'asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 31, -1;" '
    ': "=f"(found) : "f"(*value), "r"(mask)); *value = fmaxf(*value, found);',
)
# the float32 that the lane `lane ^ mask` holds
TAKE_ACROSS = Instruction(
    "shiftadd_take_across",
    "void* to, float value, unsigned mask",
    'asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 31, -1;" '
    ': "=f"(*(float*)to) : "f"(value), "r"(mask));',
)
# the float32 that the lane `index % 32` of the warp holds
TAKE_FLOAT = Instruction(
    "shiftadd_take_float",
    "void* to, float value, unsigned index",
    'asm volatile("shfl.sync.idx.b32 %0, %1, %2, 31, -1;" '
    ': "=f"(*(float*)to) : "f"(value), "r"(index));',
)
# whole numbers: every order of addition gives the same
ADD_SHARED = Instruction(
    "shiftadd_add_shared",
    "void* to, unsigned value",
    'asm volatile("red.shared.add.u32 [%0], %1;" '
    ': : "r"((unsigned)__cvta_generic_to_shared(to)), "r"(value) : "memory");',
)
# likewise where blocks add to one number
ADD_GLOBAL = Instruction(
    "shiftadd_add_global",
    "void* to, unsigned value",
    'asm volatile("red.global.add.u32 [%0], %1;" '
    ': : "l"(__cvta_generic_to_global(to)), "r"(value) : "memory");',
)
# adds a float32 to one in global memory, in any order
ADD_FLOAT = Instruction(
    "shiftadd_add_float",
    "void* to, float value",
    'asm volatile("red.global.add.f32 [%0], %1;" : : "l"(to), "f"(value) : "memory");',
)
def _of_warp(name: str, operation: str) -> Instruction:
    return Instruction(
        f"shiftadd_{name}",
        "void* to",
        f'unsigned* value = (unsigned*)to; asm volatile("redux.sync.{operation}.u32 %0, %1, -1;" '
        ': "=r"(*value) : "r"(*value));',
    )


# the sum, and the largest, of all lanes' whole numbers
ADD_LANES, MAX_LANES = _of_warp("add_lanes", "add"), _of_warp("max_lanes", "max")
# swaps the bits at distance `step` of the lanes at that distance: after 16, 8, 4, 2 and 1 the lanes hold
# what the places of their words held
SWAP_BITS = Instruction(
    "shiftadd_swap_bits",
    "void* to, unsigned step, unsigned lower",
    "unsigned* value = (unsigned*)to; unsigned found; "
    'asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 31, -1;" '
    ': "=r"(found) : "r"(*value), "r"(step)); '
    "*value = (threadIdx.x & step) ? (*value & ~lower) | ((found & ~lower) >> step) "
    ": (*value & lower) | ((found & lower) << step);",
)
# a word of whose bits each is the lowest one of a lane's `flag`
BALLOT = Instruction(
    "shiftadd_ballot",
    "void* to, unsigned flag",
    'unsigned found; asm volatile("{ .reg .pred p; setp.ne.u32 p, %1, 0; '
    'vote.sync.ballot.b32 %0, p, -1; }" : "=r"(found) : "r"(flag & 1u)); *(unsigned*)to = found;',
)
# the larger of two whole numbers, in any order
MAX_SHARED = Instruction(
    "shiftadd_max_shared",
    "void* to, unsigned value",
    'asm volatile("red.shared.max.u32 [%0], %1;" '
    ': : "r"((unsigned)__cvta_generic_to_shared(to)), "r"(value) : "memory");',
)
# adds a whole number of 32 bits, shifted to its place, to one of 64
ADD_WIDE = Instruction(
    "shiftadd_add_wide",
    "void* to, int value, unsigned places",
    'long long moved; asm volatile("cvt.s64.s32 %0, %1; shl.b64 %0, %0, %2;" '
    ': "=l"(moved) : "r"(value), "r"(places)); *(long long*)to += moved;',
)
