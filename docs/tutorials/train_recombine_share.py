"""Train two networks together, recombine them, share the parts, and put the shared parts together again.

It needs no download. The parts are saved to folders; to use the Hub, call `push_to_hub("you/name")` in place of
`save_pretrained(folder)`, and load "you/name" in place of the folder.
"""

from dataclasses import replace
from pathlib import Path

import torch

import timm_compat as tc

PARTS = Path("digits-parts")

# Two architectures, disjoint halves of the images, one small head that both share.
train, test = tc.data.load_digits("train"), tc.data.load_digits("test")
halves = train.halves(torch.Generator().manual_seed(0))
space = tc.CompatSpace(feature_dim=64, class_names=train.class_names, methods=["common_classes"])
members = [
    tc.Member(
        name,
        tc.create_extractor(backbone, space, in_chans=1, img_size=16),
        tc.TaskHead(space, train.class_names),
        images,
    )
    for name, backbone, images in zip("ab", ("test_resnet", "test_efficientnet"), halves, strict=True)
]
tc.fit(space, members, tc.TrainConfig(epochs=10, batch_size=32))

# Every extractor under every head: pairs off the diagonal were never trained together.
extractors = {member.name: member.extractor for member in members}
heads = {member.name: member.head for member in members}
matrix = tc.recombination_matrix(extractors, heads, test)
print(matrix.to_markdown())

# Each part is published on its own, with what was measured on its card.
space.save_pretrained(PARTS / "space")
for name, extractor in extractors.items():
    extractor.facts = matrix.facts("digits", name, known=replace(extractor.facts, license="apache-2.0"))
    extractor.save_pretrained(PARTS / f"extractor-{name}")
    heads[name].save_pretrained(PARTS / f"head-{name}")

# Somebody else, who has seen neither training, puts a classifier together. Parts that do not fit would be refused.
extractor = tc.load(PARTS / "extractor-a")
head = tc.load(PARTS / "head-b")
model = tc.compose(extractor, head).eval()
told = model(extractor.preprocess(test.images)).argmax(dim=1)
print(f"a's extractor under b's head, loaded again: {(told == test.labels).float().mean():.3f}")
