"""Pairs of networks from three libraries, and ten steps of training on what the plan proposes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from congener.planning import Plan, plan
from congener.systems import Distillation
from congener.tasks.image_classification import ImageClassification, models
from congener.types import Progress

CLASSES, BATCH = 10, 8
SHAPES = {"image": (3, 64, 64), "line": (1, 40)}

VIT = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 96}
BUILT = {
    "timm:vit_tiny_patch16_224": {"depth": 4},
    "timm:deit_tiny_distilled_patch16_224": {"depth": 4},
    "timm:vit_little_patch16_reg4_gap_256": {"depth": 4},
    "timm:cait_xxs24_224": {"depth": 4},
    "timm:xcit_nano_12_p16_224": {"depth": 4},
    "timm:eva02_tiny_patch14_224": {"depth": 4},
    "timm:swin_tiny_patch4_window7_224": {"embed_dim": 24, "depths": (2, 2, 2, 2)},
    "torchvision:googlenet": {"init_weights": False},
    "transformers:vit": VIT | {"patch_size": 16},
    "transformers:deit": VIT | {"patch_size": 16},
    "transformers:dinov2": {k: v for k, v in VIT.items() if k != "intermediate_size"}
    | {"patch_size": 16},
    "transformers:beit": VIT | {"patch_size": 16},
    "transformers:swin": {"embed_dim": 24, "depths": [2, 2, 2], "num_heads": [2, 2, 2],
                          "window_size": 4},
    "transformers:resnet": {"embedding_size": 16, "hidden_sizes": [16, 32, 64, 64],
                            "depths": [1, 1, 1, 1]},
    "transformers:convnext": {"hidden_sizes": [16, 32, 64, 64], "depths": [1, 1, 2, 1]},
}  # fmt: skip
"""Arguments that keep a network small, or that it needs."""

FAST = [
    ("timm:mobilenetv3_small_050", "torchvision:resnet18"),
    ("timm:lcnet_050", "timm:vit_tiny_patch16_224"),
    ("transformers:vit", "timm:deit_tiny_distilled_patch16_224"),
    ("mlp", "timm:mixer_s32_224"),
    ("mlp", "cnn1d"),
]
"""CNN and CNN, CNN and ViT, ViT and ViT, MLPs, a perceptron and a 1-D network."""

SLOW = [
    ("torchvision:mobilenet_v3_small", "timm:resnet10t"),
    ("torchvision:shufflenet_v2_x0_5", "torchvision:regnet_y_400mf"),
    ("torchvision:squeezenet1_1", "torchvision:resnet18"),
    ("torchvision:mnasnet0_5", "torchvision:densenet121"),
    ("timm:ghostnet_050", "torchvision:regnet_y_400mf"),
    ("timm:lcnet_050", "torchvision:googlenet"),
    ("torchvision:mobilenet_v3_small", "torchvision:convnext_tiny"),
    ("timm:lcnet_050", "timm:repvgg_a0"),
    ("timm:regnetx_002", "timm:hrnet_w18_small"),
    ("resnet20", "timm:convnext_atto"),
    ("vgg8", "timm:res2net50_26w_4s"),
    ("timm:convnext_atto", "torchvision:swin_t"),
    ("timm:mobilenetv3_small_050", "timm:swin_tiny_patch4_window7_224"),
    ("timm:regnetx_002", "timm:pvt_v2_b0"),
    ("timm:edgenext_xx_small", "timm:xcit_nano_12_p16_224"),
    ("timm:mobilevit_xxs", "timm:eva02_tiny_patch14_224"),
    ("timm:lcnet_050", "timm:vit_little_patch16_reg4_gap_256"),
    ("torchvision:resnet18", "transformers:dinov2"),
    ("timm:vit_tiny_patch16_224", "torchvision:resnet18"),
    ("timm:deit_tiny_distilled_patch16_224", "timm:regnetx_002"),
    ("transformers:vit", "timm:efficientnet_b0"),
    ("timm:cait_xxs24_224", "timm:vit_tiny_patch16_224"),
    ("transformers:deit", "transformers:beit"),
    ("timm:xcit_nano_12_p16_224", "timm:poolformer_s12"),
    ("transformers:swin", "timm:swin_tiny_patch4_window7_224"),
    ("transformers:resnet", "transformers:convnext"),
    ("timm:mobilevit_xxs", "transformers:swin"),
    ("transformers:segformer", "timm:resnet10t"),
    ("transformers:mobilenet_v2", "transformers:vit"),
    ("timm:resmlp_12_224", "timm:mixer_s32_224"),
    ("timm:mixer_s32_224", "timm:convmixer_768_32"),
    ("small_cnn", "timm:vit_tiny_patch16_224"),
    ("cnn1d", "mlp"),
]


def shape_of(*names: str) -> tuple[int, ...]:
    return SHAPES["line" if "cnn1d" in names else "image"]


def build(name: str, shape: tuple[int, ...], **arguments: Any) -> nn.Module:
    torch.manual_seed(0)
    given: Mapping[str, Any] = {
        "num_classes": CLASSES, "in_channels": shape[0], "input_shape": shape,
        "in_features": torch.Size(shape).numel(),
    }  # fmt: skip
    return models.build(name, BUILT.get(name, {}) | arguments, given)


def ten_steps(student: nn.Module, teacher: nn.Module, images: Tensor, found: Plan) -> list[float]:
    """The totals of ten steps of Adam on one batch, with the proposed terms."""
    labels = torch.arange(len(images)) % CLASSES
    data = TensorDataset(images, labels)
    task = ImageClassification.from_datasets(data, data, num_classes=CLASSES)
    system = Distillation(student, teacher, found.terms, task=task, task_weight=0.1).train()
    optimizer = torch.optim.Adam(system.parameters(), lr=3e-4)
    batch = {"image": images, "labels": labels, "index": torch.arange(len(images))}
    totals = []
    for step in range(11):
        total, _, _ = system(batch, Progress(step, 11, 0))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    return totals


def learn(names: tuple[str, str]) -> tuple[Plan, list[float]]:
    """Plan for two networks by name, and train the student on it."""
    shape = shape_of(*names)
    student, teacher = (build(name, shape) for name in names)
    images = torch.randn(BATCH, *shape, generator=torch.Generator().manual_seed(1))
    found = plan(student, teacher, images, losses=())
    return found, ten_steps(student, teacher, images, found)
