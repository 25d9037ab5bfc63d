"""The one exception that stands for a user's mistake."""


class UserError(ValueError):
    """A mistake of the user's: what was given, what is wanted, how to mend it, in one line.

    The command line prints the message without a traceback and exits with code 2.
    """
