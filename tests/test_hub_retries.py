"""What passes is tried again, what cannot be repeated is not; caches behind links, read-only, below a file; mirrors."""

import re
import time
from email.utils import formatdate
from pathlib import Path

import pytest
from hub_parts import CLASSES, TOKEN, Parts
from hub_server import LoopbackHub
from huggingface_hub import constants

import timm_compat as tc
from timm_compat.storage import hub_calls


@pytest.fixture
def published(hub: LoopbackHub, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    monkeypatch.setenv("HF_TOKEN", hub.user(TOKEN, "alice", "lab"))
    tc.TaskHead(parts.space, CLASSES).push_to_hub("lab/head")
    hub.seen.clear()
    return hub


def asked(hub: LoopbackHub, pattern: str) -> int:
    return sum(bool(re.search(pattern, f"{seen.method} {seen.path}")) for seen in hub.seen)


class TestRetries:
    @pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
    def test_what_passes_is_tried_again(self, published: LoopbackHub, status: int) -> None:
        published.fail("GET /api/models/lab/head", "status", status, times=2)
        assert tc.TaskHead.from_pretrained("lab/head").class_names == CLASSES
        assert asked(published, "GET /api/models/lab/head") == 3

    def test_a_dropped_connection(self, published: LoopbackHub) -> None:
        published.fail("GET /api/models/lab/head", "drop", times=1)
        assert tc.TaskHead.from_pretrained("lab/head").class_names == CLASSES

    @pytest.mark.parametrize("status", [400, 403, 404])
    def test_what_stays_is_not(self, published: LoopbackHub, status: int) -> None:
        published.fail("GET /api/models/lab/head", "status", status)
        with pytest.raises(tc.errors.HubError):
            tc.TaskHead.from_pretrained("lab/head")
        assert asked(published, "GET /api/models/lab/head") == 1

    def test_a_commit_is_sent_once(self, published: LoopbackHub, parts: Parts) -> None:
        published.fail("POST .*/commit/", "status", 503)
        with pytest.raises(tc.errors.HubConnectionError, match="503"):
            tc.TaskHead(parts.space, ["x"]).push_to_hub("lab/head")
        assert asked(published, "POST .*/commit/") == 1

    @pytest.mark.parametrize("form", ["seconds", "date", "limit"])
    def test_the_wait_that_the_hub_asks_for(self, published: LoopbackHub, form: str) -> None:
        headers = {
            "seconds": {"Retry-After": "1"},
            "date": {"Retry-After": formatdate(time.time() + 2, usegmt=True)},
            "limit": {"RateLimit": '"api";r=0;t=1'},
        }
        published.fail("GET /api/models/lab/head", "status", 429, times=1, headers=headers[form])
        start = time.monotonic()
        assert tc.TaskHead.from_pretrained("lab/head").class_names == CLASSES
        assert time.monotonic() - start > 0.9

    def test_a_wait_beyond_the_time_limit_is_not_begun(self, published: LoopbackHub) -> None:
        published.fail("GET /api/models/lab/head", "status", 429, headers={"Retry-After": "3600"})
        start = time.monotonic()
        with pytest.raises(tc.errors.HubConnectionError, match="429"):
            tc.TaskHead.from_pretrained("lab/head")
        assert time.monotonic() - start < 5
        assert asked(published, "GET /api/models/lab/head") == 1

    def test_a_time_out_names_the_repository(self, published: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TIMM_COMPAT_HUB_TIMEOUT", "0.5")
        published.fail("GET /api/models/lab/head", "hang", 1)
        with pytest.raises(tc.errors.HubTimeoutError, match="lab/head"):
            tc.TaskHead.from_pretrained("lab/head")


class TestAccess:
    def test_a_gated_repository_without_a_token(self, published: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("HF_TOKEN")
        published.fail("GET /api/models/lab/head", "status", 401, code="GatedRepo")
        with pytest.raises(
            tc.errors.HubAccessError, match=r"lab/head.*gated \(401\): accept its conditions .*hf auth login"
        ):
            tc.TaskHead.from_pretrained("lab/head")

    def test_a_password_in_the_endpoint_is_not_told(
        self, published: LoopbackHub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", "http://alice:opensesame@127.0.0.1:9")
        with pytest.raises(tc.errors.HubConnectionError, match=r"http://127\.0\.0\.1:9") as caught:
            tc.TaskHead.from_pretrained("lab/head")
        chain = [caught.value, caught.value.__cause__]
        assert "opensesame" not in f"{chain!r} {caught.value}"
        assert hub_calls.without_token("at https://a:b@mirror/x and http://mirror/@y") == (
            "at https://mirror/x and http://mirror/@y"
        )


class TestCaches:
    def through_link(self, root: Path) -> Path:
        (root / "real").mkdir()
        (root / "link").symlink_to(root / "real")
        return root / "link" / "hub"

    @pytest.mark.parametrize("form", ["link", "dots", "link to a parent"])
    def test_paths_that_are_not_resolved(self, published: LoopbackHub, tmp_path: Path, form: str) -> None:
        if form == "dots":
            cache = tmp_path / "a" / ".." / "hub"
        else:
            cache = self.through_link(tmp_path)
            cache = cache / ".." / "other" if form == "link to a parent" else cache
        for _ in range(2):
            assert tc.TaskHead.from_pretrained("lab/head", cache_dir=cache).class_names == CLASSES
        assert tc.TaskHead.from_pretrained("lab/head", cache_dir=cache, local_files_only=True).class_names == CLASSES
        if form != "dots":
            assert any((tmp_path / "real").iterdir())

    def test_the_environment_names_a_link(
        self, published: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(self.through_link(tmp_path)))
        assert tc.TaskHead.from_pretrained("lab/head").class_names == CLASSES

    def test_a_cache_that_cannot_be_written_but_holds_all(
        self, published: LoopbackHub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tc.TaskHead.from_pretrained("lab/head")
        tc.TaskHead.from_pretrained("lab/head", revision="main")

        def refuse(file: Path, text: str) -> None:
            raise PermissionError(13, "Permission denied", str(file))

        for ref in Path(constants.HF_HUB_CACHE).glob("*/refs/*"):
            ref.write_text("0" * 40)
        monkeypatch.setattr("timm_compat.storage.reading.replace_text", refuse)
        assert tc.TaskHead.from_pretrained("lab/head").class_names == CLASSES

    def test_a_cache_below_a_file(self, published: LoopbackHub, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(tc.errors.HubError, match=r"lab/head.*cache.*HF_HOME, or cache_dir="):
            tc.TaskHead.from_pretrained("lab/head", cache_dir=tmp_path / "file" / "hub")

    def test_a_cache_in_a_loop_of_links(self, published: LoopbackHub, tmp_path: Path) -> None:
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        with pytest.raises(tc.errors.HubError, match="cache"):
            tc.TaskHead.from_pretrained("lab/head", cache_dir=tmp_path / "loop" / "hub")


class TestMirrors:
    def test_a_list_without_sizes(self, published: LoopbackHub) -> None:
        published.fail("GET /api/models/lab/head", "sizeless")
        assert tc.TaskHead.from_pretrained("lab/head").class_names == CLASSES

    def test_sizes_are_capped_there_too(self, published: LoopbackHub) -> None:
        published.edit("lab/head", model__safetensors=bytes(10**6))
        published.fail("GET /api/models/lab/head", "sizeless")
        with pytest.raises(tc.errors.ComponentFileError, match=r"expected at most .* bytes, got 1000000"):
            tc.TaskHead.from_pretrained("lab/head")
        assert not asked(published, "GET .*resolve.*safetensors")
