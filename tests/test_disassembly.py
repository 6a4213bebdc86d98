"""Decoding and classes, against encodings that GNU as (x86) and llvm-mc (aarch64) made from the text."""

import random

import pytest

from shiftadd_tvm.disassembly import BRANCH, CALL, JUMP, STOP, UNKNOWN, Instruction, disassemble
from shiftadd_tvm.instruction_classes import CLASSES, classify, is_scalar_product

pytest.importorskip("iced_x86")
pytest.importorskip("capstone")

# encoding, text, classes
X86_64 = """
660ffeca             paddd xmm1, xmm2                             | add
0f59ca               mulps xmm1, xmm2                             | multiply
660ff5ca             pmaddwd xmm1, xmm2                           | multiply add
660f3800ca           pshufb xmm1, xmm2                            | shuffle
660f380008           pshufb xmm1, [rax]                           | shuffle load
660ff6ca             psadbw xmm1, xmm2                            | add
660f71d104           psrlw xmm1, 4                                | shift
660f73d904           psrldq xmm1, 4                               | shuffle
0f1008               movups xmm1, [rax]                           | load
0f1108               movups [rax], xmm1                           | store
0f28ca               movaps xmm1, xmm2                            | move
660f3814ca           blendvps xmm1, xmm2                          | logic
660f3840ca           pmulld xmm1, xmm2                            | multiply
f30f5eca             divss xmm1, xmm2                             | multiply
0f51ca               sqrtps xmm1, xmm2                            | multiply
0f53ca               rcpps xmm1, xmm2                             | multiply
660f3a40ca01         dpps xmm1, xmm2, 1                           | multiply add
0f5bca               cvtdq2ps xmm1, xmm2                          | convert
660f67ca             packuswb xmm1, xmm2                          | convert
0f5fca               maxps xmm1, xmm2                             | compare
c5edfecb             vpaddd ymm1, ymm2, ymm3                      | add
c5ec580c88           vaddps ymm1, ymm2, [rax+rcx*4]               | add load
c4e26d16cb           vpermps ymm1, ymm2, ymm3                     | shuffle
c4e26d3608           vpermd ymm1, ymm2, [rax]                     | shuffle load
c4e26d00cb           vpshufb ymm1, ymm2, ymm3                     | shuffle
c4e26d45cb           vpsrlvd ymm1, ymm2, ymm3                     | shift
c5f572f203           vpslld ymm1, ymm2, 3                         | shift
c5eddbcb             vpand ymm1, ymm2, ymm3                       | logic
c4e36d4acb40         vblendvps ymm1, ymm2, ymm3, ymm4             | logic
c4e26db8cb           vfmadd231ps ymm1, ymm2, ymm3                 | multiply add
c4e2699f08           vfnmsub132ss xmm1, xmm2, [rax]               | multiply add load
c4e26d04cb           vpmaddubsw ymm1, ymm2, ymm3                  | multiply add
c4e26d50cb           {vex} vpdpbusd ymm1, ymm2, ymm3              | multiply add
c4e26f50cb           vpdpbssd ymm1, ymm2, ymm3                    | multiply add
c4e26d0bcb           vpmulhrsw ymm1, ymm2, ymm3                   | multiply
c5edf4cb             vpmuludq ymm1, ymm2, ymm3                    | multiply
c4e27d1808           vbroadcastss ymm1, [rax]                     | load
c4e27d78ca           vpbroadcastb ymm1, xmm2                      | shuffle
c4e265900c90         vpgatherdd ymm1, [rax+ymm2*4], ymm3          | load
c4e37d390801         vextracti128 [rax], ymm1, 1                  | shuffle store
c4e27d3008           vpmovzxbw ymm1, [rax]                        | convert load
c5fdd7c1             vpmovmskb eax, ymm1                          | move
c4e27d1308           vcvtph2ps ymm1, [rax]                        | convert load
c5edf6cb             vpsadbw ymm1, ymm2, ymm3                     | add
62f26d488dcb         vpermb zmm1, zmm2, zmm3                      | shuffle
62f26dc98d08         vpermb zmm1{k1}{z}, zmm2, [rax]              | shuffle load
62f26d4875cb         vpermi2b zmm1, zmm2, zmm3                    | shuffle
62f2ed487dcb         vpermt2w zmm1, zmm2, zmm3                    | shuffle
62f26d4800cb         vpshufb zmm1, zmm2, zmm3                     | shuffle
62f26d4850cb         vpdpbusd zmm1, zmm2, zmm3                    | multiply add
62f26d585108         vpdpbusds zmm1, zmm2, dword ptr [rax]{1to16} | multiply add load
62f26d4852cb         vpdpwssd zmm1, zmm2, zmm3                    | multiply add
62f26e4852cb         vdpbf16ps zmm1, zmm2, zmm3                   | multiply add
62f36d4825cb96       vpternlogd zmm1, zmm2, zmm3, 0x96            | logic
62f2ed4883cb         vpmultishiftqb zmm1, zmm2, zmm3              | shift
62f36d4871cb03       vpshldd zmm1, zmm2, zmm3, 3                  | shift
62f1754872ca03       vprold zmm1, zmm2, 3                         | shift
62f26d482ccb         vscalefps zmm1, zmm2, zmm3                   | shift
62f27d4854ca         vpopcntb zmm1, zmm2                          | logic
62f3ed48cecb01       vgf2p8affineqb zmm1, zmm2, zmm3, 1           | multiply
62f2ed48b4cb         vpmadd52luq zmm1, zmm2, zmm3                 | multiply add
62f2ed4840cb         vpmullq zmm1, zmm2, zmm3                     | multiply
62f16d49fdcb         vpaddw zmm1{k1}, zmm2, zmm3                  | add
62f16d4874cb         vpcmpeqb k1, zmm2, zmm3                      | compare
c5ec41cb             kandw k1, k2, k3                             | logic
c4e1fb92c8           kmovq k1, rax                                | move
62f17fc96f08         vmovdqu8 zmm1{k1}{z}, [rax]                  | load
62f27e4830d1         vpmovwb ymm1, zmm2                           | convert
62f27d4963d1         vpcompressb zmm1{k1}, zmm2                   | shuffle
62f56c4858cb         vaddph zmm1, zmm2, zmm3                      | add
62f66d48a8cb         vfmadd213ph zmm1, zmm2, zmm3                 | multiply add
62f27d484eca         vrsqrt14ps zmm1, zmm2                        | multiply
62f37d4808ca08       vrndscaleps zmm1, zmm2, 8                    | convert
c4e2635eca           tdpbssd tmm1, tmm2, tmm3                     | multiply add
488d048b             lea rax, [rbx+rcx*4]                         | scalar
480fafc3             imul rax, rbx                                | scalar
4883c040             add rax, 64                                  | scalar
8b03                 mov eax, [rbx]                               | load
8903                 mov [rbx], eax                               | store
0f1808               prefetcht0 [rax]                             | scalar
c5f877               vzeroupper                                   | scalar
"""
AARCH64 = """
2000024e             tbl v0.16b, {v1.16b}, v2.16b                 | shuffle
2020034e             tbl v0.16b, {v1.16b, v2.16b}, v3.16b         | shuffle
2084224e             add v0.16b, v1.16b, v2.16b                   | add
2010620e             saddw v0.4s, v1.4s, v2.4h                    | add
2010226e             uaddw2 v0.8h, v1.8h, v2.16b                  | add
2068604e             sadalp v0.4s, v1.8h                          | add
2068206e             uadalp v0.8h, v1.16b                         | add
20d4224e             fadd v0.4s, v1.4s, v2.4s                     | add
20d4226e             faddp v0.4s, v1.4s, v2.4s                    | add
20b8b14e             addv s0, v1.4s                               | add
2050222e             uabal v0.8h, v1.8b, v2.8b                    | add
20b8a06e             neg v0.4s, v1.4s                             | add
2094824e             sdot v0.4s, v1.16b, v2.16b                   | multiply add
20e0a26f             udot v0.4s, v1.16b, v2.4b[1]                 | multiply add
209c824e             usdot v0.4s, v1.16b, v2.16b                  | multiply add
20a4824e             smmla v0.4s, v1.16b, v2.16b                  | multiply add
20fc426e             bfdot v0.4s, v1.8h, v2.8h                    | multiply add
20fcc22e             bfmlalb v0.4s, v1.8h, v2.8h                  | multiply add
2080620e             smlal v0.4s, v1.4h, v2.4h                    | multiply add
2080226e             umlal2 v0.8h, v1.16b, v2.16b                 | multiply add
20c0224e             smull2 v0.8h, v1.16b, v2.16b                 | multiply
2094624e             mla v0.8h, v1.8h, v2.8h                      | multiply add
209c624e             mul v0.8h, v1.8h, v2.8h                      | multiply
2010a24f             fmla v0.4s, v1.4s, v2.s[1]                   | multiply add
2008221e             fmul s0, s1, s2                              | multiply
200c021f             fmadd s0, s1, s2, s3                         | multiply add
20fc226e             fdiv v0.4s, v1.4s, v2.4s                     | multiply
20f8a16e             fsqrt v0.4s, v1.4s                           | multiply
20d8a14e             frecpe v0.4s, v1.4s                          | multiply
20b4626e             sqrdmulh v0.8h, v1.8h, v2.8h                 | multiply
20e0220e             pmull v0.8h, v1.8b, v2.8b                    | multiply
20040c6f             ushr v0.16b, v1.16b, #4                      | shift
2054284f             shl v0.4s, v1.4s, #8                         | shift
2044a24e             sshl v0.4s, v1.4s, v2.4s                     | shift
20a4080f             sshll v0.8h, v1.8b, #0                       | shift
20143d6f             usra v0.4s, v1.4s, #3                        | shift
2054236f             sli v0.4s, v1.4s, #3                         | shift
20840c0f             shrn v0.8b, v1.8h, #4                        | shift
201c224e             and v0.16b, v1.16b, v2.16b                   | logic
201c626e             bsl v0.16b, v1.16b, v2.16b                   | logic
200c02ce             eor3 v0.16b, v1.16b, v2.16b, v3.16b          | logic
2058204e             cnt v0.16b, v1.16b                           | logic
2038024e             zip1 v0.16b, v1.16b, v2.16b                  | shuffle
2058024e             uzp2 v0.16b, v1.16b, v2.16b                  | shuffle
2040026e             ext v0.16b, v1.16b, v2.16b, #8               | shuffle
200c044e             dup v0.4s, w1                                | shuffle
2008a04e             rev64 v0.4s, v1.4s                           | shuffle
208c226e             cmeq v0.16b, v1.16b, v2.16b                  | compare
20f4224e             fmax v0.4s, v1.4s, v2.4s                     | compare
20d8214e             scvtf v0.4s, v1.4s                           | convert
2028610e             xtn v0.4h, v1.4s                             | convert
2028212e             sqxtun v0.8b, v1.8h                          | convert
2078210e             fcvtl v0.4s, v1.4h                           | convert
00e4006f             movi v0.2d, #0                               | move
2000271e             fmov s0, w1                                  | move
203c070e             umov w0, v1.b[3]                             | move
601c0c4e             mov v0.s[1], w3                              | move
2008c03d             ldr q0, [x1, #32]                            | load
2004c1ac             ldp q0, q1, [x1], #32                        | load
20a0404c             ld1 {v0.16b, v1.16b}, [x1]                   | load
20c8404d             ld1r {v0.4s}, [x1]                           | load
2090400d             ld1 {v0.s}[1], [x1]                          | load
2000803d             str q0, [x1]                                 | store
2070004c             st1 {v0.16b}, [x1]                           | store
207862b8             ldr w0, [x1, x2, lsl #2]                     | load
20004039             ldrb w0, [x1]                                | load
20000079             strh w0, [x1]                                | store
207c029b             mul x0, x1, x2                               | scalar
200c021b             madd w0, w1, w2, w3                          | scalar
200c028b             add x0, x1, x2, lsl #3                       | scalar
002080f9             prfm pldl1keep, [x0, #64]                    | scalar
00a000a4             ld1b {z0.b}, p0/z, [x0]                      | load
20302205             tbl z0.b, {z1.b}, z2.b                       | shuffle
20008244             sdot z0.s, z1.b, z2.b                        | multiply add
2000a265             fmla z0.s, p0/m, z1.s, z2.s                  | multiply add
2060a204             mul z0.s, z1.s, z2.s                         | multiply
2000a204             add z0.s, z1.s, z2.s                         | add
"""


def rows(table: str) -> list[tuple[str, str, list[str]]]:
    found = []
    for line in table.strip().splitlines():
        left, _, classes = line.rpartition("|")
        encoding, _, text = left.strip().partition(" ")
        found.append((encoding, text.strip(), classes.split()))
    return found


CASES = [("x86_64", *row) for row in rows(X86_64)] + [("aarch64", *row) for row in rows(AARCH64)]


def one(encoding: str, machine: str, address: int = 0) -> Instruction:
    (instruction,) = disassemble(bytes.fromhex(encoding), address, machine)
    return instruction


@pytest.mark.parametrize(
    ("machine", "encoding", "text", "classes"), CASES, ids=[case[2] for case in CASES]
)
def test_classes(machine: str, encoding: str, text: str, classes: list[str]) -> None:
    instruction = one(encoding, machine)
    mnemonic = text.removeprefix("{vex} ").split()[0]
    assert instruction.mnemonic == mnemonic and instruction.size * 2 == len(encoding)
    assert list(classify(instruction, machine)) == classes and set(classes) <= set(CLASSES)


def test_every_class_of_data_is_covered() -> None:
    for machine in ("x86_64", "aarch64"):
        covered = {name for case in CASES if case[0] == machine for name in case[3]}
        assert covered == set(CLASSES) - {UNKNOWN}


@pytest.mark.parametrize(
    ("machine", "encoding", "loaded", "stored"),
    [
        ("x86_64", "c4e26d3608", 32, 0),  # vpermd ymm1, ymm2, [rax]
        ("x86_64", "62f26d585108", 4, 0),  # vpdpbusds zmm1, zmm2, dword ptr [rax]{1to16}
        ("x86_64", "c4e37d390801", 0, 16),  # vextracti128 [rax], ymm1, 1
        ("x86_64", "488d048b", 0, 0),  # lea rax, [rbx+rcx*4]
        ("x86_64", "55", 0, 0),  # push rbp
        ("aarch64", "2004c1ac", 32, 0),  # ldp q0, q1, [x1], #32
        ("aarch64", "20a0404c", 32, 0),  # ld1 {v0.16b, v1.16b}, [x1]
        ("aarch64", "20c8404d", 4, 0),  # ld1r {v0.4s}, [x1]
        ("aarch64", "2090400d", 4, 0),  # ld1 {v0.s}[1], [x1]
        ("aarch64", "20004039", 1, 0),  # ldrb w0, [x1]
        ("aarch64", "2000803d", 0, 16),  # str q0, [x1]
        ("aarch64", "000480f9", 0, 0),  # prfm pldl1strm, [x0, #8]
    ],
)
def test_bytes_of_memory(machine: str, encoding: str, loaded: int, stored: int) -> None:
    instruction = one(encoding, machine)
    assert (instruction.loaded, instruction.stored) == (loaded, stored)


@pytest.mark.parametrize(
    ("machine", "encoding", "flow", "target"),
    [
        ("x86_64", "ebfe", JUMP, 0x1000),
        ("x86_64", "75fe", BRANCH, 0x1000),
        ("x86_64", "e8fbffffff", CALL, 0x1000),
        ("x86_64", "ffd0", CALL, None),
        ("x86_64", "c3", STOP, None),
        ("x86_64", "0f0b", STOP, None),
        ("aarch64", "ffffff17", JUMP, 0xFFC),
        ("aarch64", "81ffff54", BRANCH, 0xFF0),
        ("aarch64", "60ffffb5", BRANCH, 0xFEC),
        ("aarch64", "40001836", BRANCH, 0x1008),
        ("aarch64", "10000094", CALL, 0x1040),
        ("aarch64", "00013fd6", CALL, None),
        ("aarch64", "c0035fd6", STOP, None),
    ],
)
def test_flow(machine: str, encoding: str, flow: str, target: int | None) -> None:
    instruction = one(encoding, machine, 0x1000)
    assert (instruction.flow, instruction.target) == (flow, target)


def test_addresses_are_told_from_data() -> None:
    product = one("480fafc3", "x86_64")  # imul rax, rbx
    assert is_scalar_product(product) and product.writes == {"rax"}
    assert product.reads == {"rax", "rbx"} and not product.addresses
    load = one("c5ec580c88", "x86_64")  # vaddps ymm1, ymm2, [rax+rcx*4]
    assert load.addresses == {"rax", "rcx"} and not load.reads
    lea = one("488d048b", "x86_64")
    assert lea.reads == {"rbx", "rcx"} and lea.writes == {"rax"} and not lea.addresses
    arm = one("207862b8", "aarch64")  # ldr w0, [x1, x2, lsl #2]
    assert arm.addresses == {"x1", "x2"} and arm.writes == {"x0"} and not arm.reads
    assert is_scalar_product(one("207c029b", "aarch64"))  # mul x0, x1, x2


def test_a_pair_of_adrp_states_an_address() -> None:
    # adrp x0, #0x2000; adrp x8, #0x3000; add x0, x0, #0x10; ldr x8, [x8, #0x18]
    code = bytes.fromhex("00000090 08000090 00400091 080d40f9".replace(" ", ""))
    found = disassemble(code, 0x2000, "aarch64")
    assert [i.reference for i in found] == [None, None, 0x2010, 0x2018]


def test_what_no_decoder_knows_is_kept() -> None:
    for machine, encoding in (("x86_64", "06"), ("aarch64", "ffffffff")):
        instruction = one(encoding, machine)
        assert instruction.mnemonic == UNKNOWN and classify(instruction, machine) == (UNKNOWN,)
    exotic = one("c4e279dcc1", "x86_64")  # vaesenc: on vector registers, and in no table
    assert exotic.mnemonic == "vaesenc" and classify(exotic, "x86_64") == (UNKNOWN,)


def test_random_words_decode_to_something() -> None:
    content = random.Random(0).randbytes(64_000)
    for machine in ("x86_64", "aarch64"):
        found = disassemble(content, 0, machine)
        assert sum(instruction.size for instruction in found) == len(content)
        assert all(set(classify(i, machine)) <= set(CLASSES) for i in found)
    assert one("1f000010", "aarch64").reference is None  # adr xzr, #0
