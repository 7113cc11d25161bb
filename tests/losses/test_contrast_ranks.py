"""What CRD remembers and the class means of ND are those of one process."""

from pathlib import Path

import torch
from tests.losses import contrast_ranks
from tests.trajectory.processes import in_two_processes


def test_two_ragged_processes_are_one(tmp_path: Path) -> None:
    sizes = (5, 2)
    results = in_two_processes(tmp_path, contrast_ranks.work, sizes)
    loss = contrast_ranks.crd()
    values = contrast_ranks.run(loss, slice(None))
    means = contrast_ranks.means(slice(None))
    for result in results:
        torch.testing.assert_close(result["values"], values, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(result["state"], loss.state_dict(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(result["means"], means, rtol=1e-12, atol=1e-12)
