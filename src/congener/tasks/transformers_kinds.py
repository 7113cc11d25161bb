"""Networks of ``transformers`` by their kind, with random weights."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from congener.errors import RecipeError, did_you_mean

__all__ = ["build_kind"]


def build_kind(
    what: str,
    kind: str,
    known: Mapping[str, Any],
    arguments: Mapping[str, Any],
    fitting: Callable[[Mapping[str, Any]], Mapping[str, Any]],
) -> nn.Module:
    """The network of a kind, such as ``bert``, made from its configuration.

    Args:
        what: is looked for, for the errors: "classifier of texts".
        kind: its name in ``transformers``.
        known: of each kind, the name of its class, or of several, the first of which is taken;
            a mapping of ``transformers.models.auto.modeling_auto``.
        arguments: what the caller asks of the configuration.
        fitting: given the options of the configuration with their defaults, those that the data
            decide where the caller does not.

    Raises:
        RecipeError: an unknown kind or option, or values that do not go together.
    """
    import transformers  # takes seconds, so only when asked for

    if kind not in known:
        raise RecipeError(f"transformers has no {what} named {kind!r}; {did_you_mean(kind, known)}")
    names = known[kind]
    build = getattr(transformers, names if isinstance(names, str) else names[0])
    options = vars(build.config_class())
    decided = dict(fitting(options))
    for key in arguments:
        if key not in options and key not in decided:
            public = [option for option in options if option[0] != "_"]
            raise RecipeError(
                f"The configuration of transformers:{kind} has no {key!r}; "
                f"{did_you_mean(key, public)}"
            )
    try:
        network: nn.Module = build(build.config_class(**(decided | dict(arguments))))
    except Exception as error:  # its own kinds of errors differ from version to version
        reason = " ".join(str(error).split())
        raise RecipeError(f"transformers:{kind} does not take these values: {reason}.") from error
    return network
