"""Registries: what a look-up finds, costs and says; components built from specs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from axon_core import ATTENTIONS, MODELS, NORMS, ROTARY_EMBEDDINGS, TRAINERS
from axon_core.errors import AmbiguousKey, ConfigError, ContractError, UnknownKey, UsageError
from axon_core.registry import suggest
from axon_core.registry.keys import key_of
from axon_core.registry.registry import Registry, refresh, registry_of
from axon_core.registry.spec import Spec
from axon_core.registry.suggest import KnownPaper, unknown_name

KITE = "from axon_toys import Toy\n\nclass Kite(Toy):\n    def play(self): return 1\n"


def message(error: pytest.ExceptionInfo[Exception]) -> str:
    return str(error.value)


def test_only_a_look_up_imports_a_plugin(site, toys: Registry) -> None:
    site.install("axon-kite", {"axon.v1.toy": {"kite": "axon_kite:Kite"}}, {"axon_kite.py": KITE})
    assert "kite" in toys
    assert "axon-kite:kite" in toys
    assert "yoyo" not in toys
    assert list(toys) == ["ball", "kite"]
    assert len(toys) == 2
    assert toys == toys and toys != {} and hash(toys) == hash(toys)
    assert [(e.key, e.distribution, e.version, e.target) for e in toys.entries()] == [
        ("ball", "axon-toys", "1.0", "axon_toys:Ball"),
        ("kite", "axon-kite", "1.0", "axon_kite:Kite"),
    ]
    assert repr(toys) == "<toy registry: ball, kite>"
    assert "axon_kite" not in sys.modules

    kite = toys["kite"]
    assert kite.__name__ == "Kite" and toys["kite"] is kite and toys["axon-kite:kite"] is kite
    assert dict(toys) == {"ball": toys["ball"], "kite": kite}
    assert toys.get("yoyo") is None


def test_the_core_registries_serve_the_interfaces() -> None:
    interfaces = [r.interface.__name__ for r in (ATTENTIONS, ROTARY_EMBEDDINGS, NORMS, MODELS, TRAINERS)]
    assert interfaces == ["Attention", "RotaryEmbedding", "Norm", "Model", "Trainer"]


@pytest.mark.parametrize("form", ["name", "qualified", "mapping", "spec", "class"])
def test_build_accepts_every_form_of_a_spec(toys: Registry, form: str) -> None:
    ball = toys["ball"]
    spec = {
        "name": "ball",
        "qualified": "Axon_Toys:ball",  # compared as package indexes compare names
        "mapping": {"type": "ball"},
        "spec": Spec(type="ball"),
        "class": ball,
    }[form]
    assert toys.build(spec, dim=2).play() == 6


def test_build_completes_the_options_and_injects_the_parts(toys: Registry) -> None:
    part = object()
    built = toys.build({"type": "ball", "bounces": 5}, dim=2, part=part)
    assert built.play() == 10
    assert built.part is part
    assert toys.config({"type": "ball", "bounces": 5}, dim=2, part=part) == built.config
    assert toys.build({"type": "ball", "dim": 2}, dim=2).config.dim == 2  # said twice, but the same


@pytest.mark.parametrize(
    ("spec", "given", "expected"),
    [
        ({"type": "ball", "dim": 4}, {"dim": 2}, "dim: is set to 2 by the user of this toy, got 4; leave it out"),
        ({"type": "ball", "bouncs": 4}, {"dim": 2}, "bouncs: unknown field 'bouncs' (did you mean 'bounces'?)"),
        ("ball", {"dim": "wide"}, "dim: must be a valid integer, unable to parse string as an integer, got 'wide'"),
        ("ball", {}, "dim: this field is required"),
        (3, {}, None),
    ],
)
def test_build_says_which_option_is_wrong(toys: Registry, spec: object, given: dict, expected: str | None) -> None:
    with pytest.raises(ConfigError) as error:
        toys.build(spec, **given)
    if expected:
        assert message(error) == expected


def test_build_says_which_keyword_a_component_does_not_know(toys: Registry) -> None:
    with pytest.raises(ContractError) as error:
        toys.build("ball", dim=2, colour="red")
    assert message(error) == (
        "the toy axon_toys.Ball got colour, which is neither a field of its Config (dim, bounces) nor a "
        "parameter of its constructor"
    )


def test_build_says_which_part_is_missing(site, toys: Registry) -> None:
    body = "def __init__(self, config, string): ...\n    def play(self): ..."
    source = KITE.replace("def play(self): return 1", body)
    site.install("axon-kite", {"axon.v1.toy": {"kite": "axon_kite:Kite"}}, {"axon_kite.py": source})
    with pytest.raises(ContractError, match=r"kite\.Kite cannot be built: missing a required argument: 'string'"):
        toys.build("kite", dim=2)


def test_schema_describes_the_options(toys: Registry) -> None:
    schema = toys.schema("ball")
    assert schema["required"] == ["dim"]
    assert schema["properties"]["bounces"]["default"] == 3
    assert schema["properties"]["bounces"]["description"] == "How often it bounces."


def test_two_distributions_may_claim_one_key(site, toys: Registry) -> None:
    files = {"axon_kite.py": KITE}
    site.install("axon-rival", {"axon.v1.toy": {"ball": "axon_kite:Kite"}}, files)
    assert list(toys) == ["axon-rival:ball", "axon-toys:ball"]
    assert len(toys) == 2
    assert "ball" in toys
    with pytest.raises(AmbiguousKey) as error:
        toys["ball"]
    assert message(error) == (
        "the toy 'ball' is offered by axon-rival 1.0 and axon-toys 1.0; choose one: 'axon-rival:ball' or "
        "'axon-toys:ball'"
    )
    assert toys["axon-rival:ball"].__name__ == "Kite"
    assert toys["axon-toys:ball"].__name__ == "Ball"
    assert key_of(toys["axon-toys:ball"]) == "axon-toys:ball"
    assert toys.build(toys["axon-toys:ball"], dim=1).play() == 3


def test_one_distribution_may_alias_a_class(site, toys: Registry) -> None:
    aliases = {"kite": "axon_kite:Kite", "dragon": "axon_kite:Kite"}
    site.install("axon-kite", {"axon.v1.toy": aliases}, {"axon_kite.py": KITE})
    assert toys["kite"] is toys["dragon"]
    assert key_of(toys["kite"]) == "dragon"  # the first in alphabetical order


class TestUnknownKey:
    def test_it_names_what_is_near_and_what_is_installed(self, toys: Registry) -> None:
        with pytest.raises(UnknownKey) as error:
            toys["Bal"]
        assert message(error) == "no toy 'Bal' is installed. Near it: 'ball'. Installed toys: ball (axon-toys 1.0)"
        assert isinstance(error.value, KeyError)

    def test_it_says_what_to_install(self, site, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AXON_PLUGINS", "axon-nothing")
        refresh()
        with pytest.raises(UnknownKey) as error:
            ROTARY_EMBEDDINGS["dynamic_"]
        assert message(error) == "no rotary embedding 'dynamic_' is installed. Installed rotary embeddings: none"
        later = KnownPaper("axon-later", "9901.00001", "What Comes Later", {"trainer": ["later"]})
        monkeypatch.setattr(suggest, "known_papers", lambda: (later,))
        with pytest.raises(UnknownKey, match=r"What Comes Later .* offers it: pip install axon-later"):
            TRAINERS["later"]

    def test_it_says_that_the_plugin_is_disabled(self, toys: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AXON_DISABLE_PLUGINS", "Axon_Toys")
        refresh()
        with pytest.raises(UnknownKey) as error:
            toys["ball"]
        assert message(error) == (
            "no toy 'ball' is installed. axon-toys offers it, but AXON_PLUGINS or AXON_DISABLE_PLUGINS disables that "
            "plugin. Installed toys: none"
        )


class TestRegister:
    def test_it_adds_a_class(self, toys: Registry) -> None:
        class Drum(toys.interface):
            def play(self) -> str:
                return "boom"

        with pytest.raises(ConfigError) as error:
            toys.build(Drum, dim=1)
        assert message(error) == (
            "tests.test_registry.TestRegister.test_it_adds_a_class.<locals>.Drum is in no registry; register it "
            "first, for example an attention with ATTENTIONS.register('Drum', Drum)"
        ).replace("tests.test_registry", Drum.__module__)
        toys.register("drum", Drum)
        assert list(toys) == ["ball", "drum"]
        assert toys.entry("drum").distribution == "(this session)"
        assert toys.build(Drum, dim=1).play() == "boom"
        refresh()
        assert toys["drum"] is Drum  # a new scan keeps it

    def test_a_definition_run_again_replaces_the_first(self, toys: Registry) -> None:
        def define() -> type:
            class Drum(toys.interface):
                def play(self) -> None: ...

            return Drum

        first, second = define(), define()
        toys.register("drum", first)
        toys.register("drum", second)
        assert toys["drum"] is second

    def test_it_decorates_a_class(self, toys: Registry) -> None:
        @toys.register("drum")
        class Drum(toys.interface):
            def play(self) -> str:
                return "boom"

        assert isinstance(Drum, type) and toys["drum"] is Drum
        assert toys.build("drum", dim=1).play() == "boom"
        with pytest.raises(ContractError, match="does not define play"):

            @toys.register("fife")
            class Fife(toys.interface): ...

        with pytest.raises(UsageError, match="already offered by axon-toys"):
            toys.register("ball")(Drum)

    def test_it_never_shadows(self, toys: Registry) -> None:
        class Drum(toys.interface):
            def play(self) -> None: ...

        with pytest.raises(UsageError) as error:
            toys.register("ball", Drum)
        assert message(error) == (
            "the toy 'ball' is already offered by axon-toys 1.0 (axon_toys:Ball); choose another key, or replace it "
            "temporarily with the context manager `override`"
        )
        assert toys["ball"].__name__ == "Ball"
        with pytest.raises(UsageError, match="a key must be a name without ':'"):
            toys.register("axon-toys:drum", Drum)

    def test_it_checks_the_contract(self, toys: Registry) -> None:
        class Drum(toys.interface): ...

        with pytest.raises(ContractError, match="does not define play"):
            toys.register("drum", Drum)
        assert "drum" not in toys


class TestOverride:
    def test_it_is_undone(self, toys: Registry) -> None:
        ball = toys["ball"]

        class Drum(ball):
            pass

        class Fife(ball):
            pass

        with toys.override(ball=Drum, drum=Drum):
            assert toys["ball"] is toys["drum"] is Drum
            assert key_of(Drum) == "ball"
            with toys.override(ball=Fife):
                assert toys["ball"] is Fife
            assert toys["ball"] is Drum
        assert toys["ball"] is ball
        assert "drum" not in toys

    def test_it_is_undone_after_an_error(self, toys: Registry) -> None:
        ball = toys["ball"]
        with pytest.raises(ZeroDivisionError), toys.override(ball=type("Drum", (ball,), {})):
            raise ZeroDivisionError
        assert toys["ball"] is ball


def test_key_of_finds_a_class_its_plugin_imported_by_itself(site, toys: Registry) -> None:
    site.install("axon-kite", {"axon.v1.toy": {"kite": "axon_kite:Kite"}}, {"axon_kite.py": KITE})
    from axon_kite import Kite

    assert key_of(Kite) == "kite"


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ("Kite = 3", "it is not a class but an object of type int"),
        ("class Kite: ...", "it is not a subclass of axon_toys.Toy; it has no nested class Config that derives from "
                            "axon_core.Config"),
        ("from axon_toys import Toy\nclass Kite(Toy): ...", "it does not define play"),
        ("from axon_toys import Ball\nclass Kite(Ball):\n    class Config: ...", "it has no nested class Config that "
                                                                                 "derives from axon_core.Config"),
    ],
)  # fmt: skip
def test_a_class_that_breaks_the_contract(site, toys: Registry, source: str, missing: str) -> None:
    site.install("axon-kite", {"axon.v1.toy": {"kite": "axon_kite:Kite"}}, {"axon_kite.py": source})
    with pytest.raises(ContractError) as error:
        toys["kite"]
    assert message(error) == (
        "the toy 'kite' of axon-kite 1.0 (axon_kite:Kite) does not keep the contract of its interface: " + missing
    )
    assert toys["ball"].__name__ == "Ball"


def test_a_plugin_installed_meanwhile_is_found_after_refresh(site, toys: Registry, tmp_path: Path) -> None:
    assert "kite" not in toys
    info = site.install("axon-kite", {"axon.v1.toy": {"kite": "axon_kite:Kite"}}, {"axon_kite.py": KITE})
    assert toys["kite"].__name__ == "Kite"
    info.rename(tmp_path / "elsewhere")
    assert "kite" in toys  # discovery ran once
    refresh()
    assert "kite" not in toys
    with pytest.raises(UnknownKey):
        toys["kite"]


def test_a_plugin_defines_a_registry(site, toys: Registry) -> None:
    assert registry_of("toy") is sys.modules["axon_toys"].TOYS
    wrong = "from axon_core.registry.registry import Registry\nGAMES = Registry('sport', object)"
    site.install("axon-games", {"axon.v1.registry": {"game": "axon_games:GAMES"}}, {"axon_games.py": wrong})
    with pytest.raises(ContractError) as error:
        registry_of("game")
    assert message(error) == (
        "axon_games:GAMES of axon-games 1.0 must be the Registry of group 'game', got <sport registry: empty>"
    )


def test_the_plural_of_what_is_installed():
    assert unknown_name("preference loss", "x", {}).endswith("Installed preference losses: none")
    assert unknown_name("norm", "x", {}).endswith("Installed norms: none")
