"""The exception that stands for a user's mistake, and its kinds that may pass by themselves."""


class UserError(ValueError):
    """A mistake of the user's: what was given, what is wanted, how to mend it, in one line.

    The command line prints the message without a traceback and exits with code 2.
    """


class DiskFull(UserError):
    """A disk, a quota or a store is used up; once somebody has made room the same goes well."""


class NoAnswer(UserError):
    """A store or a network disk did not answer, so that nobody knows what is there; later the same may go well."""
