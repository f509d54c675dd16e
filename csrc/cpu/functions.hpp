// SPDX-License-Identifier: Apache-2.0
// functions.hpp - exp and sigmoid, over one vector or several side by side.
#pragma once

#include "side.hpp"

namespace seqkern {
namespace SEQKERN_ISA {
namespace {

// exp(x), at most 1.5 ulp from the truth; exp(-inf) = 0, NaN stays NaN, overflow gives inf.
template <class V>
SEQKERN_INLINE V exp(V x) {
  const V clamped = at_least(splat(-104.0f), at_most(splat(89.0f), x));
  const vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest integer
  const V n = fma(clamped, splat(1.44269504f), magic) - magic;
  V r = fnma(n, splat(0.693145751953125f), clamped);
  r = fnma(n, splat(1.42860677e-6f), r);
  // In pairs of terms: a shorter chain than one term after the other.
  const V r2 = r * r;
  const V high = fma(splat(1.9875691500e-4f), r, splat(1.3981999507e-3f));
  const V middle = fma(splat(8.3334519073e-3f), r, splat(4.1665795894e-2f));
  const V low = fma(splat(1.6666665459e-1f), r, splat(5.0000001201e-1f));
  const V p = fma(fma(fma(high, r2, middle), r2, low), r2, r) + 1.0f;
  return scale_by_power(p, n);
}

template <class V>
SEQKERN_INLINE V sigmoid(V x) {
  return 1.0f / (1.0f + exp(-x));
}

}  // namespace
}  // namespace SEQKERN_ISA
}  // namespace seqkern
