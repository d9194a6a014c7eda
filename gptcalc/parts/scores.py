"""What becomes of the scores between a query and the keys, beside softmax."""

from typing import NamedTuple


class Scores(NamedTuple):
    """A `window` of tokens, or `chunked` all since its last multiple; ALiBi of so many heads; a cap; sinks."""

    window: int | None = None
    chunked: bool = False
    alibi: int = 0
    softcap: float | None = None
    sinks: bool = False

    def masks(self, seq: int) -> bool:
        """Whether `seq` tokens need a mask that says more than who comes later."""
        return self.alibi > 0 or (self.window is not None and self.window < seq)

    @property
    def written_out(self) -> str:
        """What no kernel of torch's does, so that the scores are written out."""
        return " and ".join(name for name, does in (("a softcap", self.softcap), ("sinks", self.sinks)) if does)
