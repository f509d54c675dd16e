// SPDX-License-Identifier: Apache-2.0
// driver.cpp - compares every kernel of every instruction set that this CPU runs with its
// definition, without torch: for the sanitizers, and for other architectures under an emulator.
//
//   driver          all cases
//   driver quick    a sample of them, for emulators and for the test suite
#include <cstdio>

#include "../cpu/dispatch.hpp"
#include "checks.hpp"

namespace {

std::vector<std::string> runnable_isas() {
  std::vector<std::string> found;
  const std::string compiled = seqkern::compiled_isas();
  for (size_t begin = 0; begin < compiled.size();) {
    const size_t end = std::min(compiled.find(',', begin), compiled.size());
    const std::string isa = compiled.substr(begin, end - begin);
    if (seqkern::set_isa_cap(isa.c_str()))
      found.push_back(isa);
    else
      printf("%s: this CPU cannot run it\n", isa.c_str());
    begin = end + 1;
  }
  return found;
}

}  // namespace

int main(int count, char** arguments) {
  seqkern::test::Plan plan;
  for (int i = 1; i < count; ++i) {
    if (std::string(arguments[i]) != "quick") {
      fprintf(stderr, "usage: %s [quick]\n", arguments[0]);
      return 2;
    }
    plan.quick = true;
  }
  plan.isas = runnable_isas();
  int64_t passed = 0, failed = 0;
  for (auto* family :
       {&seqkern::test::test_linear_attention, &seqkern::test::test_causal_conv1d,
        &seqkern::test::test_rms_norm_gated, &seqkern::test::test_rnn, &seqkern::test::test_lssl,
        &seqkern::test::test_selective_scan, &seqkern::test::test_matmul}) {
    const seqkern::test::Report report = family(plan);
    report.print();
    passed += report.passed();
    failed += report.failed();
  }
  printf("%lld passed, %lld failed\n", static_cast<long long>(passed),
         static_cast<long long>(failed));
  return failed == 0 ? 0 : 1;
}
