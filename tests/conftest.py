"""Let tests import their helpers as ``tests.…``, whichever way pytest was started."""

import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _curves_are_drawn_once() -> Iterator[None]:
    """MNIST-1D takes a second to draw, and many tests learn from it; each has a copy of its own."""
    from mnist1d import data

    draw, drawn = data.make_dataset, dict[str, Any]()

    def remembered(args: Any = None, template: Any = None) -> Any:
        args = args or data.get_dataset_args()
        key = repr((sorted(vars(args).items()), template))
        if key not in drawn:
            drawn[key] = draw(args, template)
        data.set_seed(args.seed)  # whoever draws finds the global generators changed, as ever
        return deepcopy(drawn[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "make_dataset", remembered)
        yield
