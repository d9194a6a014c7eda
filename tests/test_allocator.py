"""The model of CUDA's caching allocator against examples by hand, a slow second one, and laws."""

from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcalc.allocator import Allocator, Block, Figures, round_size, segment_size
from gptcalc.units import KIB, MIB

#: Around every threshold, repeated sizes (exact fits), and anything between.
Sizes = st.one_of(
    st.sampled_from([n * MIB + d for n in (1, 2, 9, 10, 11, 12, 18, 19, 20, 21) for d in (-512, -1, 0, 1, 512)]),
    st.sampled_from([0, 1, 511, 512, 513, 4 * KIB, 512 * KIB]),
    st.integers(1, 2 * MIB),
    st.integers(1, 48).map(lambda n: n * MIB // 2),
    st.integers(1, 40 * MIB),
)


@st.composite
def streams(draw: st.DrawFn) -> list[int | None]:
    """Sizes to allocate, most of them from a few; below 0 which live block to free; `None` to reset the peaks."""
    few = st.sampled_from(draw(st.lists(Sizes, min_size=1, max_size=5)))
    frees = st.integers(-40, -1)
    return draw(st.lists(st.one_of(few, few, Sizes, frees, frees, frees, st.none()), min_size=20, max_size=80))


@dataclass(frozen=True)
class Span:
    """Addresses of one segment; `requested` is 0 where they are free."""

    segment: int
    small: bool
    start: int
    end: int
    requested: int = 0

    @property
    def size(self) -> int:
        return self.end - self.start


class Slow:
    """The rules in the words of the facts: one list of spans by address, searched from its start, summed anew."""

    def __init__(self, *, expandable: bool) -> None:
        self.expandable = expandable
        self.spans: list[Span] = []
        self.history = [self.figures()]

    def figures(self) -> Figures:
        used = [span for span in self.spans if span.requested]
        return Figures(
            sum(span.requested for span in used),
            sum(rounded_by_hand(span.requested) for span in used),
            sum(span.size for span in used),
            sum(span.size for span in self.spans),
        )

    def peak(self) -> Figures:
        return Figures(*map(max, zip(*self.history, strict=True)))

    def reset_peak(self) -> None:
        self.history = [self.figures()]

    def malloc(self, n_bytes: int) -> int:
        """The address of the block, which names it."""
        rounded = rounded_by_hand(n_bytes)
        small = rounded <= 1 * MIB
        fitting = self.holes(rounded, small=small)
        if not fitting:
            self.grow(rounded, small=small)
            fitting = self.holes(rounded, small=small)
        hole = min(fitting, key=lambda span: (self.expandable and self.is_last(span), span.size, span.start))
        rest = hole.size - rounded
        keep = rest < 512 if small or self.expandable else rest <= 1 * MIB
        end = hole.end if keep else hole.start + rounded
        self.spans.remove(hole)
        self.spans.append(Span(hole.segment, small, hole.start, end, n_bytes))
        self.spans.append(Span(hole.segment, small, end, hole.end))
        self.tidy()
        return hole.start

    def holes(self, rounded: int, *, small: bool) -> list[Span]:
        return [span for span in self.spans if span.small == small and not span.requested and span.size >= rounded]

    def is_last(self, span: Span) -> bool:
        return span.end == max(other.end for other in self.spans if other.small == span.small)

    def grow(self, rounded: int, *, small: bool) -> None:
        """A segment beyond all others, or pages at the end of the pool's own until it holds the request."""
        home = 0 if small else 1 << 60
        top = max((span.end for span in self.spans if span.small == small), default=home)
        if not self.expandable:
            size = 2 * MIB if small else 20 * MIB
            if rounded >= 10 * MIB:
                size = next(size for size in range(10 * MIB, rounded + 2 * MIB, 2 * MIB) if size >= rounded)
            self.spans.append(Span(top, small, top, top + size))
        while self.expandable and not self.holes(rounded, small=small):
            page = 2 * MIB if small else 20 * MIB
            self.spans.append(Span(home, small, top, top + page))
            top += page
            self.tidy()

    def free(self, address: int) -> None:
        self.spans = [
            Span(span.segment, span.small, span.start, span.end) if span.start == address else span
            for span in self.spans
        ]
        self.tidy()

    def tidy(self) -> None:
        """Sort, drop what is empty, join free neighbours of one segment."""
        joined: list[Span] = []
        for span in sorted((span for span in self.spans if span.size), key=lambda span: span.start):
            last = joined[-1] if joined else None
            if last and last.segment == span.segment and not last.requested and not span.requested:
                joined[-1] = Span(span.segment, span.small, last.start, span.end)
            else:
                joined.append(span)
        self.spans = joined


def rounded_by_hand(n_bytes: int) -> int:
    """The next multiple of 512."""
    return n_bytes if n_bytes % 512 == 0 else n_bytes + 512 - n_bytes % 512


def taken(allocator: Allocator, n_bytes: int) -> int:
    """What `allocated` grows by when `n_bytes` are asked for and kept."""
    before = allocator.allocated
    allocator.malloc(n_bytes)
    return allocator.allocated - before


def replay(events: list[int | None], allocator: Allocator, slow: Slow) -> None:
    """Give both the same events; after each, all figures and peaks are the same, in their order, and fit together."""
    live: list[tuple[Block | None, int | None]] = []
    for event in events:
        held = allocator.reserved
        if event is None:
            allocator.reset_peak()
            slow.reset_peak()
        elif event >= 0:
            live.append((allocator.malloc(event), slow.malloc(event) if event else None))
        elif live:
            block, address = live.pop(event % len(live))
            allocator.free(block)
            if address is not None:
                slow.free(address)
        slow.history.append(slow.figures())
        now = allocator.current()
        assert now == slow.figures()
        assert allocator.peak() == slow.peak()
        assert sorted(now) == list(now)
        assert allocator.reserved >= held


@settings(deadline=None)
@given(streams(), st.booleans())
def test_both_allocators_agree(events: list[int | None], expandable: bool) -> None:  # noqa: FBT001
    """After every event a second allocator, written otherwise, has the same four figures and the same peaks."""
    replay(events, Allocator(expandable=expandable), Slow(expandable=expandable))


@pytest.mark.parametrize("expandable", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_both_allocators_agree_at_length(seed: int, *, expandable: bool) -> None:
    """Longer streams, in which memory is full of holes, are held against the second allocator too."""
    rng = Random(seed)
    common = [int(2 ** rng.uniform(8, 25)) for _ in range(12)]
    events: list[int | None] = []
    for _ in range(400):
        size = rng.choice(common) if rng.random() < 0.7 else int(2 ** rng.uniform(4, 25))
        events.append(size if rng.random() < 0.55 else -rng.randint(1, 10**6))
    replay(events, Allocator(expandable=expandable), Slow(expandable=expandable))


@pytest.mark.parametrize(
    ("n_bytes", "allocated", "reserved"),
    [
        (1, 512, 2 * MIB),
        (512, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (1 * MIB, 1 * MIB, 2 * MIB),
        (1 * MIB + 1, 1 * MIB + 512, 20 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB - 511, 10 * MIB, 10 * MIB),
        (10 * MIB + 1, 10 * MIB + 512, 12 * MIB),
        (113 * MIB // 10, 12 * MIB, 12 * MIB),
        (12 * MIB, 12 * MIB, 12 * MIB),
    ],
)
def test_first_request(n_bytes: int, allocated: int, reserved: int) -> None:
    """The first request by hand: what it is rounded to, what it is handed, which segment it comes from."""
    allocator = Allocator()
    allocator.malloc(n_bytes)
    rounded = rounded_by_hand(n_bytes)
    assert allocator.current() == allocator.peak() == Figures(n_bytes, rounded, allocated, reserved)
    assert (round_size(n_bytes), segment_size(rounded)) == (rounded, reserved)


def test_snapshot_of_a_real_device() -> None:
    """Blocks and segments of X·W + b as a CUDA snapshot has them (discuss.pytorch.org/t/178671)."""
    allocator = Allocator()
    assert [taken(allocator, n_bytes) for n_bytes in (40448, 512, 4096, 512)] == [40448, 512, 4096, 512]
    assert (allocator.allocated, allocator.reserved) == (45568, 2 * MIB)
    assert taken(allocator, 8519680) == 8519680
    assert allocator.reserved == 2 * MIB + 20971520


def test_large_block_is_reused_whole() -> None:
    """A free block of 3.9 MiB serves 3 MiB and counts as 3.9 MiB: less than 1 MiB would be left over."""
    allocator = Allocator()
    block = allocator.malloc(39 * MIB // 10)
    allocator.malloc(2 * MIB)
    allocator.free(block)
    assert taken(allocator, 3 * MIB) == rounded_by_hand(39 * MIB // 10)
    assert allocator.current()[:2] == (5 * MIB, 5 * MIB)


def test_rest_of_one_mebibyte_stays_and_more_is_cut_off() -> None:
    """Of a free segment of 12 MiB, 11 MiB take all, and 512 bytes less take no more than themselves."""
    allocator = Allocator()
    allocator.free(allocator.malloc(12 * MIB))
    assert taken(allocator, 11 * MIB) == 12 * MIB
    allocator = Allocator()
    allocator.free(allocator.malloc(12 * MIB))
    assert taken(allocator, 11 * MIB - 512) == 11 * MIB - 512
    assert taken(allocator, 1 * MIB + 512) == 1 * MIB + 512
    assert allocator.reserved == 12 * MIB


def test_lower_of_two_equal_blocks_is_taken() -> None:
    """Of two free blocks of 2 MiB the lower is taken: the upper still merges with what is freed above it."""
    allocator = Allocator()
    lower, _, upper, above, _ = (allocator.malloc(n * MIB) for n in (2, 2, 2, 3, 11))
    allocator.free(upper)
    allocator.free(lower)
    allocator.malloc(2 * MIB)
    allocator.free(above)
    allocator.malloc(5 * MIB)
    assert allocator.reserved == 20 * MIB


def test_end_of_an_expandable_segment_is_spared() -> None:
    """3 MiB come from a hole of 10 MiB, not from the 4 MiB at the end, so that 8 MiB more take another page."""
    allocator = Allocator(expandable=True)
    hole = allocator.malloc(10 * MIB)
    allocator.malloc(6 * MIB)
    allocator.free(hole)
    allocator.malloc(3 * MIB)
    allocator.malloc(8 * MIB)
    assert allocator.reserved == 40 * MIB
    allocator.malloc(7 * MIB)
    allocator.malloc(16 * MIB)
    assert allocator.current() == (40 * MIB,) * 4


@settings(deadline=None)
@given(st.lists(Sizes, max_size=40))
def test_only_rounding_is_lost_where_segments_expand(sizes: list[int]) -> None:
    """Where segments expand, allocated equals rounded, and so it does everywhere below 1 MiB."""
    for allocator, top in ((Allocator(expandable=True), 40 * MIB), (Allocator(), 1 * MIB)):
        blocks = [allocator.malloc(size) for size in sizes if size <= top]
        for block in blocks[::2]:
            allocator.free(block)
        for size in sizes[::3]:
            allocator.malloc(min(size, top))
        assert allocator.allocated == allocator.rounded


@settings(deadline=None)
@given(st.lists(Sizes, max_size=40), st.randoms(use_true_random=False))
def test_all_is_whole_again_when_all_is_freed(sizes: list[int], rng: Random) -> None:
    """With everything freed, in any order, nothing is allocated and every segment serves one request of its size."""
    allocator = Allocator()
    blocks, segments = [], []
    for size in sizes:
        held = allocator.reserved
        blocks.append(allocator.malloc(size))
        segments.append(allocator.reserved - held)
    rng.shuffle(blocks)
    for block in blocks:
        allocator.free(block)
    held = allocator.reserved
    assert allocator.current() == (0, 0, 0, held)
    for segment in sorted(segments):
        halves = 2 if segment == 2 * MIB else 1
        assert [taken(allocator, segment // halves) for _ in range(halves)] == [segment // halves] * halves
    assert allocator.current() == (held,) * 4


@settings(deadline=None)
@given(st.lists(Sizes, max_size=40), st.randoms(use_true_random=False))
def test_an_expandable_segment_is_whole_again_when_all_is_freed(sizes: list[int], rng: Random) -> None:
    """With everything freed, in any order, one request takes all that the large pool holds."""
    allocator = Allocator(expandable=True)
    blocks = [allocator.malloc(size) for size in sizes if size == 0 or size > 1 * MIB]
    rng.shuffle(blocks)
    for block in blocks:
        allocator.free(block)
    held = allocator.reserved
    allocator.malloc(held)
    assert allocator.current() == (held,) * 4


def test_peaks_begin_anew() -> None:
    """A peak outlives what it counted, and after `reset_peak` it is what is current."""
    allocator = Allocator()
    block = allocator.malloc(12 * MIB)
    allocator.malloc(100)
    allocator.free(block)
    assert allocator.peak() == (12 * MIB + 100, 12 * MIB + 512, 12 * MIB + 512, 14 * MIB)
    allocator.reset_peak()
    assert allocator.peak() == allocator.current() == (100, 512, 512, 14 * MIB)


def test_nothing_is_asked_for() -> None:
    """An empty tensor has no block, and takes and gives back nothing."""
    allocator = Allocator()
    block = allocator.malloc(0)
    allocator.free(block)
    assert block is None
    assert allocator.peak() == (0, 0, 0, 0)


def test_freeing_twice_is_an_error() -> None:
    """A block that is freed twice says so, whether it stands alone or was merged."""
    allocator = Allocator()
    blocks = [allocator.malloc(512) for _ in range(3)]
    for block in blocks:
        allocator.free(block)
    for block in blocks:
        with pytest.raises(RuntimeError, match="freed twice"):
            allocator.free(block)
