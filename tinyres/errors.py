"""The error for a user's mistakes, with a message of one sentence."""


class UserError(ValueError):
    """Bad input. The message is one sentence that says what was wrong and what to do about it."""
