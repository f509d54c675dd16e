// SPDX-License-Identifier: Apache-2.0
// module.cpp - constrint._core: the search engine as Python sees it.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "search.hpp"

namespace py = pybind11;
using constrint::Engine;
using constrint::Wide;

namespace {

py::int_ to_python(Wide v) {
  if (v >= INT64_MIN && v <= INT64_MAX) return py::int_(int64_t(v));
  const py::int_ high{int64_t(v >> 64)}, low{uint64_t(v)};
  return py::int_((high << py::int_(64)) + low);
}

py::list to_python(const std::vector<Wide>& values) {
  py::list found;
  for (Wide v : values) found.append(to_python(v));
  return found;
}

py::list best(const Engine& engine) {
  py::list found;
  for (const auto& [value, numbers] : engine.best()) {
    found.append(py::make_tuple(to_python(value), to_python(numbers)));
  }
  return found;
}

std::unique_ptr<Engine> engine(const py::bytes& data, int width, size_t keep, bool counting,
                               bool restarts) {
  char* begin;
  Py_ssize_t bytes;
  if (PyBytes_AsStringAndSize(data.ptr(), &begin, &bytes) != 0) throw py::error_already_set();
  try {
    return constrint::make_engine(begin, size_t(bytes), width, keep, counting, restarts);
  } catch (const constrint::Overflow&) {
    throw std::overflow_error("the program needs wider numbers");
  }
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "Search engine of constrint; use constrint.Model.";
  py::class_<Engine>(m, "Engine")
      .def("run", &Engine::run, py::call_guard<py::gil_scoped_release>())
      .def("solution", [](const Engine& e) { return to_python(e.solution()); })
      .def("bound", [](const Engine& e) { return to_python(e.bound()); })
      .def_property_readonly("best", &best)
      .def_readonly("nodes", &Engine::nodes)
      .def_readonly("propagations", &Engine::propagations)
      .def_readonly("failures", &Engine::failures)
      .def_readonly("solutions", &Engine::solutions);
  m.def("engine", &engine);
}
