"""What the controls without a network have in common: their library, and the choice of the best."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from typing import Any

from congener.errors import CongenerError

__all__ = ["best_of", "scikit_learn"]


@contextmanager
def scikit_learn() -> Iterator[None]:
    """Within it, scikit-learn is imported.

    Raises:
        CongenerError: it is not installed, with the line that installs it.
    """
    try:
        yield
    except ImportError as error:
        raise CongenerError(
            f"congener bench needs the package {error.name!r} for its non-neural control; install "
            'it with: pip install "congener[bench]"'
        ) from error


def best_of(
    chosen_on: Mapping[str, float], metric: str, value: Callable[[str], float]
) -> dict[str, Any]:
    """The best of some methods, as :meth:`congener.task.Task.control` tells it.

    Args:
        chosen_on: the figure of each on the slice; more is better.
        metric: what the figures are.
        value: the figure of the one that is chosen, by its name, on the test set.
    """
    name = max(chosen_on, key=lambda each: chosen_on[each])
    return {
        "classifier": name,
        "metric": metric,
        "value": value(name),
        "chosen_on": dict(chosen_on),
        "package": f"scikit-learn {metadata.version('scikit-learn')}",
    }
