"""Projectors that take part in training but leave masked samples out."""

import pytest
import torch
from torch import Tensor, nn

from congener.errors import ShapeError
from congener.ops.projectors import ConvNorm


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_it_is_a_convolution_a_normalisation_and_a_relu(
    training: bool, relu: bool, size: int
) -> None:
    block = ConvNorm(3, 4, size, relu=relu).train(training)
    nn.init.uniform_(block.bn.weight, 0.5, 1.5)
    nn.init.uniform_(block.bn.bias)
    norm = nn.BatchNorm2d(4).train(training)
    norm.load_state_dict(block.bn.state_dict())
    feature = random(5, 3, 4, 6)
    weight = block.conv.weight
    expected = norm(nn.functional.conv2d(feature, weight, padding=size // 2))
    expected = expected.relu() if relu else expected
    torch.testing.assert_close(block(feature), expected)
    torch.testing.assert_close(block.bn.running_var, norm.running_var)


def test_pooled_features_stay_pooled() -> None:
    block, feature = ConvNorm(3, 4).eval(), random(5, 3)
    torch.testing.assert_close(block(feature), block(feature[..., None, None]).flatten(1))


def test_masked_samples_leave_no_trace() -> None:
    block, again = ConvNorm(3, 4), ConvNorm(3, 4)
    again.load_state_dict(block.state_dict())
    mask, feature = torch.tensor([True, False, True]), random(3, 3, 4, 4)
    expected = again(feature[mask])
    feature[~mask] = torch.nan
    found = block(feature, mask)
    torch.testing.assert_close(found[mask], expected)
    torch.testing.assert_close(block.bn.running_mean, again.bn.running_mean)
    found[mask].square().sum().backward()
    assert block.conv.weight.grad.isfinite().all()


def test_features_of_other_types_and_autocast() -> None:
    block, feature = ConvNorm(3, 4), random(5, 3, 4, 4)
    torch.testing.assert_close(block(feature.double()), block(feature))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert block.conv(feature).dtype == torch.bfloat16
        assert block(feature).dtype == torch.float32


def test_wrong_channels_are_told() -> None:
    with pytest.raises(ShapeError, match=r"student_feature \(5, 2, 4, 4\) must be \(batch, 3"):
        ConvNorm(3, 4)(random(5, 2, 4, 4))
