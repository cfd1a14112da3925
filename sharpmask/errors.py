"""The error that a user can act on."""

from __future__ import annotations


class DataError(ValueError):
    """Something that the user supplied (image, annotation, checkpoint, settings) cannot be used.

    ``str(error)`` is one line: it names the file or argument, what it must be and what it is. The command line
    prints that line and nothing else.
    """


def one_line(text: str) -> str:
    """``text`` with what cannot be printed, such as the end of a line in a file's name, as escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def counted(count: int, one: str, many: str = "") -> str:
    """A number and what is counted: "1 photo", "2 photos". ``many``: the plural, where it is not ``one`` with an s."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, or PyTorch in its own ways, says that the memory of the machine or the GPU does not suffice."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )
