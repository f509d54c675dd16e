# SPDX-License-Identifier: Apache-2.0
"""The library asks torch for C names only, so that one binary serves many torch versions."""

from pathlib import Path

import pytest
from _symbols import nm, torch_cxx_names

from seqkern._runtime import library


@pytest.fixture(scope="module")
def built() -> Path:
    path = Path(library.path())
    if not path.is_file():
        pytest.skip(f"{path.name} is not built")
    return path


@pytest.fixture(scope="module")
def undefined(built) -> list[str]:
    return [name for _, name in nm(built, "-D", "--undefined-only")]


def test_no_path_of_the_machine_that_built_it(built):
    content = built.read_bytes()
    assert b"csrc/bind/" in content, "the messages name no source: is it the right file?"
    assert str(Path(__file__).resolve().parents[2]).encode() not in content


def test_no_mangled_torch_name(undefined):
    assert torch_cxx_names(undefined) == []


def test_what_it_takes_from_torch_is_the_stable_c_interface(undefined):
    of_torch = [name for name in undefined if "torch" in name.lower()]
    assert of_torch, "the library takes nothing from torch: is it the right file?"
    assert [n for n in of_torch if not n.startswith(("aoti_torch_", "torch_"))] == []


def test_no_python_symbol(undefined):
    assert [n for n in undefined if n.startswith(("Py", "_Py"))] == []


def test_the_filter_knows_torch_names():
    bad = [
        "c10::Error::Error(c10::SourceLocation, std::string)",
        "at::_ops::empty_memory_format::call(c10::ArrayRef<c10::SymInt>)",
        "torch::autograd::Node::name() const",
        "typeinfo for c10::Error",
        "std::vector<at::Tensor, std::allocator<at::Tensor> >::reserve(unsigned long)",
    ]
    good = ["std::vector<int, std::allocator<int> >::at(unsigned long)", "aoti_torch_get_dim"]
    assert torch_cxx_names(bad + good) == bad
