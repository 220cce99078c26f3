"""The kinds of error Axon raises on purpose: each message states the rule, the value and the remedy.

The command line prints an `AxonError` as one paragraph and exits with its `exit_code`; anything else is a bug.
"""

from __future__ import annotations


class AxonError(Exception):
    """Base of every error a user may meet; `exit_code` is what the command line exits with."""

    exit_code = 1

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else type(self).__name__


class UsageError(AxonError):
    """The request itself is wrong: an unknown name, a bad option, a recipe that does not validate."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration value breaks a rule.

    `problems` are `(path, message)` pairs; a path such as `("attention", "n_kv_heads")` grows on its left as the
    error travels outwards (`inside`), so that the user reads where in the recipe the value stands.
    """

    def __init__(self, problems: list[tuple[tuple[str, ...], str]], source: str | None = None) -> None:
        super().__init__()
        self.problems = problems
        self.source = source

    def inside(self, *path: str, source: str | None = None) -> ConfigError:
        """Return the same error, seen from one level further out."""
        problems = [((*path, *inner), message) for inner, message in self.problems]
        return ConfigError(problems, source or self.source)

    def __str__(self) -> str:
        lines = [f"{'.'.join(path)}: {message}" if path else message for path, message in self.problems]
        where = f"in {self.source}: " if self.source else ""
        return where + ("; ".join(lines))


class RegistryError(UsageError):
    """A look-up failed; `place` is where the key stands in a recipe, if it comes from one."""

    place: tuple[str, ...] = ()
    source: str | None = None

    def __str__(self) -> str:
        where = f"in {self.source}: " if self.source else ""
        return f"{where}{'.'.join(self.place)}: {super().__str__()}" if self.place else where + super().__str__()


class UnknownKey(RegistryError, KeyError):
    """A registry has no component of that name."""


class AmbiguousKey(RegistryError):
    """Two distributions claim one key; the qualified name `"distribution:key"` picks one."""


class PluginLoadError(AxonError):
    """A plugin's code could not be imported; only look-ups of its own keys are affected."""


class ContractError(AxonError):
    """A registered class does not keep the contract of its interface."""


class DataError(AxonError):
    """Input data is missing, unreadable, empty or too short."""


class CheckpointError(AxonError):
    """A checkpoint or run folder is missing, damaged or does not fit the model."""


class ContextError(UsageError):
    """A sequence is longer than the model's context allows."""


class TrainingError(AxonError):
    """Training cannot continue: its numbers are no longer finite."""


class Interrupted(AxonError):
    """The user stopped the work; what was done is saved."""

    exit_code = 130


# How torch reports it: on a GPU, on a CPU, and for a number of bytes or elements that does not fit 64 bits.
_NO_MEMORY = (
    "OutOfMemoryError",
    "DefaultCPUAllocator",
    "std::bad_alloc",
    "Storage size calculation overflowed",
    "numel: integer multiplication overflow",
    "Overflow when unpacking long",
)


def first_line(error: BaseException) -> str:
    r"""Return the first line of an error's message, or the name of its class if it has none.

    >>> first_line(ValueError("too long\nsee below")), first_line(ConnectionResetError())
    ('too long', 'ConnectionResetError')
    """
    return str(error).strip().partition("\n")[0].rstrip() or type(error).__name__


def explained(error: Exception) -> str:
    """Return what to print for an error: its message, in other words where it is not Axon's own."""
    if isinstance(error, AxonError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if isinstance(error, RecursionError):
        return "the input is nested too deeply (lists in lists or tables in tables); flatten it"
    if isinstance(error, MemoryError) or any(name in f"{type(error).__name__}: {error}" for name in _NO_MEMORY):
        return (
            "out of memory; use a smaller model, batch or beam, or a shorter text, or free memory that other programs "
            "use"
        )
    return (
        f"{type(error).__name__}: {error}. This is a bug in Axon or in a plugin, not an error in your input; "
        "`axon --debug …` shows where it occurred"
    )
