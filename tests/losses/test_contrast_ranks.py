"""What CRD remembers and the class means of ND are those of one process."""

from pathlib import Path

import torch
import torch.multiprocessing
from tests.losses import contrast_ranks


def test_two_ragged_processes_are_one(tmp_path: Path) -> None:
    sizes = (5, 2)
    torch.multiprocessing.spawn(
        contrast_ranks.work, args=(sizes, str(tmp_path)), nprocs=len(sizes), join=True
    )
    loss = contrast_ranks.crd()
    values = contrast_ranks.run(loss, slice(None))
    means = contrast_ranks.means(slice(None))
    for rank in range(len(sizes)):
        result = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(result["values"], values, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(result["state"], loss.state_dict(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(result["means"], means, rtol=1e-12, atol=1e-12)
