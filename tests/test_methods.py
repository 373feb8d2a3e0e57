"""Finding methods by name."""

import importlib.metadata

import numpy as np
import pytest

from jaxreg import methods
from jaxreg.methods import find_method, method_names


@pytest.fixture
def plug_in(monkeypatch):
    point = importlib.metadata.EntryPoint("mine", "jaxreg.methods:constant", methods.GROUP)
    broken = importlib.metadata.EntryPoint("broken", "no_such_module:f", methods.GROUP)

    def entry_points(group, name=None):
        assert group == methods.GROUP
        return [p for p in (point, broken) if name in (None, p.name)]

    monkeypatch.setattr(methods.importlib.metadata, "entry_points", entry_points)
    methods._plug_ins.cache_clear()
    yield
    methods._plug_ins.cache_clear()


def test_constant_answers_nothing_moved():
    images = np.random.default_rng(0).uniform(0, 255, (2, 16, 16, 3)).astype(np.float32)
    answer = find_method("constant")(images, images)
    np.testing.assert_array_equal(answer.transform.as_array(), np.zeros((2, 3)))
    np.testing.assert_allclose(answer.score, 1, atol=1e-5)


def test_plug_ins_and_functions(plug_in):
    assert find_method("mine") is methods.constant
    assert find_method("jaxreg.methods:constant") is methods.constant
    assert {"mine", "direct", "constant"} <= set(method_names())


def test_a_network_of_the_package_is_a_method_by_its_own_name():
    assert find_method("compact32").__self__.config.image_size == 32


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("constnt", r"unknown method 'constnt', did you mean constant\? There are .*direct"),
        ("zzz", r"unknown method 'zzz'\. There are .*jaxreg.load's networks, and module:function"),
        ("no_such_module:f", "cannot be loaded: No module named 'no_such_module'"),
        ("jaxreg.methods:nothing", "cannot be loaded: .*has no attribute 'nothing'"),
        ("jaxreg.methods:GROUP", "is a str, not a function"),
        ("broken", "'broken' cannot be loaded: No module named"),
    ],
)
def test_unknown_methods_are_named(plug_in, name, message):
    with pytest.raises(ValueError, match=message):
        find_method(name)


@pytest.mark.parametrize("code", ["def f(:", "1 / 0", "raise RuntimeError('no licence')"])
def test_a_module_that_fails_is_told_with_its_error(monkeypatch, tmp_path, code):
    (tmp_path / "of_a_user.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    error = {"d": "SyntaxError: invalid syntax", "1": "ZeroDivisionError", "r": ".*no licence"}
    with pytest.raises(ValueError, match=f"cannot be loaded: {error[code[0]]}"):
        find_method("of_a_user:f")


def test_a_trained_network_is_read_once_until_it_changes(monkeypatch, tmp_path):
    reads = []

    class Network:
        def __init__(self, folder):
            reads.append(folder)

        def estimate(self, fixed, moving):
            raise NotImplementedError

    monkeypatch.setattr("jaxreg.training.loading.load", Network)
    first = find_method(str(tmp_path))
    assert find_method(str(tmp_path)) == first
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    assert find_method(str(tmp_path)) != first
    assert len(reads) == 2


def test_checkpoints_may_vanish_while_they_are_looked_at(monkeypatch, tmp_path):
    """A training drops its oldest one."""
    monkeypatch.setattr(methods.glob, "glob", lambda pattern: [str(tmp_path / "dropped")])
    assert methods._last_change(str(tmp_path)) == tmp_path.stat().st_mtime_ns


def test_a_folder_that_is_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="no usable trained network"):
        find_method(str(tmp_path))
