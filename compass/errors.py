"""The exceptions that end a program in one line: the user can fix it, or the run is lost."""


class UserError(ValueError):
    """A mistake in the user's input. The message names the offending value and the remedy.

    Recipes and tools print it as one line and exit with code 2 on every rank
    (`compass.distributed.launch`); any other exception is ours and exits with code 1.
    """


class FailedRunError(RuntimeError):
    """A run that can come to no good. The message says why and where to go on from.

    Raised on every rank together; a recipe prints it as one line and exits with code 1.
    """
