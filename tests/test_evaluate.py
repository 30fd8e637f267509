"""``timm-compat evaluate``: parts in folders to a report of one page, opened in a real browser."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import find_browser, visit
from PIL import Image

import timm_compat as tc
from timm_compat.cli import main
from timm_compat.evaluation.baselines import BASELINES
from timm_compat.evaluation.report_text import report_html, report_markdown
from timm_compat.experiments.evaluate import EvaluateConfig, evaluate
from timm_compat.experiments.parts import Parts, load_parts

HOSTILE = '<img src="http://example.test/x.png"><script>alert(1)</script>|*"&$x_$'


def filled(head: tc.TaskHead, seed: int) -> tc.TaskHead:
    torch.nn.init.normal_(head.classifier.weight, generator=torch.Generator().manual_seed(seed))
    return head


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two extractors with heads in one space, a head of fewer classes, and a pair of another space."""
    root = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    names = tc.data.load_digits().class_names
    space = tc.CompatSpace(16, names, ["common_classes"]).finalize()
    other = tc.CompatSpace(16, names, ["rotation"]).finalize()
    for seed, (name, own) in enumerate((("test_resnet", space), ("test_vit", space), ("test_efficientnet", other))):
        extractor = tc.create_extractor(name, own, in_chans=1, img_size=32)
        extractor.save_pretrained(root / f"extractor-{name}")
        filled(tc.TaskHead(own, names), seed).save_pretrained(root / f"head-{name}")
    filled(tc.TaskHead(space, ["7", "3", "1"]), 5).save_pretrained(root / "head-few")
    space.save_pretrained(root / "space")
    return root


def run(capsys, *words: object) -> tuple[int, str, str]:
    code = main(["evaluate", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def in_one_space(folder: Path) -> list[Path]:
    return [folder / f"{role}-{name}" for role in ("extractor", "head") for name in ("test_resnet", "test_vit")]


@pytest.fixture(scope="module")
def report(folder, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("reports") / "report"
    history = target.parent / "history.jsonl"
    history.write_text("".join(json.dumps({"epoch": e, "loss": 1 / e, "a/task": 2 / e}) + "\n" for e in (1, 2, 3)))
    words = [*in_one_space(folder), folder / "head-few", "--data", "digits", "--limit", 150, "--baselines"]
    words += ["--train-limit", 200, "--retrieval", "--history", history, "--report", target]
    assert main(["evaluate", *map(str, words)]) == 0
    return target


class TestCommand:
    def test_prints_the_matrix_that_python_measures(self, capsys, folder) -> None:
        code, out, err = run(capsys, *in_one_space(folder), "--data", "digits", "--json")
        assert code == 0, err
        found = json.loads(out)
        parts = load_parts([str(path) for path in in_one_space(folder)])
        expected = tc.recombination_matrix(parts.extractors, parts.heads, tc.data.load_digits("test"))
        assert found["matrix"]["accuracy"] == expected.accuracy.tolist()
        assert found["matrix"]["rows"] == ["test_resnet", "test_vit"]
        assert found["matrix"]["native"] == [[True, False], [False, True]]
        assert found["schema"] == 1
        assert found["baselines"] == []

    def test_text_and_names(self, capsys, folder) -> None:
        words = [f"mine={folder / 'extractor-test_vit'}", f"mine={folder / 'head-few'}"]
        code, out, _ = run(capsys, *words, "--data", "digits")
        assert code == 0
        assert re.search(r"\| mine +\| \*\*0\.\d{3}\*\* +\|", out)
        assert re.search(r"\| images left out +\| \d+ of 449 \|", out)
        assert re.search(r"^native 0\.\d{3}$", out, re.MULTILINE)

    def test_cross_space_is_marked(self, capsys, folder) -> None:
        words = [*in_one_space(folder), folder / "head-test_efficientnet", "--data", "digits", "--limit", 100]
        code, _, err = run(capsys, *words)
        assert code == 2
        assert "different spaces" in err
        code, out, _ = run(capsys, *words, "--cross-space")
        assert code == 0
        assert "† extractor and head of different spaces" in out

    def test_a_folder_of_pictures(self, capsys, folder, tmp_path) -> None:
        digits = tc.data.load_digits("test").subset(range(40))
        for number, (image, label) in enumerate(zip(digits.images[:, 0].numpy(), digits.labels.tolist(), strict=True)):
            (tmp_path / "pictures" / str(label)).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(tmp_path / "pictures" / str(label) / f"{number}.png")
        code, out, err = run(capsys, *in_one_space(folder), "--data", tmp_path / "pictures", "--json")
        assert code == 0, err
        assert json.loads(out)["matrix"]["counts"] == [40, 40]
        code, _, err = run(capsys, *in_one_space(folder), "--data", tmp_path / "pictures", "--baselines")
        assert (code, "apart from the test images, got the same" in err) == (2, True)

    def test_against_the_same_networks_trained_alone(self, capsys, folder, tmp_path) -> None:
        words = [*in_one_space(folder), "--data", "digits", "--limit", 100, "--json"]
        alone = json.loads(run(capsys, *words)[1])
        for number, accuracy in enumerate((0.5, 0.9)):
            alone["matrix"]["accuracy"][number][number] = accuracy
        (tmp_path / "report.json").write_text(json.dumps(alone))
        code, out, err = run(capsys, *words, "--alone", tmp_path / "report.json")
        assert code == 0, err
        found = json.loads(out)
        (first, _), (cross, second) = found["matrix"]["accuracy"]
        assert found["scores"]["compatibility_cost"] == pytest.approx((0.5 - first + 0.9 - second) / 2)
        assert found["scores"]["update_gain"] == pytest.approx((cross - first) / (0.9 - first))
        words[words.index(100)] = 90
        code, _, err = run(capsys, *words, "--alone", tmp_path / "report.json")
        assert (code, "same test images" in err) == (2, True)

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["{0}/extractor-test_vit", "--data", "digits"], "at least one extractor and one head, got 1 and 0"),
            (["{0}/extractor-test_vit", "a={0}/head-few", "a={0}/head-test_vit", "--data", "digits"], "'a' twice"),
            (["{0}/space", "--data", "digits"], "expected an extractor or a head, got a space"),
            (["{0}/nothing", "--data", "digits"], "found none at"),
            (["={0}/space", "--data", "digits"], "NAME=SOURCE"),
            (["{0}/extractor-test_vit", "{0}/head-few", "--data", "digts"], "digits"),
            (["{0}/extractor-test_vit", "{0}/head-few", "--data", "digits", "--limit", "0"], "limit"),
            (["{0}/extractor-test_vit", "{0}/head-few", "--data", "digits", "--limit", "1"], "at least 2 classes"),
            (["{0}/extractor-test_vit", "{0}/head-few", "--data", "digits", "--baselines", "magic"], "'magic'"),
            (
                ["{0}/extractor-test_vit", "{0}/head-few", "--data", "digits", "--baselines", "--train-split", "test"],
                "apart from the test images",
            ),
            (["{0}/extractor-test_vit", "{0}/head-few", "--data", "digits", "--history", "{0}/none"], "history"),
            (["{0}/extractor-test_vit", "{0}/head-few", "--data", "digits", "--alone", "{0}/none"], "report.json, got"),
            (["{0}/extractor-test_vit", "{0}/head-few", "--data", "digits", "--report", "{0}"], "new or empty"),
        ],
    )
    def test_bad_input_is_one_line(self, capsys, folder, words, message) -> None:
        code, out, err = run(capsys, *(word.format(folder) for word in words))
        assert (code, out) == (2, "")
        assert message in err
        assert err.startswith("timm-compat: error: ")


class TestReport:
    def test_json_has_every_number(self, report) -> None:
        facts = json.loads((report / "report.json").read_text())
        assert facts["matrix"]["columns"] == ["test_resnet", "test_vit", "few"]
        assert {baseline["name"] for baseline in facts["baselines"]} == set(BASELINES)
        assert facts["cka"][0][0] == 1.0
        assert 0 <= facts["cka"][0][1] <= 1
        pair = facts["retrieval"][1]
        assert (pair["queries"], pair["gallery"]) == ("test_resnet", "test_vit")
        assert pair["self_excluded"] is True
        assert pair["distance"] == "cosine"
        assert facts["command"].startswith("timm-compat evaluate ")
        assert facts["command"].endswith(f"--report {report}")
        assert facts["versions"]["timm_compat"] == tc.__version__
        hashes = {part["name"]: part["sha256"] for part in facts["components"] if part["role"] == "extractor"}
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in hashes.values())
        assert facts["scores"]["native"] == pytest.approx(
            np.mean([facts["matrix"]["accuracy"][0][0], facts["matrix"]["accuracy"][1][1]])
        )
        assert facts["scores"]["stitching_penalty_of_baseline"] is not None

    def test_markdown_and_page_say_the_same(self, report) -> None:
        facts = json.loads((report / "report.json").read_text())
        text, page = (report / "report.md").read_text(), (report / "report.html").read_text()
        for row in facts["matrix"]["accuracy"]:
            for value in row:
                assert f"{value:.3f}" in text
                assert f"{value:.3f}" in page
        for words in ("orthogonal Procrustes", "labelled images of the head", "CMC@1", "Linear CKA", "sha256"):
            assert words in text
            assert words in page
        for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
            assert (report / name).read_bytes().startswith(b"\x89PNG")
        assert {path.name for path in report.glob("*.png")} == {
            "matrix.png", "baselines.png", "features.png", "training.png",
        }  # fmt: skip

    def test_page_is_well_formed_and_names_nothing_outside(self, report) -> None:
        class Reader(HTMLParser):
            def __init__(self) -> None:
                super().__init__()
                self.open_tags: list[str] = []
                self.links: list[str] = []

            def handle_starttag(self, tag, attributes) -> None:
                if tag not in ("meta", "link", "img"):
                    self.open_tags.append(tag)
                self.links.extend(value for name, value in attributes if name in ("src", "href", "srcset", "action"))

            def handle_endtag(self, tag) -> None:
                assert self.open_tags.pop() == tag

        reader = Reader()
        reader.feed((report / "report.html").read_text())
        assert reader.open_tags == []
        assert len(reader.links) == 5  # the icon and four pictures
        assert all(link.startswith("data:") for link in reader.links)

    def test_words_of_others_stay_words(self, folder) -> None:
        digits = tc.data.load_digits("test").subset(range(60))
        names = (HOSTILE, *digits.class_names[1:])
        space = tc.CompatSpace(8, names, ["common_classes"])
        extractor = tc.create_extractor("test_resnet", space, in_chans=1, img_size=32)
        parts = Parts({HOSTILE: extractor}, {HOSTILE: filled(tc.TaskHead(space, names), 0)}, {})
        test = tc.data.ArrayDataset(digits.images, digits.labels, names)
        found = evaluate(parts, test, EvaluateConfig(), command=HOSTILE, test_name=HOSTILE)
        page, text = report_html(found), report_markdown(found)
        assert "<script" not in page
        assert page.count("<img") == len(found.pictures)
        assert "&lt;script&gt;" in page
        assert not re.search(r"(?m)^(?!    ).*(?<!\\)<(img|script)", text)


class TestInMemory:
    def test_feature_maps_have_a_matrix_but_no_comparison_of_features(self) -> None:
        test = tc.data.load_digits("test").subset(range(60))
        space = tc.CompatSpace(8, test.class_names, ["common_classes"], level="map")
        extractors = {name: tc.create_extractor("test_resnet", space, in_chans=1, img_size=32) for name in "ab"}
        heads = {name: filled(tc.TaskHead(space, test.class_names), 3) for name in "ab"}
        parts = Parts(extractors, heads, {})
        found = evaluate(parts, test, EvaluateConfig(pictures=False))
        assert found.matrix.accuracy.shape == (2, 2)
        assert (found.cka, found.retrieval, found.pictures) == (None, None, {})
        assert {part.source for part in found.components} == {"memory"}
        with pytest.raises(tc.errors.ConfigError, match='retrieval: expected extractors of level "pooled"'):
            evaluate(parts, test, EvaluateConfig(retrieval=True))
        with pytest.raises(tc.errors.ConfigError, match="images to fit them on"):
            evaluate(parts, test, EvaluateConfig(baselines=("procrustes",)))
        with pytest.raises(tc.errors.ConfigError, match="apart from the test images"):
            evaluate(parts, test, EvaluateConfig(baselines=("procrustes",)), train=test)


@pytest.mark.skipif(find_browser() is None, reason="no Chromium here; .ci/run installs it")
class TestInABrowser:
    SHOWN = """JSON.stringify({
        title: document.title,
        broken: [...document.images].filter(image => !image.complete || image.naturalWidth < 100).length,
        images: document.images.length,
        marked: [...document.querySelectorAll("td.marked")].slice(0, 2).map(cell => cell.textContent),
        wide: document.documentElement.scrollWidth <= document.documentElement.clientWidth,
    })"""

    def test_renders_and_asks_for_nothing(self, report, tmp_path) -> None:
        url = (report / "report.html").as_uri()
        found = visit(find_browser(), url, self.SHOWN, tmp_path)
        shown = json.loads(found.answer)
        assert [request for request in found.requests if not request.startswith("data:")] == [url]
        assert found.complaints == []
        assert shown["title"] == "timm-compat: recombination report"
        assert (shown["images"], shown["broken"], shown["wide"]) == (4, 0, True)
        accuracy = json.loads((report / "report.json").read_text())["matrix"]["accuracy"]
        assert shown["marked"] == [f"{accuracy[0][0]:.3f}", f"{accuracy[1][1]:.3f}"]
        assert found.screenshot.startswith(b"\x89PNG")

    def test_this_browser_would_have_noticed(self, tmp_path) -> None:
        page = tmp_path / "page.html"
        page.write_text('<img src="http://127.0.0.1:9/x.png"><script>console.error("no")</script>')
        found = visit(find_browser(), page.as_uri(), "document.images.length", tmp_path)
        assert "http://127.0.0.1:9/x.png" in found.requests
        assert any("no" in complaint for complaint in found.complaints)
