"""What attention has of a token that is new: heads of queries, a key and a value, from what projections
gave to shared memory; its score; and the write into the cache.

A warp has a head at a time. All that it needs is asked for before any of it is used, so that heads and
what says where the first pages lie are on their way at once. Blocks of a kernel run in any order: each
that sees the new token takes it from its own shared memory, and one of them writes it.
"""

from tvm.script import tirx as T

from shiftadd_tvm.ops.activation import capped
from shiftadd_tvm.ops.attention import PAGE
from shiftadd_tvm.ops.elementwise import inverse_of
from shiftadd_tvm.ops.heads import Heads, partner_of, rotated
from shiftadd_tvm.ops.scores import Scores
from shiftadd_tvm.schedules.cuda._instructions import ADD_FLOATS_ACROSS

LANES = 32
WARPS = 4  # of a block
THREADS = LANES * WARPS


def _steps(size: int) -> int:
    """Return how many numbers of a head a lane has: number 32 j + lane is its j-th."""
    return -(-size // LANES)


def _rounds(tile: int) -> int:
    """Return how many of `tile` query heads a warp has: head 4 r + warp is its r-th."""
    return -(-tile // WARPS)


def take(of: Heads, tile: int, scale: float):
    """Return how a block's query heads, from `head` on, come into query (tile D,), scaled, and the key
    and the value of head h into new (2, D); all but the value normalized and turned."""
    ask, turn, count = _ask(of, tile), _turn(of, tile, scale), _steps(of.query.size)

    @T.inline
    def take_(
        query, new, given_q, given_k, given_v, norm_q, norm_k, angles, i, head, h, warp, lane
    ):
        # of each head that a warp has, a number and its partner; of queries and keys, the weights of
        # both; cosines and sines
        raw = T.alloc_buffer(((_rounds(tile) + 1) * count * 2,), "float32", scope="local")
        weight = T.alloc_buffer((count * 4,), "float32", scope="local")
        angle = T.alloc_buffer((count * 2,), "float32", scope="local")
        sums = T.alloc_buffer((1,), "float32", scope="local")
        ask(raw, weight, angle, given_q, given_k, given_v, norm_q, norm_k, angles, i, head, h, warp, lane)
        turn(query, new, raw, weight, angle, sums, warp, lane)

    return take_


def _ask(of: Heads, tile: int):
    """Return how a warp loads its heads: one warp has the key behind its queries, another the value."""
    size, half, count, last = of.query.size, of.angles, _steps(of.query.size), _rounds(tile)
    normed = of.epsilon is not None

    def partner(d):
        return partner_of(d, half) if half else d

    @T.inline
    def load(raw, given, layout, i, h, d, at):
        raw[at] = given[i, layout.column(h, d)]
        raw[at + 1] = given[i, layout.column(h, partner(d))]

    @T.inline
    def load_norm(weight, norm, d, at):
        weight[at] = norm[d]
        weight[at + 1] = norm[partner(d)]

    @T.inline
    def ask_(
        raw, weight, angle, given_q, given_k, given_v, norm_q, norm_k, angles, i, head, h, warp, lane
    ):
        for j in T.unroll(count):
            d = T.meta_var(j * LANES + lane)
            if d < size:
                if half > 0:
                    angle[2 * j] = angles[i, 0, d % half]
                    angle[2 * j + 1] = angles[i, 1, d % half]
                if normed:
                    load_norm(weight, norm_q, d, 2 * j)
                    load_norm(weight, norm_k, d, 2 * (count + j))
                for r in T.unroll(last):
                    u = T.meta_var(r * WARPS + warp)
                    if u < tile:
                        load(raw, given_q, of.query, i, head + u, d, (r * count + j) * 2)
                if warp == tile % WARPS:
                    load(raw, given_k, of.key, i, h, d, (last * count + j) * 2)
                if warp == (tile + 1) % WARPS:
                    raw[(last * count + j) * 2] = given_v[i, of.value.column(h, d)]

    return ask_


def _normalize(of: Heads):
    """Return how a warp normalizes the head from raw[at] on, by the weights from weight[first] on."""
    size, count, epsilon = of.query.size, _steps(of.query.size), of.epsilon or 0.0

    @T.inline
    def normalize(raw, weight, sums, at, first, lane):
        sums[0] = T.float32(0)
        for j in T.unroll(count):
            if j * LANES + lane < size:
                sums[0] = sums[0] + raw[at + 2 * j] * raw[at + 2 * j]
        for j in T.unroll(5):
            T.evaluate(
                ADD_FLOATS_ACROSS(T.address_of(sums[0]), T.uint32(1) << T.Cast("uint32", j))
            )
        sums[0] = inverse_of(sums[0], size, epsilon)
        for j in T.unroll(2 * count):
            raw[at + j] = raw[at + j] * sums[0] * weight[first + j]

    return normalize


def _turn(of: Heads, tile: int, scale: float):
    """Return how a warp puts what it asked for into shared memory."""
    size, half, count, last = of.query.size, of.angles, _steps(of.query.size), _rounds(tile)
    normalize, normed = _normalize(of), of.epsilon is not None

    def turned(raw, angle, at, j, d):
        if not half:
            return raw[at]
        pair, turning = (raw[at], raw[at + 1]), (angle[2 * j], angle[2 * j + 1])
        return rotated(pair, turning, d, half, size)

    @T.inline
    def turn_(query, new, raw, weight, angle, sums, warp, lane):
        for r in T.unroll(last):
            u = T.meta_var(r * WARPS + warp)
            if u < tile:
                if normed:
                    normalize(raw, weight, sums, r * count * 2, 0, lane)
                for j in T.unroll(count):
                    d = T.meta_var(j * LANES + lane)
                    if d < size:
                        at = T.meta_var((r * count + j) * 2)
                        query[u * size + d] = turned(raw, angle, at, j, d) * T.float32(scale)
        if warp == tile % WARPS:
            if normed:
                normalize(raw, weight, sums, last * count * 2, count * 2, lane)
            for j in T.unroll(count):
                d = T.meta_var(j * LANES + lane)
                if d < size:
                    new[0, d] = turned(raw, angle, (last * count + j) * 2, j, d)
        if warp == (tile + 1) % WARPS:
            for j in T.unroll(count):
                if j * LANES + lane < size:
                    new[1, j * LANES + lane] = raw[(last * count + j) * 2]

    return turn_


def score(of: Heads, tile: int, rules: Scores):
    """Return how warps set the scores of the new token, meeting[0, WARPS], each those of its heads."""
    size, cap, soft = of.query.size, rules.cap, rules.cap > 0

    @T.inline
    def score_(meeting, query, new, v, warp, lane):
        for r in T.unroll(_rounds(tile)):
            u = T.meta_var(r * WARPS + warp)
            if u < tile:
                v[0] = T.float32(0)
                for j in T.unroll(_steps(size)):
                    d = T.meta_var(j * LANES + lane)
                    if d < size:
                        v[0] = v[0] + query[u * size + d] * new[0, d]
                for j in T.unroll(5):
                    T.evaluate(
                        ADD_FLOATS_ACROSS(T.address_of(v[0]), T.uint32(1) << T.Cast("uint32", j))
                    )
                if soft:
                    v[0] = capped(v[0], cap)
                if lane == 0:
                    meeting[0, WARPS, u] = v[0]

    return score_


def write(of: Heads):
    """Return how a block writes the new key and value of head h to position `own`, in page `held`."""
    size = of.query.size

    @T.inline
    def write_(keys, values, new, layer, held, h, own, tx):
        for turn_ in T.unroll(-(-size // THREADS)):
            d = T.meta_var(turn_ * THREADS + tx)
            if d < size:
                keys[layer, held, h, d, own % PAGE] = new[0, d]
                values[layer, held, h, own % PAGE, d] = new[1, d]

    return write_
