// SPDX-License-Identifier: Apache-2.0
// checks.hpp - what the kernel tests share: random numbers, tensors that end where their heap block
// ends, and comparisons whose tolerance follows from the arithmetic.
//
// Tolerance  Every definition is computed twice, in double (the truth) and in float. A kernel may
// be
//            off by twice the largest error of the float definition, plus 64 roundings of the
//            largest term (four for each token of a chunk, whose contributions it adds up before
//            they cancel), plus half a unit in the last place of the type it stores.
#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "../cpu/dispatch.hpp"
#include "../include/seqkern/types.h"

namespace seqkern::test {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15ull + 1) {}
  uint64_t bits() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_ * 0x2545f4914f6cdd1dull >> 11;
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(bits() % static_cast<uint64_t>(n)); }
  bool coin() { return below(2) == 1; }
  double uniform() { return static_cast<double>(bits() & 0xffffffffu) / 4294967296.0; }  // [0, 1)
  // Mean 0, variance 1, bounded.
  double normal() { return (uniform() + uniform() + uniform() + uniform() - 2.0) * 1.7320508; }
  template <class T>
  const T& pick(const std::vector<T>& from) {
    return from[static_cast<size_t>(below(static_cast<int64_t>(from.size())))];
  }

 private:
  uint64_t state_;
};

constexpr double kUnit = 1.0 / (1 << 24);  // one rounding of a float, relative
constexpr double kRoundings = 64.0;

// Values of a 16-bit type, by the definition of the type and not by the kernels' bit tricks.
inline int mantissa_bits(DType d) { return d == DType::kF32 ? 23 : (d == DType::kBF16 ? 7 : 10); }
inline int lowest_exponent(DType d) { return d == DType::kF16 ? -14 : -126; }
inline int64_t size_of(DType d) { return d == DType::kF32 ? 4 : 2; }

// Half a unit in the last place of `d` at x.
inline double half_ulp(DType d, double x) {
  const int exponent = x == 0.0 ? lowest_exponent(d) : std::ilogb(x);
  return std::ldexp(0.5, std::max(exponent, lowest_exponent(d)) - mantissa_bits(d));
}

double decode(DType d, const void* at);
void encode(DType d, void* at, double x);

enum class Layout { kDense, kPadded, kHeadFirst };

// A [batch, time, head, width] tensor. Its heap block has not one byte more than it needs, so that
// AddressSanitizer sees an access beyond it. A padded one starts off every alignment and has gaps
// between its rows that no kernel may write to. Starts filled with NaN.
class Tensor {
 public:
  Tensor() = default;
  Tensor(DType dtype, Layout layout, int64_t B, int64_t T, int64_t H, int64_t D);

  View view() const;
  double at(int64_t b, int64_t t, int64_t h, int64_t d) const;
  void set(int64_t b, int64_t t, int64_t h, int64_t d, double x);
  // [B, T, H, D] dense.
  std::vector<double> values() const;
  bool gaps_untouched() const;
  float* floats() const { return reinterpret_cast<float*>(bytes_.get()); }
  DType dtype() const { return dtype_; }
  int64_t B = 0, T = 0, H = 0, D = 0;

 private:
  int64_t offset(int64_t b, int64_t t, int64_t h, int64_t d) const {
    return first_ + b * batch_stride_ + t * time_stride_ + h * head_stride_ + d;
  }
  DType dtype_ = DType::kF32;
  int64_t first_ = 0, batch_stride_ = 0, time_stride_ = 0, head_stride_ = 0, size_ = 0;
  std::unique_ptr<unsigned char[]> bytes_;
};

// A dense float32 tensor; the usual form of states and workspaces.
inline Tensor dense(int64_t B, int64_t T, int64_t H, int64_t D) {
  return Tensor(DType::kF32, Layout::kDense, B, T, H, D);
}

// Fills x with what make() returns, rounded to its type.
template <class Make>
void fill(Tensor& x, const Make& make) {
  for (int64_t b = 0; b < x.B; ++b)
    for (int64_t t = 0; t < x.T; ++t)
      for (int64_t h = 0; h < x.H; ++h)
        for (int64_t d = 0; d < x.D; ++d) x.set(b, t, h, d, make());
}

// What one thread lends to a kernel: 64-byte aligned, of exactly `bytes` bytes, filled with NaN.
class Scratch {
 public:
  explicit Scratch(int64_t bytes);
  ~Scratch() { free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  void* data() const { return data_; }

 private:
  void* data_ = nullptr;
};

// The truth about one tensor: the definition in double and in float, [B, T, H, D] dense.
// `terms` is the largest term that the tensor's values were summed from, where that is more than
// the largest value.
struct Expected {
  std::vector<double> exact;
  std::vector<float> rough;
  double terms = 0.0;
};

// Counts, per instruction set, of one family.
struct Tally {
  std::string isa;
  int64_t passed = 0, failed = 0;
};

class Report {
 public:
  Report(std::string family, std::vector<std::string> isas);
  void begin(size_t isa, std::string name) {
    isa_ = isa;
    case_ = std::move(name);
  }
  void check(bool ok, const std::string& what);
  void compare(const std::string& what, const Tensor& got, const Expected& want);
  // One line per instruction set.
  void print() const;
  int64_t passed() const;
  int64_t failed() const;

 private:
  std::string family_, case_;
  std::vector<Tally> tallies_;
  size_t isa_ = 0;
};

struct Plan {
  std::vector<std::string> isas;
  bool quick = false;
};

// Runs one case under every instruction set of the plan.
template <class Check>
void on_every_isa(const Plan& plan, Report& report, const std::string& name, const Check& check) {
  for (size_t i = 0; i < plan.isas.size(); ++i) {
    set_isa_cap(plan.isas[i].c_str());
    report.begin(i, name);
    check();
  }
  set_isa_cap("");
}

Report test_linear_attention(const Plan& plan);
Report test_lssl(const Plan& plan);
Report test_matmul(const Plan& plan);
Report test_causal_conv1d(const Plan& plan);
Report test_rms_norm_gated(const Plan& plan);
Report test_rnn(const Plan& plan);
Report test_selective_scan(const Plan& plan);

}  // namespace seqkern::test
