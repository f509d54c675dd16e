// SPDX-License-Identifier: Apache-2.0
#include "checks.hpp"

#include <cstdio>
#include <limits>

namespace seqkern::test {

double decode(DType d, const void* at) {
  if (d == DType::kF32) {
    float x;
    memcpy(&x, at, sizeof x);
    return x;
  }
  uint16_t bits;
  memcpy(&bits, at, sizeof bits);
  const int fraction = mantissa_bits(d), exponents = 15 - fraction;
  const int mantissa = bits & ((1 << fraction) - 1);
  const int exponent = (bits >> fraction) & ((1 << exponents) - 1);
  double x;
  if (exponent == (1 << exponents) - 1)
    x = mantissa == 0 ? std::numeric_limits<double>::infinity()
                      : std::numeric_limits<double>::quiet_NaN();
  else if (exponent == 0)
    x = std::ldexp(mantissa, lowest_exponent(d) - fraction);
  else
    x = std::ldexp(mantissa + (1 << fraction), lowest_exponent(d) + exponent - 1 - fraction);
  return (bits >> 15) != 0 ? -x : x;
}

void encode(DType d, void* at, double x) {
  if (d == DType::kF32) {
    const float y = static_cast<float>(x);
    memcpy(at, &y, sizeof y);
    return;
  }
  const int fraction = mantissa_bits(d);
  const int sign = std::signbit(x) ? 1 << 15 : 0, special = (1 << 15) - (1 << fraction);
  int bits;
  if (std::isnan(x)) {
    bits = special | (1 << (fraction - 1));
  } else if (std::isinf(x)) {
    bits = sign | special;
  } else {
    // nearbyint rounds ties to even; a mantissa that rounds up carries into the exponent.
    const int exponent =
        x == 0.0 ? lowest_exponent(d) : std::max(std::ilogb(x), lowest_exponent(d));
    const int whole =
        static_cast<int>(std::nearbyint(std::ldexp(std::fabs(x), fraction - exponent)));
    bits = sign | std::min(whole + ((exponent - lowest_exponent(d)) << fraction), special);
  }
  const uint16_t narrow = static_cast<uint16_t>(bits);
  memcpy(at, &narrow, sizeof narrow);
}

Tensor::Tensor(DType dtype, Layout layout, int64_t B, int64_t T, int64_t H, int64_t D)
    : B(B), T(T), H(H), D(D), dtype_(dtype) {
  const int64_t gap = layout == Layout::kDense ? 0 : 3;
  const bool head_first = layout == Layout::kHeadFirst;
  first_ = layout == Layout::kPadded ? 1 : 0;
  const int64_t row = D + gap;
  time_stride_ = head_first ? row : H * row + gap;
  head_stride_ = head_first ? T * row + gap : row;
  batch_stride_ = head_first ? H * head_stride_ + gap : T * time_stride_ + gap;
  const bool empty = B == 0 || T == 0 || H == 0 || D == 0;
  size_ = empty ? 0 : offset(B - 1, T - 1, H - 1, D - 1) + 1;
  bytes_.reset(new unsigned char[static_cast<size_t>(size_ * size_of(dtype))]);
  memset(bytes_.get(), 0xff, static_cast<size_t>(size_ * size_of(dtype)));
}

View Tensor::view() const {
  return {bytes_.get() + first_ * size_of(dtype_) * (size_ > 0), dtype_, batch_stride_,
          time_stride_, head_stride_};
}

double Tensor::at(int64_t b, int64_t t, int64_t h, int64_t d) const {
  return decode(dtype_, bytes_.get() + offset(b, t, h, d) * size_of(dtype_));
}

void Tensor::set(int64_t b, int64_t t, int64_t h, int64_t d, double x) {
  encode(dtype_, bytes_.get() + offset(b, t, h, d) * size_of(dtype_), x);
}

std::vector<double> Tensor::values() const {
  std::vector<double> all;
  all.reserve(static_cast<size_t>(B * T * H * D));
  for (int64_t b = 0; b < B; ++b)
    for (int64_t t = 0; t < T; ++t)
      for (int64_t h = 0; h < H; ++h)
        for (int64_t d = 0; d < D; ++d) all.push_back(at(b, t, h, d));
  return all;
}

bool Tensor::gaps_untouched() const {
  std::vector<bool> gap(static_cast<size_t>(size_), true);
  for (int64_t b = 0; b < B; ++b)
    for (int64_t t = 0; t < T; ++t)
      for (int64_t h = 0; h < H; ++h)
        for (int64_t d = 0; d < D; ++d) gap[static_cast<size_t>(offset(b, t, h, d))] = false;
  for (int64_t i = 0; i < size_; ++i)
    for (int64_t byte = 0; gap[static_cast<size_t>(i)] && byte < size_of(dtype_); ++byte)
      if (bytes_[static_cast<size_t>(i * size_of(dtype_) + byte)] != 0xff) return false;
  return true;
}

Scratch::Scratch(int64_t bytes) {
  if (posix_memalign(&data_, 64, static_cast<size_t>(bytes)) != 0) abort();
  memset(data_, 0xff, static_cast<size_t>(bytes));
}

Report::Report(std::string family, std::vector<std::string> isas) : family_(std::move(family)) {
  for (std::string& isa : isas) tallies_.push_back({std::move(isa)});
}

void Report::check(bool ok, const std::string& what) {
  constexpr int64_t kShown = 20;  // failures named per family and instruction set
  Tally& tally = tallies_[isa_];
  ++(ok ? tally.passed : tally.failed);
  if (!ok && tally.failed <= kShown)
    printf("FAILED %s %s: %s: %s\n", family_.c_str(), tally.isa.c_str(), case_.c_str(),
           what.c_str());
}

void Report::compare(const std::string& what, const Tensor& got, const Expected& want) {
  const std::vector<double> values = got.values();
  if (values.size() != want.exact.size() || values.size() != want.rough.size())
    return check(false, what + ": the definition has another size");
  double largest = want.terms, rough = 0.0;
  for (size_t i = 0; i < values.size(); ++i) {
    largest = std::max(largest, std::fabs(want.exact[i]));
    rough = std::max(rough, std::fabs(static_cast<double>(want.rough[i]) - want.exact[i]));
  }
  // Kernels flush subnormal numbers to zero, so nothing is told below the smallest normal one.
  const double base =
      2.0 * rough + kRoundings * kUnit * largest + kRoundings * std::numeric_limits<float>::min();
  for (size_t i = 0; i < values.size(); ++i) {
    const double off = std::fabs(values[i] - want.exact[i]);
    const double allowed = base + half_ulp(got.dtype(), std::fabs(want.exact[i]) + base);
    if (off <= allowed) continue;
    char text[200];
    snprintf(text, sizeof text, "%s[%zu of %zu] is %.9g, not %.9g; off by %.2g, allowed %.2g",
             what.c_str(), i, values.size(), values[i], want.exact[i], off, allowed);
    return check(false, text);
  }
  check(got.gaps_untouched(), what + ": written between its rows");
}

void Report::print() const {
  for (const Tally& tally : tallies_)
    printf("%-18s %-12s %6lld passed, %lld failed\n", family_.c_str(), tally.isa.c_str(),
           static_cast<long long>(tally.passed), static_cast<long long>(tally.failed));
  fflush(stdout);
}

int64_t Report::passed() const {
  int64_t sum = 0;
  for (const Tally& tally : tallies_) sum += tally.passed;
  return sum;
}

int64_t Report::failed() const {
  int64_t sum = 0;
  for (const Tally& tally : tallies_) sum += tally.failed;
  return sum;
}

}  // namespace seqkern::test
