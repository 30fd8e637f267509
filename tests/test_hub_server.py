"""The tests' own Hub speaks as the real one does: the official client gets along with it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import PAGE, LoopbackHub
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

CARD = b"---\nlibrary_name: timm\nlicense: mit\ntags:\n- one\n- two\n---\n\n# A card\n"


@pytest.fixture
def api(hub: LoopbackHub) -> HfApi:
    return HfApi(endpoint=hub.url, token=hub.user("hf_alice", "alice", "lab"))


def commit(api: HfApi, repo_id: str, message: str = "add", **files: bytes) -> str:
    api.create_repo(repo_id, exist_ok=True)
    adds = [CommitOperationAdd(name.replace("__", "."), data) for name, data in files.items()]
    return str(api.create_commit(repo_id, adds, commit_message=message).oid)


@pytest.mark.parametrize("mode", ["lfs", "regular"])
def test_files_come_back_and_unchanged_ones_are_not_sent_again(hub: LoopbackHub, api: HfApi, mode: str) -> None:
    hub.store.upload_mode = mode
    weights = os.urandom(5000)
    first = commit(api, "lab/model", model__safetensors=weights, README__md=CARD)
    path = Path(hf_hub_download("lab/model", "model.safetensors", token=api.token, endpoint=hub.url))
    assert path.read_bytes() == weights
    assert path.parent.name == first
    assert api.model_info("lab/model").tags == ["one", "two", "timm", "license:mit"]
    hub.seen.clear()
    second = commit(api, "lab/model", model__safetensors=weights, README__md=CARD + b"more\n")
    assert second != first
    assert sum(seen.size for seen in hub.seen if "/commit/" in seen.path or "lfs-upload" in seen.path) < 1500
    sizes = {sibling.rfilename: sibling.size for sibling in api.model_info("lab/model", files_metadata=True).siblings}
    assert sizes == {"model.safetensors": 5000, "README.md": len(CARD) + 5}
    assert [entry.commit_id for entry in api.list_repo_commits("lab/model")][:2] == [second, first]


def test_branches_tags_and_races(hub: LoopbackHub, api: HfApi) -> None:
    first = commit(api, "alice/model", a__txt=b"1")
    api.create_branch("alice/model", branch="dev")
    api.create_tag("alice/model", tag="v1")
    add = [CommitOperationAdd("a.txt", b"2")]
    second = api.create_commit("alice/model", add, commit_message="two", revision="dev").oid
    refs = api.list_repo_refs("alice/model")
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": first, "dev": second}
    assert [ref.target_commit for ref in refs.tags] == [first]
    add = [CommitOperationAdd("a.txt", b"3")]
    with pytest.raises(HfHubHTTPError, match="412"):
        api.create_commit("alice/model", add, commit_message="late", revision="dev", parent_commit=first)
    with pytest.raises(HfHubHTTPError, match="Pull requests are disabled"):
        api.create_commit("alice/model", [CommitOperationAdd("b.txt", b"4")], commit_message="pr", create_pr=True)
    api.delete_branch("alice/model", branch="dev")
    api.delete_repo("alice/model")
    assert not api.repo_exists("alice/model")


def test_who_may_see_and_write(hub: LoopbackHub, api: HfApi) -> None:
    assert api.whoami()["name"] == "alice"
    api.create_repo("lab/secret", private=True)
    stranger = hub.user("hf_bob", "bob")
    with pytest.raises(RepositoryNotFoundError, match="404"):
        api.model_info("lab/secret", token=stranger)
    with pytest.raises(RepositoryNotFoundError, match="401"):
        api.model_info("lab/secret", token=False)
    with pytest.raises(HfHubHTTPError, match="403"):
        api.create_repo("lab/other", token=stranger)
    assert list(api.list_models(author="lab", token=stranger)) == []
    commit(api, "lab/model", config__json=b"{}")
    with pytest.raises(RevisionNotFoundError):
        api.model_info("lab/model", revision="nowhere")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("lab/model", "none.txt", token=api.token, endpoint=hub.url)
    hub.store.repos["lab/model"].gated = True
    with pytest.raises(GatedRepoError):
        hf_hub_download("lab/model", "config.json", token=False, endpoint=hub.url)


def test_search_turns_pages(hub: LoopbackHub, api: HfApi) -> None:
    for number in range(2 * PAGE + 1):
        commit(api, f"lab/m{number}", README__md=CARD)
    commit(api, "alice/other", README__md=CARD.replace(b"- two", b"- three"))
    names = [model.id for model in api.list_models(filter=["one", "two"])]
    assert names == [f"lab/m{number}" for number in range(2 * PAGE + 1)]
    assert [model.id for model in api.list_models(filter="one", author="alice")] == ["alice/other"]


def test_a_redirect_to_another_origin_gets_no_token(hub: LoopbackHub, api: HfApi) -> None:
    commit(api, "lab/model", model__safetensors=b"weights")
    other = LoopbackHub(hub.store)
    hub.fail("resolve", "redirect", other.url.replace("127.0.0.1", "localhost"))
    path = hf_hub_download("lab/model", "model.safetensors", token=api.token, endpoint=hub.url)
    assert Path(path).read_bytes() == b"weights"
    assert [seen.token for seen in other.seen] == [None]
    other.close()


def test_without_xet_a_client_that_insists_on_it_is_told(hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    """hf_xet asks for a token endpoint that this Hub does not have; switched off, as the README says, it works."""
    script = (
        "from huggingface_hub import HfApi, CommitOperationAdd as Add\n"
        "HfApi().create_commit('lab/model', [Add('model.safetensors', b'x' * 100)], commit_message='add')\n"
    )
    api.create_repo("lab/model")
    env = {**os.environ, "HF_TOKEN": "hf_alice", "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
    subprocess.run([sys.executable, "-c", script], env=env, check=True, capture_output=True)
    assert hub.files("lab/model") == {"model.safetensors": b"x" * 100}
