"""The one exception for mistakes in what the user gave us."""


class InputError(ValueError):
    """A config, file or data set is wrong.

    The message names the file (or config key), what is wrong with it, and the remedy. Stages print it as one
    line and exit with status 2 (`uic_core.runtime.stage`); a traceback is left for our own mistakes.
    """
