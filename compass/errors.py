"""The one exception that means: the user can fix this."""


class UserError(ValueError):
    """A mistake in the user's input. The message names the offending value and the remedy.

    Recipes and tools print it as one line and exit with code 2 on every rank
    (`compass.distributed.launch`); any other exception is ours and exits with code 1.
    """
