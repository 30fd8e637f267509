"""Networks of other families, where no public weights are at hand: a teacher's logits on unlabelled images, matched.

    .venv/bin/python scripts/studies/networks.py WEIGHTS PHOTOS CIFAR OUTPUT     # over three hours of one core

WEIGHTS holds safetensors checkpoints of plain timm models, PHOTOS the folders that ``PARTS`` names, CIFAR what
torchvision reads; no test image is looked at, nor any label. OUTPUT gets NAME.safetensors for each network, plain timm
checkpoints with ImageNet's 1,000 classes. What is there is not made again, and an interrupted run goes on after the
last whole epoch.
"""

import sys
import time
from pathlib import Path

import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import resolve_model_data_config
from torch import Tensor
from torch.nn import functional as F
from torchvision.datasets import CIFAR10
from torchvision.transforms import RandomResizedCrop, functional

TEACHER = "tf_efficientnet_lite2"
SIDE = 64  # pixels, of the students
STUDENTS = {"resnet10t": 6, "regnetx_002": 8, "convnext_atto": 8}  # epochs
PARTS = (
    "imagenet_sample",
    "caltech101/train",
    *(f"pacs/{name}/train" for name in ("photo", "art_painting", "cartoon", "sketch")),
)
CROPS, CROP_SIDE = 4, 160  # of every photo, as the teacher sees them
SMALL_IMAGES, SMALL_SIDE = 25_000, 112  # of CIFAR-10, enlarged for the teacher
STORED = 72  # pixels; students see a random part of it
BATCH, RATE, DECAY = 64, 2e-3, 0.05


def photo_crops(photos: Path) -> list[Tensor]:
    """Random parts of all photos, (3, h, w) of uint8."""
    torch.manual_seed(0)
    files = [file for part in PARTS for file in sorted((photos / part).rglob("*")) if file.is_file()]
    cut = RandomResizedCrop(CROP_SIDE, scale=(0.25, 1))
    images = (Image.open(file).convert("RGB") for file in files)
    return [functional.pil_to_tensor(cut(image)) for image in images for _ in range(CROPS)]


def small_images(folder: Path) -> list[Tensor]:
    """CIFAR-10's first training images, enlarged."""
    images = torch.from_numpy(CIFAR10(folder).data[:SMALL_IMAGES].transpose(0, 3, 1, 2).copy())
    size = [SMALL_SIDE, SMALL_SIDE]
    return [functional.resize(image, size, antialias=True) for image in images]


def scaled(images: Tensor, config: dict) -> Tensor:
    """As a network of this data config takes them."""
    mean, std = (torch.tensor(config[name])[:, None, None] for name in ("mean", "std"))
    return ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def answers(weights: Path, images: list[Tensor]) -> Tensor:
    """The teacher's logits (N, 1000), centred over the classes."""
    teacher = timm.create_model(TEACHER).eval().to(memory_format=torch.channels_last)
    teacher.load_state_dict(load_file(weights / f"{TEACHER}.safetensors"))
    config = resolve_model_data_config(teacher)
    parts = [images[start : start + 16] for start in range(0, len(images), 16)]
    found = torch.cat([teacher(scaled(torch.stack(part), config)) for part in parts])
    return found - found.mean(1, keepdim=True)


def lesson(weights: Path, photos: Path, cifar: Path, kept: Path) -> tuple[Tensor, Tensor]:
    """Images (N, 3, h, w) of uint8 and what the teacher says of them (N, 1000); kept in a file."""
    if not kept.exists():
        groups = (photo_crops(photos), small_images(cifar))
        size = [STORED, STORED]
        images = torch.stack([functional.resize(image, size, antialias=True) for group in groups for image in group])
        wanted = torch.cat([answers(weights, group) for group in groups])
        save_file({"images": images, "logits": wanted}, kept)
    found = load_file(kept)
    return found["images"], found["logits"]


def seen(images: Tensor) -> Tensor:
    """A random part of each batch, and half of the images mirrored."""
    top, left = torch.randint(STORED - SIDE + 1, (2,)).tolist()
    part = images[:, :, top : top + SIDE, left : left + SIDE]
    return torch.where((torch.rand(len(part)) < 0.5)[:, None, None, None], part.flip(-1), part)


def student(name: str, images: Tensor, wanted: Tensor, kept: Path) -> dict[str, Tensor]:
    """Weights of a network that was trained to give these logits; whole epochs are kept in a file."""
    torch.manual_seed(0)
    model = timm.create_model(name).train().to(memory_format=torch.channels_last)
    config = resolve_model_data_config(model)
    steps = len(images) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STUDENTS[name] * steps, pct_start=0.1)
    first, spread, start = 0, wanted.var(), time.perf_counter()
    if kept.exists():
        state = torch.load(kept, weights_only=True)
        for part, part_state in zip((model, optimizer, schedule), state["parts"], strict=True):
            part.load_state_dict(part_state)
        first = state["epoch"]
    for epoch in range(first, STUDENTS[name]):
        torch.manual_seed(epoch)
        total = 0.0
        for places in torch.randperm(len(images))[: steps * BATCH].split(BATCH):
            logits = model(scaled(seen(images[places]), config))
            target = wanted[places]
            loss = F.mse_loss(logits - logits.mean(1, keepdim=True), target) / spread
            loss = loss + F.kl_div(logits.log_softmax(1), target.softmax(1), reduction="batchmean")
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        print(f"{name}: epoch {epoch + 1}, loss {total / steps:.3f}, {time.perf_counter() - start:.0f} s", flush=True)
        parts = [part.state_dict() for part in (model, optimizer, schedule)]
        torch.save({"epoch": epoch + 1, "parts": parts}, kept.with_suffix(".part"))
        kept.with_suffix(".part").rename(kept)
    return {key: value.contiguous() for key, value in model.state_dict().items()}


def main() -> None:
    weights, photos, cifar, output = map(Path, sys.argv[1:])
    output.mkdir(parents=True, exist_ok=True)
    missing = [name for name in STUDENTS if not (output / f"{name}.safetensors").exists()]
    images, wanted = lesson(weights, photos, cifar, output / "lesson")
    print(f"{len(images)} images", flush=True)
    for name in missing:
        found = student(name, images, wanted, output / f"{name}.epochs")
        save_file(found, output / f"{name}.safetensors", {"img_size": str(SIDE)})


if __name__ == "__main__":
    main()
