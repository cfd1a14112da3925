"""The error that a user can act on."""


class DataError(ValueError):
    """Something that the user supplied (image, annotation, checkpoint, settings) cannot be used.

    ``str(error)`` is one line: it names the file or argument, what it must be and what it is. The command line
    prints that line and nothing else.
    """
