"""Files that are whole or not there."""

import os
from errno import EISDIR
from pathlib import Path
from tempfile import NamedTemporaryFile

from gptcalc.errors import OutputError, plain


def must_be_writable(path: Path) -> None:
    """Find out now whether `path` can be written later, and leave it as it is. Raises `OutputError`."""
    target = path.resolve()
    try:
        if target.is_dir():
            raise IsADirectoryError(EISDIR, os.strerror(EISDIR))
        with NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}."):
            pass
    except OSError as error:
        raise _unwritable(path, error) from None


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(f"{plain(str(path))}: cannot be written: {error.strerror}")


def write_atomically(path: Path, text: str) -> None:
    """Put `text` into `path` at once: whatever fails, the file is the old one or the new one, never half of either.

    Raises `OutputError` where it cannot be written.
    """
    target = path.resolve()  # a link stays a link
    temporary = None
    try:
        with NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask())
        temporary.replace(target)
    except OSError as error:
        raise _unwritable(path, error) from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    """The process's mask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
