"""Swap a backbone: from a classifier of handwritten digits to the same classifier on a smaller network.

It needs no download. The classifier and the new backbone are timm's small test networks, each trained on its own half
of scikit-learn's digits. The new backbone is then fitted on unlabelled digits, and the old classifier runs on it.
"""

import torch

import timm_compat as tc

train, test = tc.data.load_digits("train"), tc.data.load_digits("test")
first, second = train.halves(torch.Generator().manual_seed(0))


def trained(backbone: str, images: tc.data.ArrayDataset) -> tc.CompatModel:
    """A classifier trained on its own, in a space of its own; `fuse` gives the plain timm model."""
    space = tc.CompatSpace(feature_dim=64)
    extractor = tc.create_extractor(backbone, space, in_chans=1, img_size=16)
    head = tc.TaskHead(space, images.class_names)
    tc.fit(space, [tc.Member(backbone, extractor, head, images)], tc.TrainConfig(epochs=6, batch_size=16))
    return tc.compose(extractor, head).eval()


# Two plain timm models, as if somebody else had trained them: the first is the classifier to move.
classifier = trained("test_resnet", first).fuse()
backbone = trained("test_efficientnet", second).fuse()

# The classifier, taken apart: both parts together give its logits. The names of its classes are needed.
extractor, head = tc.split(classifier, class_names=train.class_names)
images = extractor.preprocess(test.images)
assert torch.allclose(tc.compose(extractor, head).eval()(images), classifier(images), atol=1e-4)

# The new backbone joins: through the classes that both classifiers know by name, and through unlabelled digits.
joined = tc.join(
    extractor.space,
    backbone,
    train,
    reference=extractor,
    heads=[head],
    class_names=train.class_names,
    img_size=16,
)
print(joined.fit_report)

# What it is worth, on test images: the old classifier's head on its own network, and on the new backbone.
matrix = tc.recombination_matrix({"old": extractor, "new": joined}, {"old": head}, test)
print(matrix.to_markdown())

# A plain timm model, to be saved and served without this package.
plain = tc.compose(joined, head).fuse()
print(type(plain).__name__, "with", plain.num_classes, "classes")
