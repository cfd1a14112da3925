"""The error a person can act on."""


class DataError(ValueError):
    """Something the user supplied (image, annotation, checkpoint, config) cannot be used.

    ``str(error)`` is one line that names the file or argument, what was expected and what came;
    the command line prints that line and nothing else.
    """
