"""From logits to the next token of every row."""

import triton
import triton.language as tl


@triton.jit
def _ordered(logits):
    # integers in the order of the floats; -0 and 0 are one number
    bits = tl.where(logits == 0.0, 0.0, logits).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _highest(logits, VOCAB: tl.constexpr, BLOCK: tl.constexpr):
    # largest logit and its lowest index; how many are NaN
    lane = tl.arange(0, BLOCK)
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    where = lane
    odd = tl.zeros([BLOCK], tl.int32)
    for at in range(0, VOCAB, BLOCK):
        value = tl.load(logits + at + lane, mask=at + lane < VOCAB, other=float("-inf"))
        better = value > best
        best = tl.where(better, value, best)
        where = tl.where(better, at + lane, where)
        odd += (value != value).to(tl.int32)
    top = tl.max(best, 0)
    return top, tl.min(tl.where(best == top, where, VOCAB), 0), tl.sum(odd, 0)


@triton.jit
def argmax(logits, tokens, rows, VOCAB: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    _, index, _ = _highest(logits + row.to(tl.int64) * VOCAB, VOCAB, BLOCK)
    tl.store(tokens + row, index)


@triton.jit
def _weight(value, top, rate, COUNT: tl.constexpr):
    # what a logit adds to its set: 1, or its probability over that of the largest
    return tl.full(value.shape, 1.0, tl.float32) if COUNT else tl.exp2((value - top) * rate)


@triton.jit
def _cut(
    logits, low, target, top, rate, COUNT: tl.constexpr, STRICT: tl.constexpr, VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    # The largest logit (as an integer) such that those at or above it weigh at least target, or above it (STRICT), and
    # `low` if only those below `low` would. Four parts a pass, so 16 passes at most.
    lane = tl.arange(0, BLOCK)
    low = low.to(tl.int64)
    high = _ordered(top).to(tl.int64) + 1
    while high - low > 1:
        p1 = (low + (high - low) // 4).to(tl.int32)
        p2 = (low + (high - low) // 2).to(tl.int32)
        p3 = (low + (high - low) * 3 // 4).to(tl.int32)
        w1 = tl.zeros([BLOCK], tl.float32)
        w2 = tl.zeros([BLOCK], tl.float32)
        w3 = tl.zeros([BLOCK], tl.float32)
        for at in range(0, VOCAB, BLOCK):
            value = tl.load(logits + at + lane, mask=at + lane < VOCAB, other=float("-inf"))
            weight = tl.where(at + lane < VOCAB, _weight(value, top, rate, COUNT), 0.0)
            order = _ordered(value)
            w1 += tl.where(order >= p1, weight, 0.0)
            w2 += tl.where(order >= p2, weight, 0.0)
            w3 += tl.where(order >= p3, weight, 0.0)
        s1, s2, s3 = tl.sum(w1, 0), tl.sum(w2, 0), tl.sum(w3, 0)
        if STRICT:
            reached1, reached2, reached3 = s1 > target, s2 > target, s3 > target
        else:
            reached1, reached2, reached3 = s1 >= target, s2 >= target, s3 >= target
        bottom, ceiling = low, high
        low = tl.where(reached3, p3, tl.where(reached2, p2, tl.where(reached1, p1, bottom)))
        high = tl.where(reached3, ceiling, tl.where(reached2, p3, tl.where(reached1, p2, p1)))
    return low.to(tl.int32)


@triton.jit
def _around(logits, cut, top, rate, VOCAB: tl.constexpr, BLOCK: tl.constexpr):
    # logits above `cut`: how many and their weight; how many are equal to it, and the weight of one of them
    lane = tl.arange(0, BLOCK)
    above = tl.zeros([BLOCK], tl.int32)
    equal = tl.zeros([BLOCK], tl.int32)
    mass = tl.zeros([BLOCK], tl.float32)
    for at in range(0, VOCAB, BLOCK):
        there = at + lane < VOCAB
        value = tl.load(logits + at + lane, mask=there, other=float("-inf"))
        order = _ordered(value)
        higher = there & (order > cut)
        above += higher.to(tl.int32)
        equal += (there & (order == cut)).to(tl.int32)
        mass += tl.where(higher, _weight(value, top, rate, False), 0.0)
    value = tl.where(cut < 0, cut ^ 0x7FFFFFFF, cut).to(tl.float32, bitcast=True)
    return tl.sum(above, 0), tl.sum(mass, 0), tl.sum(equal, 0), _weight(value, top, rate, False)


@triton.jit
def _nth(logits, cut, n, VOCAB: tl.constexpr, BLOCK: tl.constexpr):
    # index of the n-th logit, from 0, that is `cut`
    lane = tl.arange(0, BLOCK)
    seen = 0
    index = 0
    for at in range(0, VOCAB, BLOCK):
        there = at + lane < VOCAB
        value = tl.load(logits + at + lane, mask=there, other=0.0)
        equal = (there & (_ordered(value) == cut)).to(tl.int32)
        place = seen + tl.cumsum(equal, 0) - 1
        index += tl.sum(tl.where((equal > 0) & (place == n), at + lane, 0), 0)
        seen += tl.sum(equal, 0)
    return index


@triton.jit
def sample(
    logits, temperature, top_p, top_k, uniform, tokens, rows, VOCAB: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    logits += row.to(tl.int64) * VOCAB
    heat = tl.load(temperature + row)
    top, token, odd = _highest(logits, VOCAB, BLOCK)
    if (odd > 0) | (top == float("inf")):
        token = -1
    elif heat > 0:
        # the bound keeps 0 * rate a number
        rate = 1.4426950408889634 / tl.maximum(heat, 1e-30)
        k = tl.load(top_k + row)
        p = tl.load(top_p + row)
        # The kept ones are all above `cut` and the first `kept` of those that are equal to it. 1 below -inf: all.
        cut = tl.full([], -2139095042, tl.int32)
        if (k > 0) & (k < VOCAB):
            cut = _cut(logits, cut, k.to(tl.float32), top, rate, True, False, VOCAB, BLOCK)
        above, mass, equal, one = _around(logits, cut, top, rate, VOCAB, BLOCK)
        kept = tl.minimum(equal, k - above)
        total = mass + tl.where(kept > 0, kept * one, 0.0)
        if p < 1:
            before = cut
            cut = _cut(logits, cut, p * total, top, rate, False, False, VOCAB, BLOCK)
            above, mass, equal, one = _around(logits, cut, top, rate, VOCAB, BLOCK)
            most = tl.where(cut == before, kept, equal)
            kept = tl.minimum(most, tl.maximum(1, tl.ceil((p * total - mass) / one).to(tl.int32)))
            total = mass + kept * one
        # the token at which the kept ones' weight, largest first, passes this
        target = tl.minimum(tl.load(uniform + row), 0.99999994) * total
        last = cut
        cut = _cut(logits, cut, target, top, rate, False, True, VOCAB, BLOCK)
        above, mass, equal, one = _around(logits, cut, top, rate, VOCAB, BLOCK)
        most = tl.where(cut == last, kept, equal)
        nth = tl.minimum(most - 1, tl.maximum(0, tl.floor((target - mass) / one).to(tl.int32)))
        token = _nth(logits, cut, nth, VOCAB, BLOCK)
    tl.store(tokens + row, token)
