"""Every error that a user can meet; each message says what is wrong, where, and what to type next."""


class LiteTransformerError(Exception):
    """Base class: the command line prints it as one line and exits with code 2."""


class ConfigError(LiteTransformerError, ValueError):
    """An option or a config file asks for something that cannot be built."""


class UnknownArchitectureError(ConfigError):
    """An architecture name that is not registered; the text lists the known ones."""


class UnsupportedInputError(LiteTransformerError, ValueError):
    """A dtype, device, size or choice that an operation does not take; names it and what is allowed."""


class UnsupportedShapeError(UnsupportedInputError):
    """A tensor or size that an operation does not take; the text names the value and the allowed ones."""


class DataError(LiteTransformerError):
    """Input data that is missing, half-made, damaged or inconsistent."""


class CheckpointError(LiteTransformerError):
    """A checkpoint that is missing, truncated, foreign, or holds more than plain data."""


class ScoringError(LiteTransformerError):
    """Hypotheses and references that do not belong together."""


class UnknownOperatorError(LiteTransformerError):
    """The MAC counter met an operator without a formula."""
