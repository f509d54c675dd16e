// SPDX-License-Identifier: Apache-2.0
// Ops that tell about the library itself, and its memory.
#include <string>

#include "../cpu/dispatch.hpp"
#include "tensors.hpp"

namespace seqkern::bind {
namespace {

// "in use;best found;compiled,..."
std::string cpu_info() {
  return std::string(kernels().isa) + ";" + best_kernels().isa + ";" + compiled_isas();
}

std::string set_cap(std::string name) {
  STD_TORCH_CHECK(set_isa_cap(name.c_str()), "seqkern: instruction set \"", name,
                  "\" is not compiled in, or this CPU cannot run it; compiled are ",
                  compiled_isas());
  return kernels().isa;
}

double peak(std::string kind, double seconds) {
  const KernelTable& table = kernels();
  if (kind == "f32") return table.fma_peak(seconds);
  STD_TORCH_CHECK(kind == "bf16", "seqkern: kind must be \"f32\" or \"bf16\", got \"", kind, "\"");
  return table.bf16_dot_peak != nullptr ? table.bf16_dot_peak(seconds) : 0.0;
}

// An uninitialised matrix of the dtype of `like` from the pool, for products that others compute.
Tensor empty_matrix(const Tensor& like, int64_t rows, int64_t columns) {
  return new_empty({rows, columns}, like.scalar_type());
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(seqkern, m) {
  m.def("cpu_info() -> str");
  m.def("set_isa_cap(str name) -> str");
  m.def("fma_peak(str kind, float seconds) -> float");
  m.def("empty_matrix(Tensor like, int rows, int columns) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(seqkern, CompositeExplicitAutograd, m) {
  m.impl("cpu_info", TORCH_BOX(&cpu_info));
  m.impl("set_isa_cap", TORCH_BOX(&set_cap));
  m.impl("fma_peak", TORCH_BOX(&peak));
}

STABLE_TORCH_LIBRARY_IMPL(seqkern, CPU, m) { m.impl("empty_matrix", TORCH_BOX(&empty_matrix)); }

}  // namespace seqkern::bind
