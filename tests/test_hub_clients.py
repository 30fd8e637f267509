"""The tests' own Hub under clients that nobody here wrote: JavaScript's official one, and a mirror in front of it."""

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.request
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_parts import TOKEN, Parts, images, run_python
from hub_server import LoopbackHub

import timm_compat as tc

pytestmark = pytest.mark.slow

JAVASCRIPT = """
import { createRepo, uploadFiles, downloadFile, listFiles, listModels, modelInfo, whoAmI, pathsInfo, fileExists,
         deleteRepo } from "@huggingface/hub";
import { readFileSync, readdirSync } from "node:fs";
const [hubUrl, accessToken, folder] = process.argv.slice(2);
const common = { hubUrl, accessToken };
const all = async (things) => { const list = []; for await (const thing of things) list.push(thing); return list; };
const repo = { type: "model", name: "lab/head" };

const answer = { user: (await whoAmI(common)).name };
const weights = await (await downloadFile({ ...common, repo, path: "model.safetensors", xet: false })).arrayBuffer();
answer.bytes = Buffer.from(weights).toString("base64");
answer.files = (await all(listFiles({ ...common, repo }))).map((file) => [file.path, file.size]);
answer.tagged = (await all(listModels({ ...common, search: { tags: ["timm-compat-role:head"] } }))).map((m) => m.name);
answer.info = (await modelInfo({ ...common, name: "lab/head" })).name;
answer.paths = (await pathsInfo({ ...common, repo, paths: ["config.json", "none.txt"] })).map((info) => info.path);
answer.exists = [await fileExists({ ...common, repo, path: "config.json" }),
                 await fileExists({ ...common, repo, path: "none.txt" })];

const target = { type: "model", name: "lab/from-javascript" };
await createRepo({ ...common, repo: target, private: true });
const blob = (name) => new Blob([readFileSync(`${folder}/${name}`)]);
const files = readdirSync(folder).map((name) => ({ path: name, content: blob(name) }));
answer.commit = (await uploadFiles({ ...common, repo: target, files, commitTitle: "hello", useXet: false })).commit.oid;
try {
  await createRepo({ ...common, repo: target });
} catch (error) {
  answer.again = error.statusCode;
}
console.log(JSON.stringify(answer));
"""


@pytest.fixture
def published(hub: LoopbackHub, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    monkeypatch.setenv("HF_TOKEN", hub.user(TOKEN, "alice", "lab"))
    parts.extractor.push_to_hub("lab/extractor")
    parts.head.push_to_hub("lab/head")
    return hub


@pytest.fixture(scope="module")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("node")
    command = ["npm", "install", "--no-audit", "--no-fund", "--silent", "@huggingface/hub@2"]
    subprocess.run(command, cwd=folder, check=True, timeout=240)
    (folder / "client.mjs").write_text(JAVASCRIPT)
    return folder


@pytest.mark.skipif(shutil.which("npm") is None, reason="the JavaScript client needs Node.js and npm")
@pytest.mark.parametrize("mode", ["lfs", "regular"])
def test_javascript_reads_what_we_push_and_we_load_what_it_pushes(
    published: LoopbackHub, parts: Parts, node_folder: Path, tmp_path: Path, mode: str
) -> None:
    published.store.upload_mode = mode
    changed = tc.TaskHead(parts.space, ["x", "y"]).eval()
    torch.nn.init.normal_(changed.classifier.weight)
    folder = changed.save_pretrained(tmp_path / "head")
    done = subprocess.run(
        ["node", "client.mjs", published.url, TOKEN, str(folder)],
        cwd=node_folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["user"] == "alice"
    assert base64.b64decode(answer["bytes"]) == published.files("lab/head")["model.safetensors"]
    assert dict(answer["files"]) == {name: len(data) for name, data in published.files("lab/head").items()}
    assert answer["tagged"] == ["lab/head"]
    assert answer["info"] == "lab/head"
    assert answer["paths"] == ["config.json"]
    assert answer["exists"] == [True, False]
    assert answer["again"] == 409
    assert published.store.repos["lab/from-javascript"].private
    loaded = tc.TaskHead.from_pretrained("lab/from-javascript")
    assert loaded.source.commit == answer["commit"]
    assert torch.equal(loaded.classifier.weight, changed.classifier.weight)


@pytest.fixture(scope="module")
def olah(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mirror, in an environment of its own."""
    folder = tmp_path_factory.mktemp("olah")
    venv.create(folder / "venv", with_pip=True)
    python = str(folder / "venv" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "olah"], check=True, timeout=280)
    return folder / "venv" / "bin" / "olah-cli"


@pytest.fixture
def mirror(published: LoopbackHub, olah: Path, tmp_path: Path) -> Iterator[str]:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    hub = published.url.removeprefix("http://")
    options = {
        "host": "127.0.0.1",
        "port": port,
        "hf-scheme": "http",
        "hf-netloc": hub,
        "hf-lfs-netloc": hub,
        "mirror-netloc": f"127.0.0.1:{port}",
        "mirror-lfs-netloc": f"127.0.0.1:{port}",
        "repos-path": tmp_path / "mirrored",
        "log-path": tmp_path / "logs",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    log = (tmp_path / "olah.log").open("w")
    process = subprocess.Popen([str(olah), *words], stdout=log, stderr=subprocess.STDOUT, cwd=tmp_path)
    url = f"http://127.0.0.1:{port}"
    for _ in range(300):
        assert process.poll() is None, (tmp_path / "olah.log").read_text()
        try:
            urllib.request.urlopen(f"{url}/api/models/lab/head", timeout=5).close()
            break
        except OSError:
            time.sleep(0.2)
    yield url
    process.terminate()
    process.wait(timeout=20)
    log.close()


def test_a_mirror_in_front_of_the_hub(
    published: LoopbackHub, parts: Parts, mirror: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        "import sys, torch, timm_compat as tc\n"
        "extractor = tc.CompatExtractor.from_pretrained('lab/extractor')\n"
        "model = tc.compose(extractor, tc.TaskHead.from_pretrained('lab/head'))\n"
        "torch.save(model(torch.load(sys.argv[1])).detach(), sys.argv[2])\n"
        "print(extractor.source.commit)\n"
    )
    torch.save(images(), tmp_path / "images")
    for name in ("first", "second"):  # the second time from the mirror's own cache
        arguments = [str(tmp_path / "images"), str(tmp_path / name)]
        env = {"HF_ENDPOINT": mirror, "HF_HUB_CACHE": str(tmp_path / f"cache-{name}")}
        done = run_python(f"import sys; sys.argv[1:] = {arguments!r}\n{script}", **env)
        assert done.stdout.strip() == published.store.repos["lab/extractor"].branches["main"]
        expected = tc.compose(parts.extractor, parts.head)(images())
        torch.testing.assert_close(torch.load(tmp_path / name), expected, atol=1e-5, rtol=0)
