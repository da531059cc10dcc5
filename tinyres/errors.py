"""What a user can get wrong, told in one sentence."""


class UserError(ValueError):
    """Bad input. The message is one sentence that says what was wrong and what to do about it."""
