// SPDX-License-Identifier: Apache-2.0
// rows.hpp - rows of float32, bfloat16 or float16 in memory, to and from float32.
//
// Precision  to float32: exact. From float32: round to nearest, ties to even; NaN stays NaN.
#pragma once

#include "../include/seqkern/types.h"
#include "functions.hpp"

namespace seqkern {
namespace SEQKERN_ISA {
namespace {

SEQKERN_INLINE vf from_bf16(vh x) {
  return reinterpret_cast<vf>(__builtin_convertvector(x, vu) << 16);
}

SEQKERN_INLINE vh to_bf16(vf x) {
#if defined(SEQKERN_BF16_DOT)
  return reinterpret_cast<vh>(_mm512_cvtneps_pbh(x));  // subnormal numbers become 0
#else
  const vu bits = reinterpret_cast<vu>(x);
  const vu rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const vu nan = (bits >> 16) | 0x40u;
  return __builtin_convertvector(x != x ? nan : rounded, vh);
#endif
}

SEQKERN_INLINE float f16_bits_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t rest = h & 0x7fffu;
  float magnitude;
  if (rest >= 0x7c00u) {
    const uint32_t bits = 0x7f800000u | ((rest & 0x3ffu) << 13);
    memcpy(&magnitude, &bits, 4);
  } else if (rest >= 0x400u) {
    const uint32_t bits = (rest << 13) + (112u << 23);
    memcpy(&magnitude, &bits, 4);
  } else {
    magnitude = static_cast<float>(rest) * 5.9604644775390625e-8f;  // 2^-24
  }
  uint32_t out;
  memcpy(&out, &magnitude, 4);
  out |= sign;
  memcpy(&magnitude, &out, 4);
  return magnitude;
}

SEQKERN_INLINE uint16_t float_to_f16_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (bits >= 0x47800000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65536 and above: inf
  if (bits < 0x38800000u) {
    // Below the smallest normal half: adding 0.5 lets the hardware round at 2^-24.
    float magnitude;
    memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    memcpy(&bits, &magnitude, 4);
    return static_cast<uint16_t>(sign | (bits - 0x3f000000u));
  }
  const uint32_t rounded = bits - (112u << 23) + 0xfffu + ((bits >> 13) & 1u);
  return static_cast<uint16_t>(sign | (rounded >> 13));
}

SEQKERN_INLINE vf from_f16(vh x) {
#if SEQKERN_LANES == 16
  return _mm512_cvtph_ps(reinterpret_cast<__m256i>(x));
#elif SEQKERN_LANES == 8
  return _mm256_cvtph_ps(reinterpret_cast<__m128i>(x));
#else
  vf y;
  for (int i = 0; i < W; ++i) y[i] = f16_bits_to_float(x[i]);
  return y;
#endif
}

SEQKERN_INLINE vh to_f16(vf x) {
#if SEQKERN_LANES == 16
  return reinterpret_cast<vh>(_mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
#elif SEQKERN_LANES == 8
  return reinterpret_cast<vh>(_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
#else
  vh y;
  for (int i = 0; i < W; ++i) y[i] = float_to_f16_bits(x[i]);
  return y;
#endif
}

template <DType D>
SEQKERN_INLINE vf load_as(const void* base, int64_t i) {
  if constexpr (D == DType::kF32) {
    return load(static_cast<const float*>(base) + i);
  } else {
    const vh x = *reinterpret_cast<const vh_unaligned*>(static_cast<const uint16_t*>(base) + i);
    return D == DType::kBF16 ? from_bf16(x) : from_f16(x);
  }
}

template <DType D>
SEQKERN_INLINE void store_as(void* base, int64_t i, vf x) {
  if constexpr (D == DType::kF32) {
    store(static_cast<float*>(base) + i, x);
  } else {
    vh_unaligned* p = reinterpret_cast<vh_unaligned*>(static_cast<uint16_t*>(base) + i);
    *p = D == DType::kBF16 ? to_bf16(x) : to_f16(x);
  }
}

// Copies `count` <= W values of kBytes bytes: powers of two at a time, for which nothing is called.
template <int kBytes>
SEQKERN_INLINE void copy_some(void* to, const void* from, int64_t count) {
  int64_t at = 0;
#pragma GCC unroll 8
  for (int64_t n = W; n > 0; n /= 2)
    if ((count & n) != 0) {
      memcpy(static_cast<char*>(to) + at, static_cast<const char*>(from) + at, n * kBytes);
      at += n * kBytes;
    }
}

#if SEQKERN_LANES == 16
SEQKERN_INLINE __mmask16 first_of(int64_t count) {
  return static_cast<__mmask16>((1u << count) - 1);
}
#elif SEQKERN_LANES == 8
SEQKERN_INLINE __m256i first_of(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
#endif

// The `count` <= W values from i on; the other lanes are 0. Reads nothing beyond them.
template <DType D>
SEQKERN_INLINE vf load_some(const void* base, int64_t i, int64_t count) {
  constexpr int kBytes = D == DType::kF32 ? 4 : 2;
  const unsigned char* const from = static_cast<const unsigned char*>(base) + i * kBytes;
#if SEQKERN_LANES == 16
  if constexpr (D == DType::kF32) return _mm512_maskz_loadu_ps(first_of(count), from);
  const vh x = reinterpret_cast<vh>(_mm256_maskz_loadu_epi16(first_of(count), from));
  return D == DType::kBF16 ? from_bf16(x) : from_f16(x);
#else
#if SEQKERN_LANES == 8
  if constexpr (D == DType::kF32)
    return _mm256_maskload_ps(reinterpret_cast<const float*>(from), first_of(count));
#endif
  alignas(64) unsigned char tail[4 * W] = {};
  copy_some<kBytes>(tail, from, count);
  return load_as<D>(tail, 0);
#endif
}

template <DType D>
SEQKERN_INLINE void store_some(void* base, int64_t i, int64_t count, vf x) {
  constexpr int kBytes = D == DType::kF32 ? 4 : 2;
  unsigned char* const to = static_cast<unsigned char*>(base) + i * kBytes;
#if SEQKERN_LANES == 16
  if constexpr (D == DType::kF32) return _mm512_mask_storeu_ps(to, first_of(count), x);
  const vh half = D == DType::kBF16 ? to_bf16(x) : to_f16(x);
  _mm256_mask_storeu_epi16(to, first_of(count), reinterpret_cast<__m256i>(half));
#else
  alignas(64) unsigned char tail[4 * W];
  store_as<D>(tail, 0, x);
  copy_some<kBytes>(to, tail, count);
#endif
}

template <DType D>
inline void load_row_as(const void* base, int64_t at, int64_t width, int64_t padded, float* row) {
  int64_t i = 0;
  for (; i + W <= width; i += W) store(row + i, load_as<D>(base, at + i));
  if (i < width) {
    store(row + i, load_some<D>(base, at + i, width - i));
    i += W;
  }
  for (; i < padded; i += W) store(row + i, vf{});
}

template <DType D>
inline void store_row_as(void* base, int64_t at, int64_t width, const float* row) {
  int64_t i = 0;
  for (; i + W <= width; i += W) store_as<D>(base, at + i, load(row + i));
  if (i < width) store_some<D>(base, at + i, width - i, load(row + i));
}

// row[0, width) = base[at ...) as float32, row[width, padded) = 0; padded is a multiple of W.
inline void load_row(DType d, const void* base, int64_t at, int64_t width, int64_t padded,
                     float* row) {
  if (d == DType::kF32) return load_row_as<DType::kF32>(base, at, width, padded, row);
  if (d == DType::kBF16) return load_row_as<DType::kBF16>(base, at, width, padded, row);
  load_row_as<DType::kF16>(base, at, width, padded, row);
}

inline void store_row(DType d, void* base, int64_t at, int64_t width, const float* row) {
  if (d == DType::kF32) return store_row_as<DType::kF32>(base, at, width, row);
  if (d == DType::kBF16) return store_row_as<DType::kBF16>(base, at, width, row);
  store_row_as<DType::kF16>(base, at, width, row);
}

SEQKERN_INLINE float load_one(DType d, const void* base, int64_t i) {
  if (d == DType::kF32) return static_cast<const float*>(base)[i];
  const uint16_t bits = static_cast<const uint16_t*>(base)[i];
  if (d == DType::kF16) return f16_bits_to_float(bits);
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float x;
  memcpy(&x, &wide, 4);
  return x;
}

// Sums of `group` consecutive rows, in their order, stored as `dtype` from element `at` of `to` on.
inline void sum_groups(const float* from, DType dtype, void* to, int64_t at, int64_t rows,
                       int64_t group, int64_t width) {
  for (int64_t i = 0; i < rows; ++i, at += width, from += group * width)
    for (int64_t x = 0; x < width; x += W) {
      const int64_t count = width - x < W ? width - x : W;
      alignas(64) float out[W];
      vf total = vf{};
      for (int64_t j = 0; j < group; ++j)
        total += load_some<DType::kF32>(from, j * width + x, count);
      store(out, total);
      store_row(dtype, to, at + x, count, out);
    }
}

}  // namespace
}  // namespace SEQKERN_ISA
}  // namespace seqkern
