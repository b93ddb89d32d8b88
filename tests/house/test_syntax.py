"""Rules that are read from the syntax trees of all modules; below each, a source that breaks it."""

from __future__ import annotations

import pytest

from house.syntax import (
    Source,
    autocasts,
    literal,
    named,
    source,
    sources,
    table_names,
    too_long,
    unsafe,
    yields_under_with,
)
from tastemaker.policy.families import NETWORKS

# Generators whose caller trains: a context that stays entered would be the caller's.
GENERATORS = ("algorithms", "iteration", "rollout", "training", "world")
# Pretraining is a program of its own without weight sets; autocast there cannot outlive an exchange.
PRETRAINING = ("shapes.pretrain", "shapes.flow_training")


def table(module: str, name: str) -> dict[str, str]:
    return literal(next(one for one in sources() if one.name == module), name)


def is_package(one: Source) -> bool:
    """Package files may name what they hold."""
    return one.name == "__init__" or any(other.name.startswith(f"{one.name}.") for other in sources())


def test_no_file_over_300_lines_and_no_function_over_40() -> None:
    assert [wrong for one in sources() for wrong in too_long(one)] == []


def test_no_generator_yields_under_a_with() -> None:
    assert [wrong for one in sources() if one.top in GENERATORS for wrong in yields_under_with(one)] == []


def test_autocast_is_entered_in_predict_alone() -> None:
    assert [wrong for one in sources() if one.name not in PRETRAINING for wrong in autocasts(one)] == []


def test_a_familys_name_stands_in_policy_alone() -> None:
    families = table_names(table("policy.families", "FAMILIES"))
    assert "StableDiffusionPipeline" in families
    # shapes makes a pipeline of a family; nothing of training passes through it.
    others = [one for one in sources() if one.top not in ("policy", "shapes", "compat") and not is_package(one)]
    assert [wrong for one in others for wrong in named(one, families)] == []


def test_a_pipelines_and_a_networks_name_stand_in_one_module_and_the_table_alone() -> None:
    """So a family is added with its module and lines of the table."""
    homes = {name: {entry.partition(":")[0]} for name, entry in table("policy.families", "FAMILIES").items()}
    homes |= {name: {one.example.partition(":")[0]} for name, one in NETWORKS.items()}
    inside = [one for one in sources() if one.top == "policy" and one.name != "policy.families"]
    for name, home in homes.items():
        assert {f"tastemaker.{one.name}" for one in inside if named(one, {name})} <= home, name


def test_an_algorithms_name_stands_in_algorithms_alone() -> None:
    algorithms = table_names(table("algorithms", "TABLE"))
    assert {"ddpo", "DDPO"} <= algorithms
    others = [one for one in sources() if one.top not in ("algorithms", "compat") and not is_package(one)]
    assert [wrong for one in others for wrong in named(one, algorithms)] == []


def test_nothing_runs_code_from_data() -> None:
    assert [wrong for one in sources() for wrong in unsafe(one)] == []


# ---- each rule finds what breaks it


def test_length_is_found() -> None:
    body = "\n".join(["    x = 1"] * 40)
    assert too_long(source("m", f"def f():\n{body}\n")) == ["m:1: f has 41 lines; at most 40"]
    assert too_long(source("m", f"class C:\n    def f(self):\n{body.replace('    x', '        x')}\n")) != []
    assert too_long(source("m", f"def f():\n{body[:-10]}\n")) == []
    assert too_long(source("m", "x = 1\n" * 301)) == ["m: 301 lines; at most 300"]
    assert too_long(source("m", "x = 1\n" * 300)) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("def f():\n    with a:\n        yield 1", 1),
        ("def f():\n    with a:\n        for x in y:\n            if x:\n                yield from x", 1),
        ("def f():\n    with a:\n        x = 1\n    yield x", 0),
        ("def f():\n    with a:\n        def g():\n            yield 1", 0),
        ("with a:\n    def f():\n        with b:\n            yield 1", 1),
        ("@contextmanager\ndef f():\n    with a:\n        yield", 0),
        ("@other\ndef f():\n    with a:\n        z = yield", 1),
        ("async def f():\n    async with a:\n        yield 1", 1),
    ],
)
def test_a_yield_under_with_is_found(text: str, found: int) -> None:
    assert len(yields_under_with(source("m", text))) == found


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("policy.x", "class P:\n    def predict(self):\n        with torch.autocast('cpu'):\n            pass", 0),
        (
            "policy.x",
            "def predict(self):\n    self.net()\ndef net(self):\n    with torch.autocast('cpu'):\n        pass",
            0,
        ),
        (
            "policy.x",
            "def predict(self):\n    self.net()\ndef net(self):\n    half()\ndef half():\n    torch.autocast('cpu')",
            0,
        ),
        (
            "policy.x",
            "def decode(self):\n    self.net()\ndef net(self):\n    half()\ndef half():\n    torch.autocast('cpu')",
            1,
        ),
        (
            "policy.x",
            "def decode(self):\n    self.net()\ndef net(self):\n    with torch.autocast('cpu'):\n        pass",
            1,
        ),
        ("policy.x", "def net(self):\n    with torch.autocast('cpu'):\n        pass", 1),
        ("policy.x", "def decode():\n    with torch.autocast('cpu'):\n        pass", 1),
        ("training.x", "def predict():\n    with torch.autocast('cpu'):\n        pass", 1),
        ("rollout", "from torch import autocast\ncontext = autocast", 1),
        ("rollout", "def f(accelerator):\n    return accelerator.autocast()", 1),
        ("rollout", "'autocast is entered elsewhere'", 0),
    ],
)
def test_autocast_elsewhere_is_found(name: str, text: str, found: int) -> None:
    assert len(autocasts(source(name, text))) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("if name == 'ddpo':\n    pass", True),
        ("from tastemaker.algorithms.ddpo import X", True),
        ("from tastemaker.algorithms.x import DDPO as Y", True),
        ("from a import b as DDPO", True),
        ("import a.ddpo", True),
        ("def ddpo():\n    pass", True),
        ("class DDPO:\n    pass", True),
        ("def f(ddpo):\n    pass", True),
        ("f(ddpo=1)", True),
        ("x.ddpo", True),
        ("t = {'ddpo': 1}", True),
        ("match x:\n    case 'ddpo':\n        pass", True),
        ("'ddpo'", False),
        ("class C:\n    x: int = 1\n    'DDPO'", False),
        ("print('try ddpo next')", False),
        ("ddpo_rate = 1", False),
    ],
)
def test_a_name_is_found(text: str, found: bool) -> None:
    assert bool(named(source("m", text), {"ddpo", "DDPO"})) == found


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "def f():\n    from cloudpickle import loads",
        "import torch\ntorch.load('x')",
        "torch.load('x', weights_only=False)",
        "torch.load('x', weights_only=flag)",
        "m.from_pretrained('x', trust_remote_code=True)",
        "m.from_pretrained('x', trust_remote_code=flag)",
        "np.load('x', allow_pickle=True)",
        "yaml.load(text, yaml.Loader)",
        "yaml.unsafe_load(text)",
        "eval('1')",
    ],
)
def test_code_from_data_is_found(text: str) -> None:
    assert unsafe(source("m", text)) != []


@pytest.mark.parametrize(
    "text",
    [
        "torch.load('x', weights_only=True)",
        "m.eval()",
        "yaml.load(text, yaml.SafeLoader)",
        "np.load('x')",
        "import json",
    ],
)
def test_what_is_safe_passes(text: str) -> None:
    assert unsafe(source("m", text)) == []


def test_a_table_is_read_without_running_its_module() -> None:
    module = source("m", "1 / 0\nTABLE: dict[str, str] = {'a': 'x.y:Z'}")
    assert table_names(literal(module, "TABLE")) == {"a", "y", "Z"}
