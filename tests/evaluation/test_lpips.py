"""LPIPS against its formula written out once more, and its weights from every file and address they come from."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from tastemaker.evaluation import lpips

ALEXNET, HEADS = (source.name for source in lpips.SOURCES)
CONVOLUTIONS = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    """Random weights by torchvision's and lpips' names; AlexNet's last layers are there too, as in the real file."""
    draws = torch.Generator().manual_seed(3)
    found = {"classifier.1.weight": torch.zeros(2, 2), "classifier.1.bias": torch.zeros(2)}
    for place, (n, m, k) in CONVOLUTIONS.items():
        found[f"features.{place}.weight"] = torch.randn(n, m, k, k, generator=draws) * (2 / (m * k * k)) ** 0.5
        found[f"features.{place}.bias"] = torch.randn(n, generator=draws) * 0.1
    for layer, (n, _, _) in enumerate(CONVOLUTIONS.values()):
        head = torch.rand(1, n, 1, 1, generator=draws)
        found[f"lin{layer}.model.1.weight"] = head * (head > 0.3)
    return found


@pytest.fixture
def two_files(state: State, tmp_path: Path) -> Path:
    folder = tmp_path / "two files"
    folder.mkdir()
    torch.save({name: value for name, value in state.items() if not name.startswith("lin")}, folder / ALEXNET)
    torch.save({name: value for name, value in state.items() if name.startswith("lin")}, folder / HEADS)
    return folder


@pytest.fixture
def net(two_files: Path) -> lpips.LPIPS:
    return lpips.load(two_files)


def pictures(n: int, *size: int, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(seed))


def written_out(state: State, a: Tensor, b: Tensor) -> float:
    """The paper's formula for two pictures [3,H,W] in [0,1], in fp64."""
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])

    def layers(picture: Tensor) -> list[Tensor]:
        x = ((picture.double() * 2 - 1).permute(1, 2, 0) - shift.double()) / scale.double()
        x, found = x.permute(2, 0, 1)[None], []
        for place, stride, padding in ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1)):
            x = F.max_pool2d(x, 3, 2) if place in (3, 6) else x
            weight, bias = (state[f"features.{place}.{part}"].double() for part in ("weight", "bias"))
            x = F.conv2d(x, weight, bias, stride, padding).clamp(min=0)
            found.append(x[0])
        return found

    total = 0.0
    for layer, (y, z) in enumerate(zip(layers(a), layers(b), strict=True)):
        w = state[f"lin{layer}.model.1.weight"].double().flatten()
        height, width = y.shape[1:]
        for row in range(height):
            for column in range(width):
                u, v = y[:, row, column], z[:, row, column]
                u, v = u / (u.norm() + 1e-10), v / (v.norm() + 1e-10)
                total += float((w * (u - v) ** 2).sum()) / (height * width)
    return total


def test_it_is_the_papers_formula(net: lpips.LPIPS, state: State) -> None:
    a, b = pictures(3, 33, 47), pictures(3, 33, 47, seed=1)
    b[2] = a[2] * 0.9
    want = [written_out(state, x, y) for x, y in zip(a, b, strict=True)]
    assert min(want) > 1e-3 and max(want) > 4 * min(want)
    assert net(a, b).tolist() == pytest.approx(want, rel=0, abs=1e-6)
    assert (net.vectors(a) - net.vectors(b)).square().sum(1).tolist() == pytest.approx(want, rel=0, abs=1e-6)


def test_a_distance_is_symmetric_and_0_for_the_same_picture(net: lpips.LPIPS) -> None:
    a, b = pictures(2, 40, 40), pictures(2, 40, 40, seed=1)
    assert net(a, a).tolist() == [0, 0]
    assert torch.equal(net(a, b), net(b, a)) and (net(a, b) > 0.01).all()
    assert net(a, b).dtype is torch.float32 and net.vectors(a.half()).dtype is torch.float32


def test_places_where_nothing_fires_are_alike(net: lpips.LPIPS, state: State) -> None:
    """All channels 0 have no direction: they are 0 after division too, never NaN."""
    for layer in net.features:
        if isinstance(layer, torch.nn.Conv2d):
            layer.bias = torch.nn.Parameter(torch.full_like(layer.bias, -1e4), requires_grad=False)
    assert net(pictures(2, 40, 40), pictures(2, 40, 40, seed=1)).tolist() == [0, 0]


def test_a_gradient_goes_to_the_pictures_and_not_to_the_weights(net: lpips.LPIPS) -> None:
    a = pictures(1, 40, 40).requires_grad_()
    net(a, pictures(1, 40, 40, seed=1)).sum().backward()
    assert a.grad is not None and a.grad.isfinite().all() and a.grad.abs().max() > 0
    assert not net.training and all(p.grad is None and not p.requires_grad for p in net.parameters())


def test_the_smallest_picture(net: lpips.LPIPS) -> None:
    assert net.vectors(pictures(1, 31, 64)).isfinite().all()
    with pytest.raises(ValueError, match=r"\[30, 64\]: 31 pixels or more"):
        net.vectors(pictures(1, 30, 64))


# ---- files


def same(net: lpips.LPIPS, state: State) -> bool:
    return all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def renamed(state: State, prefix: str) -> State:
    """The state dict of a whole LPIPS module of the lpips package, or of torchmetrics (with a prefix)."""
    found = {f"{prefix}scaling_layer.shift": torch.zeros(1, 3, 1, 1)}
    for name, value in state.items():
        part, place, rest = name.split(".", 2)
        if part == "features":
            found[f"{prefix}net.slice{list(CONVOLUTIONS).index(int(place)) + 1}.{place}.{rest}"] = value
        elif part != "classifier":
            found[f"{prefix}{name}"] = found[f"{prefix}lins.{part[3:]}.model.1.weight"] = value
    return found


def test_two_files_of_a_folder_are_read_by_their_published_names(two_files: Path, state: State) -> None:
    torch.save({}, two_files / "another.pth")
    random = torch.get_rng_state()
    assert same(lpips.load(two_files), state) and same(lpips.load(str(two_files)), state)
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("prefix", ["", "net."])
@pytest.mark.parametrize("name", ["all.pth", "all.safetensors"])
def test_one_file_with_all_of_it(state: State, tmp_path: Path, prefix: str, name: str) -> None:
    whole = {key: value.clone() for key, value in renamed(state, prefix).items()}
    (save_file if name.endswith("safetensors") else torch.save)(whole, tmp_path / name)
    assert same(lpips.load(tmp_path / name), state) and same(lpips.load(tmp_path), state)


def test_half_precision_weights_and_files_of_other_names(state: State, tmp_path: Path) -> None:
    """Two files are two files; what is computed with is fp32."""
    torch.save({name: value.half() for name, value in state.items() if name.startswith("lin")}, tmp_path / "a.pt")
    save_file({name: value for name, value in state.items() if not name.startswith("lin")}, tmp_path / "b.safetensors")
    net = lpips.load(tmp_path)
    assert {value.dtype for value in net.state_dict().values()} == {torch.float32}
    assert torch.equal(net.heads[1], state["lin1.model.1.weight"].half().float())


def broken(state: State, name: str, value: Tensor | None) -> State:
    found = {key: kept for key, kept in state.items() if key != name}
    return found if value is None else {**found, name: value}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("features.3.bias", None, "holds no features.3.bias"),
        ("lin4.model.1.weight", None, "holds no lin4.model.1.weight"),
        ("lin1.model.1.weight", torch.ones(1, 128, 1, 1), r"lin1.model.1.weight in .*all.pth is \[1, 128, 1, 1\]"),
        ("features.10.bias", torch.ones(2), r"needed is \[256\]. Needed is one file with all"),
        ("lin0.model.1.weight", -torch.ones(1, 64, 1, 1), "negative in a head"),
        ("features.0.bias", torch.full((64,), torch.nan), r"features.0.bias in .*\(NaN"),
    ],
)
def test_wrong_weights_are_told(state: State, tmp_path: Path, name: str, value: Tensor | None, message: str) -> None:
    torch.save(broken(state, name, value), tmp_path / "all.pth")
    with pytest.raises(ValueError, match=message) as told:
        lpips.load(tmp_path / "all.pth")
    assert str(told.value).startswith("--lpips_weights: ") and "all.pth" in str(told.value)


class Trap:
    """Would run on unpickling."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('code from a file was run')",)


def test_files_that_are_no_weights_are_told(state: State, tmp_path: Path) -> None:
    for held in (b"", b"no weights", b"PK\x03\x04"):
        for name in ("x.pth", "x.safetensors"):
            (tmp_path / name).write_bytes(held)
            with pytest.raises(ValueError, match=f"{name} is no weights file: ."):
                lpips.load(tmp_path / name)
    torch.save({"features.0.weight": Trap()}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="is no weights file"):
        lpips.load(tmp_path / "x.pth")
    torch.save({"state_dict": state}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="something other than named tensors"):
        lpips.load(tmp_path / "x.pth")


def test_folders_that_hold_something_else_are_told(two_files: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"no file or folder .*nowhere. Needed .* {ALEXNET} and {HEADS}"):
        lpips.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no weights"):
        lpips.load(tmp_path / "empty")
    (two_files / HEADS).rename(two_files / "1.pth")
    for name in ("2.pth", "3.bin"):
        torch.save({}, two_files / name)
    with pytest.raises(ValueError, match=f"holds 1.pth, 2.pth, 3.bin, {ALEXNET}"):
        lpips.load(two_files)


# ---- addresses


class Site:
    """A server on this machine: path -> what it answers, and what was asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.stall = threading.Event()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append(self.path)
                body = site.files.get(self.path)
                if body is None:
                    self.send_error(404, "Not here")
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                half = body[: len(body) // 2]
                self.wfile.write(half if "half" in self.path else body)
                if "stall" in self.path:
                    site.stall.wait(10)

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self) -> None:
        self.stall.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def publishes(self, path: str, body: bytes, name: str, sha256: str = "") -> lpips.Source:
        self.files[path] = body
        url = f"http://127.0.0.1:{self.server.server_port}{path}"
        return lpips.Source(name, url, sha256 or hashlib.sha256(body).hexdigest())


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Site]:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch home"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(lpips, "_TIMEOUT", 0.5)
    made = Site()
    yield made
    made.close()


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    return tmp_path / "torch home" / "hub" / "checkpoints"


class Told:
    """A progress that is written down."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def begin(self, what: str, total: int) -> None:
        self.lines.append(f"{what}: {total}")

    def advance(self, count: int, note: str = "") -> None:
        self.lines.append(str(count))


def test_published_weights_are_downloaded_once(
    site: Site, hub: Path, two_files: Path, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies = {name: (two_files / name).read_bytes() for name in (ALEXNET, HEADS)}
    monkeypatch.setattr(lpips, "SOURCES", tuple(site.publishes(f"/{n}", b, n) for n, b in bodies.items()))
    told = Told()
    assert same(lpips.published(told), state)
    assert site.asked == [f"/{HEADS}", f"/{ALEXNET}"]  # the small one first
    assert told.lines[0].startswith(f"downloading {HEADS} (MB): ") and told.lines.count("1") == len(told.lines) - 2
    assert {file.name: file.read_bytes() for file in hub.iterdir()} == bodies
    assert same(lpips.published(), state) and len(site.asked) == 2  # what is there needs no network


def test_half_of_the_pair_is_not_downloaded_again(
    site: Site, hub: Path, two_files: Path, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies = {name: (two_files / name).read_bytes() for name in (ALEXNET, HEADS)}
    monkeypatch.setattr(lpips, "SOURCES", tuple(site.publishes(f"/{n}", b, n) for n, b in bodies.items()))
    hub.mkdir(parents=True)
    (two_files / ALEXNET).rename(hub / ALEXNET)
    assert same(lpips.published(), state) and site.asked == [f"/{HEADS}"]


@pytest.mark.parametrize(
    ("path", "sha256", "why"),
    [
        ("/gone", "", "HTTP Error 404: Not here"),
        ("/other", "0" * 64, f"its sha256 is [0-9a-f]{{64}}, not {'0' * 64}"),
        ("/half", "", "its sha256 is|IncompleteRead|timed out"),
        ("/half-stall", "", "timed out"),
    ],
)
def test_what_comes_broken_is_not_kept(
    site: Site, hub: Path, monkeypatch: pytest.MonkeyPatch, path: str, sha256: str, why: str
) -> None:
    sources = [site.publishes(path, b"weights", name, sha256) for name in (ALEXNET, HEADS)]
    if path == "/gone":
        site.files.clear()
    monkeypatch.setattr(lpips, "SOURCES", tuple(sources))
    with pytest.raises(ValueError, match=f"http://127.0.0.1:[0-9]+{path} could not be downloaded: .*({why})"):
        lpips.published()
    assert len(site.asked) == 1 and list(hub.iterdir()) == []


def test_without_network_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    dead = lpips.Source(HEADS, "http://127.0.0.1:9/alex.pth", "")
    monkeypatch.setattr(lpips, "SOURCES", (lpips.SOURCES[0]._replace(url=dead.url), dead))
    with pytest.raises(ValueError, match="alex.pth could not be downloaded: .*refused"):
        lpips.published()


def test_the_published_files_are_what_they_are_called() -> None:
    """The torch hub's names carry the first digits of the sha256."""
    alexnet, heads = lpips.SOURCES
    assert alexnet.name == f"alexnet-owt-{alexnet.sha256[:8]}.pth"
    assert all(source.url.endswith("/" + source.name) and source.url.startswith("https://") for source in lpips.SOURCES)
    assert len(alexnet.sha256) == len(heads.sha256) == 64
