"""Models by name: what is sent holds none of the user's places, what is fetched predicts, faults are said."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from PIL import Image

import tagmask
from tagmask.config import DataConfig, TrainConfig, load_config
from tagmask.data import write_demo
from tagmask.errors import DataError
from tagmask.label import hub
from tagmask.strict import Strict
from tagmask.workflow import train
from tests.cli.calls import call
from tests.workflow.conftest import BASE


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose every place is somewhere under 'secret'."""
    home = tmp_path_factory.mktemp("secret")
    write_demo(home / "scenes", images=8, size=(64, 80), seed=3)
    data = {
        "root": str(home / "scenes"), "train": "train.txt", "val": "val.txt", "masks": str(home / "scenes" / "masks"),
        "images": str(home / "scenes" / "images"), "tags": str(home / "scenes" / "tags.csv"),
        "classes": str(home / "scenes" / "classes.txt"),
    }  # fmt: skip
    torch.save(timm.create_model("test_resnet").state_dict(), home / "secret dogs.pth")
    encoder = {"name": "test_resnet", "weights": str(home / "secret dogs.pth"), "weights_dir": str(home / "weights")}
    train(load_config(BASE, {"data": data, "encoder": encoder}), home / "run")
    return home / "run"


@pytest.fixture
def photo(run: Path) -> Path:
    return next((run.parent / "scenes" / "images").iterdir())


class Hub:
    """What ``HfApi`` does, in a folder."""

    def __init__(self, home: Path, public: bool | None = None) -> None:
        self.home, self.public, self.tokens, self.sent = home, public, [], []

    def __call__(self, token: str | None = None) -> Hub:
        self.tokens.append(token)
        return self

    def create_repo(self, name: str, private: bool, exist_ok: bool) -> str:
        self.sent.append((name, private))
        self.public = not private if self.public is None else self.public
        return f"https://hub/{name}"

    def repo_info(self, name: str) -> Any:
        return SimpleNamespace(private=not self.public)

    def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str, delete_patterns: list[str]) -> None:
        assert delete_patterns == [hub.EXAMPLES]
        shutil.copytree(folder_path, self.home / repo_id)


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The hub replaced by a folder, and nothing of that name where the test runs."""
    found = Hub(tmp_path / "hub")

    def fetch(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        place = tmp_path / "cache" / f"{name}@{revision}"
        place.mkdir(parents=True, exist_ok=True)
        for file in allow_patterns:
            if (found.home / name / file).is_file():
                shutil.copy(found.home / name / file, place)
        return str(place)

    monkeypatch.setattr(hub, "HfApi", found)
    monkeypatch.setattr(hub, "snapshot_download", fetch)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return found


def test_what_is_sent_holds_no_place_of_the_user_and_predicts_the_same(run: Path, there: Hub, photo: Path) -> None:
    segmenter = tagmask.load(run)
    assert segmenter.push_to_hub("me/dogs", token="t", license="mit") == "https://hub/me/dogs"
    assert there.tokens == ["t"] and there.sent == [("me/dogs", True)]
    sent = there.home / "me" / "dogs"
    assert sorted(p.name for p in sent.iterdir()) == ["README.md", "classes.json", "config.yaml", "weights.safetensors"]
    for path in sent.iterdir():
        content = path.read_bytes()
        assert not [word for word in (b"secret", b"scenes", b"train.txt", str(run.parent).encode()) if word in content]
    card = (sent / "README.md").read_text()
    for text in (card, (sent / "classes.json").read_text()):
        assert "a file (sha256 " in text
    assert "license: mit" in card and 'tagmask.load("me/dogs")' in card
    one, other = segmenter.predict(photo), tagmask.load("me/dogs@v1").predict(photo)
    assert np.array_equal(one.labels, other.labels) and (there.home.parent / "cache/me/dogs@v1").is_dir()


def test_pictures_are_sent_when_they_are_named(run: Path, there: Hub, photo: Path) -> None:
    tagmask.load(run).push_to_hub("me/dogs", private=False, pictures=[photo, photo])
    assert there.sent == [("me/dogs", False)] and hub.EXAMPLES in (there.home / "me/dogs/README.md").read_text()
    assert Image.open(there.home / "me/dogs" / hub.EXAMPLES).size == (800, 320)


@pytest.mark.parametrize("public", [True, False])
def test_a_repository_that_is_more_or_less_public_than_asked_is_refused(run: Path, there: Hub, public: bool) -> None:
    there.public = public
    with pytest.raises(DataError, match="me/dogs"):
        tagmask.load(run).push_to_hub("me/dogs", private=public)
    assert not there.home.exists()
    for name in ("dogs", "a/b/c", "me/dogs@v1", "../dogs"):
        with pytest.raises(DataError, match=re.escape(name)):
            tagmask.load(run).push_to_hub(name)


def test_the_verbs_push_and_predict(run: Path, there: Hub, photo: Path) -> None:
    assert "https://hub/me/dogs" in call("push", run, "me/dogs", "--public").output
    fetched = call("predict", "me/dogs", photo, "-o", "out").stderr
    assert re.search(r"me/dogs .*Hugging Face.* dogs@None\.", fetched)
    call("predict", run, photo, "-o", "own")
    assert Path(f"out/{photo.stem}.png").read_bytes() == Path(f"own/{photo.stem}.png").read_bytes()


def test_a_folder_wins_over_the_hub(run: Path, there: Hub) -> None:
    shutil.copytree(run / "model", "me/dogs")
    assert hub.local("me/dogs") == Path("me/dogs") and tagmask.load("me/dogs").classes


@pytest.mark.parametrize("name", ["./me", "/me/dogs", "me/dogs/model", "~/dogs", "dogs", "../dogs", "me\\dogs"])
def test_what_cannot_be_a_name_is_a_path(name: str, there: Hub) -> None:
    assert hub.local(name) == Path(name)


@pytest.mark.parametrize("name", ["runs/frist", "mine/frist", "afile/x"])
def test_of_a_mistyped_path_the_hub_is_not_asked(name: str, there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mine").mkdir()
    Path("afile").touch()
    monkeypatch.setattr(hub, "snapshot_download", None)
    with pytest.raises(DataError, match=f"{name}: .*no such folder"):
        tagmask.load(name)


def test_a_repository_without_a_model_is_refused(there: Hub) -> None:
    with pytest.raises(DataError, match=r"me/cats.*weights\.safetensors"):
        tagmask.load("me/cats")


def test_weights_from_a_file_are_not_named_by_its_path() -> None:
    own = {"name": "test_resnet", "weights": "/home/me/mine.pth", "weights_dir": "/home/me"}
    method = {"name": "crt", "cnn": own}
    bare = hub.without_places(load_config({"encoder": own, "method": method}))
    assert "home" not in bare.model_dump_json() and bare.encoder.weights == "auto"
    assert bare.method.cnn.name == bare.encoder.name == "test_resnet"  # type: ignore[attr-defined]


def _fill(part: Strict) -> None:
    """Put a place or a name of the user's into every field that could take one, at any depth."""
    for name, field in type(part).model_fields.items():
        inner = getattr(part, name)
        if isinstance(inner, Strict):
            _fill(inner)
        elif "Path" in str(field.annotation):
            part.__dict__[name] = Path("/home/marker")
        elif name in ("weights", "saliency") or isinstance(part, DataConfig) and field.annotation == str | None:
            part.__dict__[name] = "/home/marker"


@pytest.mark.parametrize("method", tagmask.list_methods())
def test_of_no_method_a_place_or_the_machine_is_sent(method: str) -> None:
    machine = {"accelerator": "gpu", "devices": 7, "nodes": 2, "workers": 77, "keep": 9}
    config = load_config({"method": {"name": method}, "train": {"lr": 0.007, **machine}, "label": {"threshold": 0.7}})
    learned = config.method.model_dump(exclude={"guide", "cnn"})
    _fill(config)
    bare = hub.without_places(config)
    assert "marker" in str(config) and "marker" not in bare.model_dump_json()
    assert {name: getattr(bare.train, name) for name in machine} == {
        name: getattr(TrainConfig(), name) for name in machine
    }
    assert bare.train.lr == 0.007 and bare.label.threshold == 0.7
    assert bare.method.model_dump(exclude={"guide", "cnn"}) == learned


@pytest.fixture
def server(run: Path) -> Iterator[str]:
    """An HTTP server with the model as me/dogs, as the hub's own client asks for it. Everything else is not found."""
    files = {path.name: path.read_bytes() for path in (run / "model").iterdir()} | {"notes.bin": b"not of the model"}

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            file = files.get(path.rpartition("/")[2]) if "/me/dogs/resolve/" in path else None
            if "/api/models/me/dogs/tree/" in path:
                entries = [{"type": "file", "path": n, "size": len(c), "oid": "0" * 40} for n, c in files.items()]
                file = json.dumps(entries).encode()
            elif path.startswith("/api/models/me/dogs"):
                file = json.dumps(
                    {"id": "me/dogs", "sha": "a" * 40, "siblings": [{"rfilename": name} for name in files]}
                ).encode()
            self.send_response(404 if file is None else 200)
            if file is None:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("X-Repo-Commit", "a" * 40)
            self.send_header("ETag", f'"{abs(hash(file)):x}"')
            self.send_header("Content-Length", str(len(file or b"")))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(file or b"")

        do_HEAD = do_GET

        def log_message(self, *args: Any) -> None:
            pass

    serving = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{serving.server_port}"
    yield address
    serving.shutdown()
    serving.server_close()


FRESH = """
import sys, tagmask
print(tagmask.load("me/dogs").predict(sys.argv[1]).labels.shape)
try:
    tagmask.load("me/cats")
except tagmask.errors.DataError as error:
    print(error)
"""


def test_the_hubs_own_client_fetches_only_a_models_files(server: str, photo: Path, tmp_path: Path) -> None:
    own = {"HF_ENDPOINT": server, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
    words = [sys.executable, "-c", FRESH, str(photo)]
    done = subprocess.run(words, cwd=tmp_path, env=os.environ | own, capture_output=True, text=True, check=True)
    shape, refused = done.stdout.splitlines()
    assert shape == "(64, 80)" and "me/cats" in refused and "RepositoryNotFoundError" in refused
    fetched = {path.name for path in (tmp_path / "cache").rglob("snapshots/*/*")}
    assert fetched == {"README.md", "classes.json", "config.yaml", "weights.safetensors"}


def test_without_a_connection_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="nobody/such-a-model"):
        tagmask.load("nobody/such-a-model")
