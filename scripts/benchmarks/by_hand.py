"""The trainings of the table as plain PyTorch: every call is a step on the next batch."""

from collections.abc import Callable, Iterator

import timm
import torch
from torch import Tensor
from torch.nn import functional as F

import timm_compat as tc
from benchmarks.networks import CLASSES, Plain, adamw

ROTATION_WEIGHT, ALIGNMENT_WEIGHT, SHARE = 0.3, 0.2, 0.25  # the trainer's defaults


def joint_step(
    datasets: list[tc.data.ArrayDataset],
    backbone: str,
    batch: int,
    device: str,
    rotation: bool = False,
    align: bool = False,
) -> Callable[[], None]:
    """A step of several networks with common classes; rotation and alignment on demand."""
    size = datasets[0].images.shape[-1]
    arguments = {"img_size": size} if "vit" in backbone else {}
    bodies = [timm.create_model(backbone, num_classes=0, **arguments) for _ in datasets]
    heads = {"own": len(CLASSES), "shared": len(CLASSES), **({"turns": 4} if rotation else {})}
    networks = [Plain(body, int(body.head_hidden_size), heads).to(device).train() for body in bodies]
    optimizers = [adamw(network) for network in networks]
    pixels = [data.images.to(device) for data in datasets]
    labels = [data.labels.to(device) for data in datasets]
    statistics = timm.data.resolve_model_data_config(bodies[0])
    mean, std = (torch.tensor(statistics[key], device=device)[:, None, None] for key in ("mean", "std"))

    def prepared(images: Tensor) -> Tensor:
        return (images.float() / 255 - mean) / std

    batches = [_batches(len(data), batch, device) for data in datasets]

    def step() -> None:
        chosen, count = [next(source) for source in batches], round(SHARE * batch)
        inputs, turns = [prepared(images[where]) for images, where in zip(pixels, chosen, strict=True)], []
        features = []
        for number, network in enumerate(networks):
            parts = [inputs[number]]
            if rotation:
                turns.append(torch.randint(4, (count,)))
                pairs = zip(inputs[number][:count], turns[number].tolist(), strict=True)
                parts.append(torch.stack([image.rot90(turn, (1, 2)) for image, turn in pairs]))
            if align:
                parts.append(prepared(pixels[number - 1][chosen[number - 1][:count]]))
            features.append(network(torch.cat(parts)).split([len(part) for part in parts]))
            if not align:
                finish(number, features[number], chosen[number], turns, None)
        if align:
            for number in range(len(networks)):
                finish(number, features[number], chosen[number], turns, features[number - 1][0][:count].detach())

    def finish(number: int, parts: tuple[Tensor, ...], where: Tensor, turns: list[Tensor], target: Tensor | None):
        network, expected = networks[number], labels[number][where]
        loss = F.cross_entropy(network.heads["own"](parts[0]), expected)
        loss = loss + F.cross_entropy(network.heads["shared"](parts[0]), expected)
        if rotation:
            found = F.cross_entropy(network.heads["turns"](parts[1]), turns[number].to(device))
            loss = loss + ROTATION_WEIGHT * found
        if target is not None:
            loss = loss + ALIGNMENT_WEIGHT * F.mse_loss(parts[-1], target)
        optimizers[number].zero_grad()
        loss.backward()
        optimizers[number].step()

    return step


def adapter_step(features: Tensor, labels: Tensor, batch: int, device: str) -> Callable[[], None]:
    """A step of an interface and two classifiers on features that were computed before."""
    network = Plain(torch.nn.Identity(), features.shape[1], {"own": len(CLASSES), "shared": len(CLASSES)}).to(device)
    optimizer = adamw(network.train())
    inputs, expected = features.to(device), labels.to(device)

    batches = _batches(len(inputs), batch, device)

    def step() -> None:
        chosen = next(batches)
        found = network(inputs[chosen])
        loss = sum(F.cross_entropy(head(found), expected[chosen]) for head in network.heads.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def _batches(size: int, batch: int, device: str) -> Iterator[Tensor]:
    """Indices of a batch, pass after pass, each in an order of its own."""
    while True:
        yield from torch.randperm(size).to(device).split(batch)
