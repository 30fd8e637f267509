"""Linear probes: the fit against scikit-learn's, the choice of the penalty, what the report says, bad input."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import timm_compat as tc
from timm_compat.cli import main
from timm_compat.methods.logistic import fit_logistic, stratified_folds


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(count: int, width: int = 20, classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Classes that overlap, in features of unequal spread and correlation."""
    draw, shape = generator(seed), generator(99)
    mixing = torch.randn(width, width, generator=shape) * torch.logspace(0.5, -0.5, width)
    centres = torch.randn(classes, width, generator=shape)
    labels = torch.randint(classes, (count,), generator=draw)
    return (0.7 * centres[labels] + torch.randn(count, width, generator=draw)) @ mixing + 3, labels


class TestTheFit:
    @pytest.mark.parametrize("penalty", [1.0, 1e-2, 1e-4])
    def test_is_that_of_scikit_learn(self, penalty: float) -> None:
        from sklearn.linear_model import LogisticRegression

        features, labels = drawn(400)
        fit = fit_logistic(features, labels, 5, penalty=penalty)
        variance = features.double().var(dim=0, correction=0)
        scaled = ((features - features.mean(dim=0)) / (variance + variance.mean()).sqrt()).numpy()
        other = LogisticRegression(C=1 / (400 * penalty), tol=1e-8, max_iter=5000).fit(scaled, labels.numpy())
        expected = torch.from_numpy(other.predict_proba(scaled)).float()
        torch.testing.assert_close((features @ fit.weight.T + fit.bias).softmax(dim=1), expected, atol=5e-3, rtol=0)

    def test_chooses_as_well_as_scikit_learn(self) -> None:
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GridSearchCV
        from sklearn.preprocessing import StandardScaler

        features, labels = drawn(200, width=60)
        test, truth = drawn(2000, width=60, seed=1)
        fit = fit_logistic(features, labels, 5, generator=generator())
        scaler = StandardScaler().fit(features.numpy())
        other = GridSearchCV(LogisticRegression(max_iter=2000), {"C": np.logspace(-4, 3, 8)}, cv=5)
        other.fit(scaler.transform(features.numpy()), labels.numpy())
        best = other.score(scaler.transform(test.numpy()), truth.numpy())
        own = (fit.classes(test) == truth).float().mean()
        assert own > best - 0.02
        assert fit.correct is not None
        assert abs(float(fit.correct.float().mean()) - own) < 0.1

    def test_needs_no_second_copy_of_the_features(self) -> None:
        features, labels = drawn(300)
        kept = features.clone()
        fit = fit_logistic(features, labels, 5, penalty=0.1)
        assert torch.equal(features, kept)
        again = fit_logistic(features, labels, 5, penalty=0.1, overwrite=True)
        assert torch.equal(fit.weight, again.weight)
        assert not torch.equal(features, kept)

    def test_of_features_that_are_nearly_all_dead(self) -> None:
        alive, labels = drawn(200)
        sparse = torch.relu(torch.randn(200, 1280, generator=generator(0)) - 3.5)
        features = torch.cat([alive, sparse], dim=1)
        right = fit_logistic(features, labels, 5, penalty=0.1).classes(features) == labels
        assert (
            right.float().mean()
            > (fit_logistic(alive, labels, 5, penalty=0.1).classes(alive) == labels).float().mean() - 0.05
        )

    def test_survives_noise_in_features_that_its_samples_hardly_use(self) -> None:
        features, labels = drawn(200)
        width, draw = features.shape[1], generator(5)
        asleep = 1e-3 * (features.std() * torch.randn(200, width, generator=draw) + features)
        noise = 0.1 * features.std() * torch.randn(200, width, generator=draw)
        fit = fit_logistic(torch.cat([features, asleep], dim=1), labels, 5, generator=generator())
        clean, noisy = (fit.classes(torch.cat([features, asleep + part], dim=1)) for part in (0 * noise, noise))
        assert (clean == noisy).float().mean() > 0.95

    def test_takes_the_strongest_of_penalties_that_are_as_good_as_the_best(self) -> None:
        features, labels = drawn(300, width=60)
        chosen = fit_logistic(features, labels, 5, generator=generator()).penalty
        test, truth = drawn(4000, width=60, seed=1)

        def loss(penalty: float) -> Tensor:
            fit = fit_logistic(features, labels, 5, penalty=penalty)
            return torch.nn.functional.cross_entropy(test @ fit.weight.T + fit.bias, truth)

        losses = {penalty: float(loss(penalty)) for penalty in (10 * chosen, chosen, *np.logspace(-5, 1, 13).tolist())}
        assert losses[chosen] < min(losses.values()) + 0.1
        assert losses[10 * chosen] > losses[chosen] + 0.05

    def test_constant_features_and_fewer_images_than_features(self) -> None:
        features, labels = drawn(12, width=40)
        features[:, :3] = 7.0
        fit = fit_logistic(features, labels, 5, generator=generator())
        assert fit.weight.isfinite().all()
        assert (fit.classes(features) == labels).float().mean() > 0.5


class TestFolds:
    def test_spread_every_class(self) -> None:
        labels = torch.tensor([0] * 10 + [1] * 3 + [2])
        folds = stratified_folds(labels, 5, generator())
        assert folds[:10].bincount().tolist() == [2] * 5
        assert len(set(folds[10:13].tolist())) == 3
        assert folds[13] == -1


@pytest.fixture(scope="module")
def extractor() -> tc.CompatExtractor:
    torch.manual_seed(0)
    space = tc.CompatSpace(16, [str(digit) for digit in range(10)], ["common_classes"]).finalize()
    return tc.create_extractor("test_resnet", space, in_chans=1, img_size=16).eval()


@pytest.fixture(scope="module")
def digits() -> tuple[tc.data.ArrayDataset, tc.data.ArrayDataset]:
    return tc.data.load_digits().subset(range(300)), tc.data.load_digits("test").subset(range(300))


class TestTheHead:
    def test_does_on_test_images_what_its_report_says(self, extractor, digits) -> None:
        train, test = digits
        head = tc.linear_probe(extractor, train)
        measured = tc.linear_probe(extractor, train, test_images=test)
        features = tc.extract_features(extractor, test.images)
        with torch.no_grad():
            accuracy = float((head(features).argmax(dim=1) == test.labels).float().mean())
        assert accuracy > 0.5
        assert measured.fit_report.accuracy == pytest.approx(accuracy)
        assert (measured.fit_report.measured_by, measured.fit_report.num_held_out) == ("test images", 300)
        low, high = head.fit_report.interval
        assert low - 0.02 < accuracy < high + 0.02  # the penalty was chosen on the same folds: slightly too good
        assert head.fit_report.measured_by == "cross-validation"
        assert not head.training

    def test_a_saved_head_tells_how_much_better_it_does_on_its_own_images(self, extractor, digits, tmp_path) -> None:
        train = digits[0]
        head = tc.linear_probe(extractor, train)
        head.save_pretrained(tmp_path)
        told = tc.TaskHead.from_pretrained(tmp_path).facts.training
        own = head(tc.extract_features(extractor, train)).argmax(dim=1) == train.labels
        assert told["training_accuracy"] == pytest.approx(own.float().mean().item(), abs=1e-4)
        assert told["cross_validation_accuracy"] == pytest.approx(head.fit_report.accuracy, abs=1e-4)

    def test_is_the_same_with_the_same_seed(self, extractor, digits) -> None:
        first, second = (tc.linear_probe(extractor, digits[0].subset(range(80)), seed=3) for _ in range(2))
        assert first.digest() == second.digest()

    def test_matches_test_classes_by_name(self, extractor, digits) -> None:
        train, test = digits
        turned = test.of_classes(test.class_names[::-1])
        reports = [tc.linear_probe(extractor, train, test_images=part).fit_report for part in (test, turned)]
        assert reports[0].accuracy == pytest.approx(reports[1].accuracy)

    @pytest.mark.parametrize("each", [1, 2, 3])
    def test_of_few_images_a_class(self, extractor, digits, each: int) -> None:
        train, test = digits
        chosen = torch.cat([(train.labels == label).nonzero().flatten()[:each] for label in range(10)])
        report = tc.linear_probe(extractor, train.subset(chosen)).fit_report
        assert report.num_held_out == (0 if each == 1 else 10 * each)
        assert (report.accuracy is None) == (each == 1)
        assert tc.linear_probe(extractor, train.subset(chosen), test_images=test).fit_report.accuracy > 0.15

    def test_at_level_map(self, digits) -> None:
        space = tc.CompatSpace(16, level="map", methods=["rotation"]).finalize()
        extractor = tc.create_extractor("test_resnet", space, in_chans=1, img_size=32).eval()
        head = tc.linear_probe(extractor, digits[0], test_images=digits[1])
        with torch.no_grad():
            told = head(tc.extract_features(extractor, digits[1].images)).argmax(dim=1) == digits[1].labels
        assert head.fit_report.accuracy == pytest.approx(float(told.float().mean()))


class TestRefuses:
    def test_one_class(self, extractor, digits) -> None:
        with pytest.raises(tc.errors.DataError, match="at least two classes, got 3 only"):
            tc.linear_probe(extractor, digits[0].of_classes(["3"]))

    def test_classes_without_images(self, extractor, digits) -> None:
        with pytest.raises(tc.errors.DataError, match=r"got none of .*of_classes"):
            tc.linear_probe(extractor, digits[0].subset([0, 1]))

    def test_strange_test_images(self, extractor, digits) -> None:
        with pytest.raises(tc.errors.DataError, match="test images of the head's classes"):
            tc.linear_probe(extractor, digits[0], test_images=digits[1].renamed({"3": "three"}))


class TestTheCommand:
    @pytest.fixture
    def parts(self, extractor, tmp_path) -> Path:
        extractor.save_pretrained(tmp_path / "extractor")
        data = tc.data.load_digits()
        for number, (image, label) in enumerate(zip(data.images[:60, 0].numpy(), data.labels.tolist(), strict=False)):
            if label < 3:
                folder = tmp_path / "photos" / ("train" if number < 45 else "test") / f"digit {label}"
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(folder / f"{number}.png")
        return tmp_path

    def test_writes_a_head(self, capsys, parts) -> None:
        words = ["probe", parts / "extractor", "--data", parts / "photos", "--output", parts / "head"]
        assert main([str(word) for word in (*words, "--test-split", "test", "--json")]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["class_names"] == ["digit 0", "digit 1", "digit 2"]
        assert facts["measured_by"] == "test images"
        head = tc.TaskHead.from_pretrained(parts / "head")
        assert tc.compose(tc.CompatExtractor.from_pretrained(parts / "extractor"), head).num_classes == 3

    def test_in_words(self, capsys, parts) -> None:
        words = ["probe", parts / "extractor", "--data", parts / "photos", "--output", parts / "head"]
        assert main([str(word) for word in words]) == 0
        out = capsys.readouterr().out
        assert "A head over 3 classes" in out
        assert "by cross-validation" in out

    def test_bad_input_leaves_nothing_behind(self, capsys, parts) -> None:
        words = ["probe", parts / "extractor", "--data", "nowhere", "--output", parts / "head"]
        assert main([str(word) for word in words]) == 2
        assert "nowhere" in capsys.readouterr().err
        assert not (parts / "head").exists()
