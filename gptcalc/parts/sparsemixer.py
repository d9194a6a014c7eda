"""What the choice of two experts by SparseMixer runs, op by op (Liu et al. 2023, 2024)."""

from gptcalc import tape
from gptcalc.formula import Dim
from gptcalc.tape import Op, Rows, Setting, Tensor


def sparsemixer(setting: Setting, rows: Rows, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Of scores (…, E) in fp32 the shares of two experts, and which they are: (…, 2) both."""
    share, chosen = _choose(setting, rows, scores, scores, "the first")
    rest = rows(tape.whole("aten::scatter", (scores, chosen), tape.made(scores, "scores without the first's")))
    rows[-1] = rows[-1]._replace(saves=(chosen,))
    second, other = _choose(setting, rows, scores, rest, "the second")
    both = (*scores.dims[:-1], Dim("k", 2))
    shares = rows(tape.join((share, second), tape.made(share, "shares of the two", *both)))
    experts = rows(tape.join((chosen, other), tape.made(chosen, "chosen experts", *both)))
    rows.drop(share, chosen, rest, second, other)
    return shares, experts


def _unseen(rows: Rows, op: Op) -> Tensor:
    """The output of what autograd does not see."""
    return rows(op._replace(unrecorded=True))


def _choose(setting: Setting, rows: Rows, scores: Tensor, left: Tensor, which: str) -> tuple[Tensor, Tensor]:
    """The share and the place of one of the scores that are `left`."""
    most = _unseen(rows, tape.largest(left, f"largest score for {which}", f"place of the largest for {which}"))
    (best,) = rows[-1].handed
    far = _far(rows, scores, most, which)
    near = rows(tape.masked_fill(left, far, f"scores near the largest for {which}"))
    rows.drop(far)
    chosen = _drawn(rows, near, which) if setting.training else best
    shares = rows(tape.softmax(near, f"probabilities for {which}"))
    share = rows(tape.take(shares, chosen, f"probability of {which}"))
    if setting.training:
        weight = _weights(rows, shares, chosen, which)
        drawn = share
        reads = (scores, drawn, chosen, shares, weight)
        op = tape.whole("sparsemixer", reads, tape.made(drawn, f"share of {which}"))
        share = rows(op._replace(saves=(drawn, chosen, shares)))
        rows.drop(weight, drawn, best)
    rows.drop(most, near, shares)
    return share, chosen


def _far(rows: Rows, scores: Tensor, most: Tensor, which: str) -> Tensor:
    """Which scores are too far from the largest."""

    def made(name: str, reads: tuple[Tensor, ...], label: str, dtype: str = "") -> Tensor:
        return _unseen(rows, tape.whole(name, reads, tape.made(scores, f"{label} for {which}", dtype=dtype)))

    size = made("aten::abs", (scores,), "sizes of the scores")
    larger = made("aten::clamp", (size, most), "the larger sizes")
    rows.drop(size)
    less = made("aten::sub", (most, scores), "distances from the largest")
    share = made("aten::div", (less, larger), "shares of distances")
    rows.drop(less)
    far = made("aten::gt", (share,), "scores too far", "bool")
    rows.drop(share, larger)
    return far


def _drawn(rows: Rows, scores: Tensor, which: str) -> Tensor:
    """Places drawn by the scores, as the largest after some noise."""

    def made(name: str, reads: tuple[Tensor, ...], label: str) -> Tensor:
        return _unseen(rows, tape.whole(name, reads, tape.made(scores, f"{label} for {which}")))

    drawn = made("aten::empty_like", (), "numbers drawn")
    noise = made("aten::log", (drawn,), "noise")
    rows.drop(drawn)
    noisy = made("aten::sub", (scores, noise), "scores with noise")
    rows.drop(noise)
    most = _unseen(rows, tape.largest(noisy, f"largest with noise for {which}", f"place of {which}"))
    (place,) = rows[-1].handed
    rows.drop(noisy, most)
    return place


def _weights(rows: Rows, shares: Tensor, chosen: Tensor, which: str) -> Tensor:
    """One for what is likeliest, and now and then for others; else a third."""
    most = _unseen(rows, tape.largest(shares, f"largest share for {which}", f"place of the likeliest for {which}"))
    (likeliest,) = rows[-1].handed

    def made(name: str, reads: tuple[Tensor, ...], label: str, dtype: str = "") -> Tensor:
        return _unseen(rows, tape.whole(name, reads, tape.made(most, f"{label} for {which}", dtype=dtype)))

    same = made("aten::eq", (chosen, likeliest), "whether it is the likeliest", "bool")
    drawn = made("aten::rand_like", (), "numbers drawn by token")
    now = made("aten::gt", (drawn,), "whether it counts in full", "bool")
    rows.drop(drawn)
    full = made("aten::bitwise_or", (same, now), "what counts in full", "bool")
    rows.drop(same, now)
    weight = made("aten::_to_copy", (full,), "weight of the share")
    rows.drop(full, most, likeliest)
    return weight
