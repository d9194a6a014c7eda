"""CUDA's caching allocator as torch has it: which bytes a stream of allocations and frees is handed and holds.

The native backend for one process on one stream, without graph pools, at its default settings, until memory runs out:

- A request is rounded up to 512 bytes. Up to 1 MiB it is served by the small pool, above by the large one.
- The smallest free block that holds it serves it, among equal ones that of the lowest address. The request gets the low
  end, and the rest becomes a free block. In the large pool a rest of up to 1 MiB stays with the block and counts as
  allocated; in the small pool no byte stays.
- Where no free block holds it, `cudaMalloc` gives a segment. None is given back.
- A freed block merges with free neighbours in its segment.
- Expandable segments: each pool has one range of addresses, which grows at its end by whole pages; every rest is cut
  off, so allocated equals rounded. The free block at the end serves only where no other holds the request: torch counts
  it as large as it can grow. The range grows from that block, or from the end where the last block is in use.

From torch's `c10/cuda/CUDACachingAllocator.cpp`: `malloc`, `get_free_block`, `should_split`, `alloc_found_block`,
`free_block`, `find_expandable_block`, `map_block`. That `cudaMalloc` gives ascending addresses is assumed; they decide
only between free blocks of one size.

A step of a large model has tens of thousands of events: `malloc` and `free` call little, for speed.
"""

from bisect import bisect_left, insort
from typing import NamedTuple

from gptcalc.units import MIB, ceil_div

# c10/core/AllocatorConfig.h in 2.13; before, CUDACachingAllocator.cpp.
MIN_BLOCK_SIZE = 512  # kMinBlockSize
SMALL_SIZE = 1 * MIB  # kSmallSize: the largest of the small pool, and the largest rest that stays with a large block
SMALL_BUFFER = 2 * MIB  # kSmallBuffer: a segment of the small pool, or its page
LARGE_BUFFER = 20 * MIB  # kLargeBuffer, in 2.13 large_segment_size(): a segment of the large pool, or its page
MIN_LARGE_ALLOC = 10 * MIB  # kMinLargeAlloc: from here on a segment is made to measure,
ROUND_LARGE = 2 * MIB  # kRoundLarge: in multiples of this


#: More than any address has: 256 TiB.
ADDRESS_BITS = 48


class Figures(NamedTuple):
    """Bytes in torch's words: asked for; each rounded up to 512; blocks handed out; segments held."""

    requested: int
    rounded: int
    allocated: int
    reserved: int


def round_size(n_bytes: int) -> int:
    """What a request takes at the least: `round_size`, with `roundup_power2_divisions` unset."""
    return (n_bytes + MIN_BLOCK_SIZE - 1) // MIN_BLOCK_SIZE * MIN_BLOCK_SIZE or MIN_BLOCK_SIZE


def segment_size(rounded: int) -> int:
    """What is asked of `cudaMalloc` where no free block holds `rounded` bytes: `get_allocation_size`."""
    if rounded <= SMALL_SIZE:
        return SMALL_BUFFER
    return LARGE_BUFFER if rounded < MIN_LARGE_ALLOC else ceil_div(rounded, ROUND_LARGE) * ROUND_LARGE


class Block:
    """A stretch of a segment, between its neighbours; free while nothing is `requested` of it. Callers only hold it."""

    __slots__ = ("address", "after", "before", "pool", "requested", "rounded", "size")

    def __init__(self, pool: "_Pool", address: int, size: int, before: "Block | None", after: "Block | None") -> None:
        """A free block; without neighbours it is its own."""
        self.pool = pool
        self.address = address
        self.size = size
        self.before = before or self
        self.after = after or self
        self.requested = self.rounded = 0


class _Pool:
    """The free blocks of small or of large sizes, and what their segments hold.

    `free` are their keys in order: the size, `ADDRESS_BITS` up, and the address: one number, which compares fast.
    A segment lies between walls: blocks that are never free, so that nothing merges with them. One wall serves all
    segments of a pool. Where they expand there is one, and it forms a ring with the wall: the last block is before it.
    """

    __slots__ = ("blocks", "free", "least_rest", "page", "reserved", "wall")

    def __init__(self, page: int, least_rest: int) -> None:
        """An empty pool that expands by `page` and cuts off rests from `least_rest` on."""
        self.page = page
        self.least_rest = least_rest
        self.free: list[int] = []
        self.blocks: dict[int, Block] = {}
        self.reserved = 0
        self.wall = Block(self, 0, 0, None, None)
        self.wall.requested = 1


class Allocator:
    """One device's memory; `expandable` is the setting `expandable_segments`."""

    __slots__ = (
        *("_expandable", "_large", "_peak_allocated", "_peak_requested", "_peak_rounded", "_small"),
        *("allocated", "requested", "reserved", "rounded"),
    )

    def __init__(self, *, expandable: bool = False) -> None:
        """Nothing allocated, nothing reserved."""
        self._expandable = expandable
        self._small = _Pool(SMALL_BUFFER, MIN_BLOCK_SIZE)
        self._large = _Pool(LARGE_BUFFER, MIN_BLOCK_SIZE if expandable else SMALL_SIZE + 1)
        self.requested = self.rounded = self.allocated = self.reserved = 0
        self.reset_peak()

    def current(self) -> Figures:
        """What is requested, rounded, allocated and reserved now."""
        return Figures(self.requested, self.rounded, self.allocated, self.reserved)

    def peak(self) -> Figures:
        """Each figure's own maximum since the last `reset_peak`; what is reserved never shrinks."""
        return Figures(self._peak_requested, self._peak_rounded, self._peak_allocated, self.reserved)

    def reset_peak(self) -> None:
        """Let the peaks be what is current, as `torch.cuda.reset_peak_memory_stats` does."""
        self._peak_requested, self._peak_rounded, self._peak_allocated, _ = self.current()

    def malloc(self, n_bytes: int) -> Block | None:
        """A block for `n_bytes`; none for an empty tensor, which torch does not ask the allocator for."""
        if not n_bytes:
            return None
        rounded = round_size(n_bytes)
        pool = self._small if rounded <= SMALL_SIZE else self._large
        free = pool.free
        at = bisect_left(free, rounded << ADDRESS_BITS)
        if at == len(free):
            block = self._grow(pool, rounded)
        else:
            if self._expandable and pool.blocks[free[at]].after is pool.wall and at + 1 < len(free):
                at += 1
            block = pool.blocks.pop(free.pop(at))
        rest = block.size - rounded
        if rest >= pool.least_rest:
            address, after = block.address + rounded, block.after
            block.size = rounded
            block.after = after.before = high = Block(pool, address, rest, block, after)
            key = (rest << ADDRESS_BITS) + address
            insort(free, key)
            pool.blocks[key] = high
        block.requested = n_bytes
        block.rounded = rounded
        self.requested = requested = self.requested + n_bytes
        self.rounded = rounded = self.rounded + rounded
        self.allocated = allocated = self.allocated + block.size
        if requested > self._peak_requested:  # noqa: PLR1730  a call takes longer
            self._peak_requested = requested
        if rounded > self._peak_rounded:  # noqa: PLR1730
            self._peak_rounded = rounded
        if allocated > self._peak_allocated:  # noqa: PLR1730
            self._peak_allocated = allocated
        return block

    def _grow(self, pool: _Pool, rounded: int) -> Block:
        """A block of at least `rounded` that is new, or the last of an expandable segment made longer."""
        wall, last = pool.wall, pool.wall.before
        if not self._expandable:
            size = segment_size(rounded)
            block = Block(pool, pool.reserved, size, wall, wall)
        elif last.requested:
            size = ceil_div(rounded, pool.page) * pool.page
            block = last.after = wall.before = Block(pool, pool.reserved, size, last, wall)
        else:
            size = ceil_div(rounded - last.size, pool.page) * pool.page
            key = (last.size << ADDRESS_BITS) + last.address
            del pool.free[bisect_left(pool.free, key)]
            block = pool.blocks.pop(key)
            block.size += size
        pool.reserved += size
        self.reserved += size
        return block

    def free(self, block: Block | None) -> None:
        """Take back what `malloc` gave, and merge it with its free neighbours."""
        if block is None:
            return
        if not block.requested:
            raise RuntimeError("a block was freed twice")
        size, before, after, pool = block.size, block.before, block.after, block.pool
        free, blocks = pool.free, pool.blocks
        self.requested -= block.requested
        self.rounded -= block.rounded
        self.allocated -= size
        block.requested = 0
        if not after.requested:
            key = (after.size << ADDRESS_BITS) + after.address
            del free[bisect_left(free, key)], blocks[key]
            size += after.size
            block.after = after = after.after
            after.before = block
        if not before.requested:
            key = (before.size << ADDRESS_BITS) + before.address
            del free[bisect_left(free, key)], blocks[key]
            size += before.size
            before.after, after.before = after, before
            block = before
        block.size = size
        key = (size << ADDRESS_BITS) + block.address
        insort(free, key)
        blocks[key] = block
