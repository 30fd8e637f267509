"""Networks of other families, where no public weights are at hand: a teacher's logits on unlabelled photos, matched.

    .venv/bin/python scripts/studies/networks.py WEIGHTS PHOTOS OUTPUT     # two hours of one core

WEIGHTS holds safetensors checkpoints of plain timm models, PHOTOS the folders that ``PARTS`` names; none of their test
photos is looked at, nor any label. OUTPUT gets NAME.safetensors for each network, plain timm checkpoints with
ImageNet's 1,000 classes; what is there is not made again.

At the length below, on 3,905 photos, none is a useful network yet: a head over the objects of Caltech-101 gets 0.36 on
resnet10t, 0.16 on convnext_atto and 0.11 on vit_tiny (lite2: 0.91), so no table shows them (2026-11-28).
"""

import sys
import time
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import resolve_model_data_config
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import RandomResizedCrop, functional

TEACHER, TEACHER_SIZE = "tf_efficientnet_lite2", 192
STUDENTS = {"resnet10t": 96, "convnext_atto": 96, "vit_tiny_patch16_224": 96, "regnetx_002": 128}  # sides in pixels
PARTS = (
    "imagenet_sample",
    "caltech101/train",
    *(f"pacs/{name}/train" for name in ("photo", "art_painting", "cartoon", "sketch")),
)
STORED, CROPS = 144, 3  # pixels, and crops of every photo
EPOCHS, BATCH, RATE, DECAY = 4, 64, 2e-3, 0.05


def crops(photos: Path) -> tuple[Tensor, Tensor]:
    """Random parts of all photos, (N, 3, h, w) of uint8, as the teacher and as students see them."""
    torch.manual_seed(0)
    files = [file for part in PARTS for file in sorted((photos / part).rglob("*")) if file.is_file()]
    cut = RandomResizedCrop(TEACHER_SIZE, scale=(0.25, 1))
    large, small = [], []
    for file in files:
        image = Image.open(file).convert("RGB")
        for _ in range(CROPS):
            part = cut(image)
            large.append(torch.from_numpy(np.asarray(part).transpose(2, 0, 1).copy()))
            small.append(functional.resize(large[-1], [STORED, STORED], antialias=True))
    return torch.stack(large), torch.stack(small)


def scaled(images: Tensor, config: dict) -> Tensor:
    """As a network of this data config takes them."""
    mean, std = (torch.tensor(config[name])[:, None, None] for name in ("mean", "std"))
    return (images.float() / 255 - mean) / std


@torch.no_grad()
def answers(weights: Path, images: Tensor) -> Tensor:
    """The teacher's logits (N, 1000), centred over the classes."""
    teacher = timm.create_model(TEACHER).eval()
    teacher.load_state_dict(load_file(weights / f"{TEACHER}.safetensors"))
    config = resolve_model_data_config(teacher)
    found = torch.cat([teacher(scaled(part, config)) for part in images.split(32)])
    return found - found.mean(1, keepdim=True)


def student(name: str, size: int, images: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    """Weights of a network that was trained to give these logits."""
    torch.manual_seed(0)
    model = timm.create_model(name, **({"img_size": size} if "vit" in name else {})).train()
    config = resolve_model_data_config(model)
    steps = EPOCHS * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    spread, start = wanted.var(), time.perf_counter()
    for epoch in range(EPOCHS):
        total = 0.0
        order = torch.randperm(len(images))
        for places in order[: len(images) // BATCH * BATCH].split(BATCH):
            part = functional.resize(images[places], [size, size], antialias=True)
            flipped = torch.rand(BATCH) < 0.5
            part = torch.where(flipped[:, None, None, None], part.flip(-1), part)
            logits = model(scaled(part, config))
            target = wanted[places]
            loss = F.mse_loss(logits - logits.mean(1, keepdim=True), target) / spread
            loss = loss + F.kl_div(logits.log_softmax(1), target.softmax(1), reduction="batchmean")
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        print(f"{name}: epoch {epoch + 1}, loss {total / (len(images) // BATCH):.3f}, "
              f"{time.perf_counter() - start:.0f} s", flush=True)  # fmt: skip
    return {key: value.contiguous() for key, value in model.state_dict().items()}


def main() -> None:
    weights, photos, output = map(Path, sys.argv[1:])
    output.mkdir(parents=True, exist_ok=True)
    missing = {name: size for name, size in STUDENTS.items() if not (output / f"{name}.safetensors").exists()}
    large, small = crops(photos)
    wanted = answers(weights, large)
    del large
    print(f"{len(small)} crops", flush=True)
    for name, size in missing.items():
        weights_of = student(name, size, small, wanted)
        save_file(weights_of, output / f"{name}.safetensors", {"img_size": str(size)})


if __name__ == "__main__":
    main()
