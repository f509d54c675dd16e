// SPDX-License-Identifier: Apache-2.0
// linear_attention_chunk.hpp - what forward and backward of linear attention share about one chunk:
// its rows, its decays and its scores.
//
// Maths      a_i = exp(g_i);  P_i = prod_{l <= i} a_l;  R_j = prod_{l > j} a_l;
//            D_ij = prod_{j < l <= i} a_l for j <= i, else 0         (i, j: tokens of the chunk)
//            A_rj = scale (q_r . k_j) D_{pos r, j}     pos r: the last key that query r sees
//            G_ij = (k_i . k_j) D_ij, j < i
//            With a vector gate every decay is a vector over K and sits inside the dot product.
// Precision  Decays are products of factors a <= 1. There is no sum of logarithms whose large terms
//            would cost the later ones their digits, no quotient, and nothing that overflows: a
//            reset (a = 0) is exact, and so is everything after it.
// Layout     rows: [16][padded width]; columns ("T"): [padded width][16], one lane per token.
//            Scores are kept as [j][r]: the tile's A operand with the row index contiguous.
#pragma once

#include "rows.hpp"
#include "tile.hpp"

namespace seqkern {
namespace SEQKERN_ISA {
namespace {

// to[i] = the sum over the lanes of x[i].
SEQKERN_INLINE void sum_all(vf (&x)[C], float* to) {
#pragma GCC unroll 4
  for (int i = 0; i < C; i += W) {
    vf group[W];
#pragma GCC unroll 16
    for (int j = 0; j < W; ++j) group[j] = x[i + j];
    store(to + i, sum_each(group));
  }
}

// Which tokens of which sequence this chunk holds.
struct Chunk {
  int64_t i_b;      // index along the batch dimension
  int64_t k_at;     // first virtual token, counted from the start of the batch row
  int64_t q_at;     // first real token whose read-out falls into the chunk
  int n, nq;        // virtual tokens; read-outs
  int pos[C];       // the key that a read-out comes after
  int64_t g_at[C];  // the real token whose gate acts before virtual token i, or -1
};

struct Sequence {
  int64_t i_b, start, length;  // in real tokens
};

SEQKERN_INLINE Sequence sequence_of(const LinearAttention& p, int64_t i_n) {
  if (p.cu_seqlens == nullptr) return {i_n, 0, p.T};
  return {0, p.cu_seqlens[i_n], p.cu_seqlens[i_n + 1] - p.cu_seqlens[i_n]};
}

// Virtual tokens of the chunk that begins at `at`. Inside one, errors are relative to the state at
// its start. The delta rule shrinks a state along one key per token, so K tokens may shrink it in
// every direction: chunks longer than K would lose the digits of what is left. Chunks never cross a
// multiple of C, where the checkpoints are.
inline int64_t chunk_length(const LinearAttention& p, int64_t at) {
  int64_t length = C;
  while (p.beta_kind != Beta::kNone && length > p.K) length /= 2;
  const int64_t room = C - at % C;
  return length < room ? length : room;
}

// The same loss happens with nearly parallel keys, which shrink a state along one direction again
// and again: chunks of such keys are cut to kShortChunk.
constexpr int kShortChunk = 4;

// `at`: first virtual token of the chunk, counted from the start of the sequence.
inline Chunk chunk_of(const LinearAttention& p, const Sequence& s, int64_t at, int64_t length) {
  const int64_t nh = p.num_householder, total = s.length * nh;
  Chunk c;
  c.i_b = s.i_b;
  c.k_at = s.start * nh + at;
  c.n = static_cast<int>(total - at < length ? total - at : length);
  const int64_t first = at / nh, end = (at + c.n) / nh;
  c.q_at = s.start + first;
  c.nq = static_cast<int>(end - first);
  for (int r = 0; r < C; ++r)
    c.pos[r] = r < c.nq ? static_cast<int>((first + r + 1) * nh - 1 - at) : C - 1;
  for (int i = 0; i < C; ++i)
    c.g_at[i] = i < c.n && (at + i) % nh == 0 ? s.start + (at + i) / nh : -1;
  return c;
}

// How many keys the read-outs [r, r + rows) see: the others have score 0.
SEQKERN_INLINE int keys_seen(const Chunk& c, int r, int rows) {
  const int last = r + rows < c.nq ? r + rows : c.nq;
  return c.pos[last - 1] + 1;
}

// The first read-out that sees key i.
SEQKERN_INLINE int first_seeing(const Chunk& c, int i) {
  int r = 0;
  while (r < c.nq && c.pos[r] < i) ++r;
  return r;
}

// Rows [at, at + n) of one head, as float32, into [16][padded]; missing rows are 0.
inline void load_rows(const View& x, int64_t i_b, int64_t at, int64_t i_h, int n, int64_t width,
                      int64_t padded, float* rows) {
  const int64_t base = i_b * x.batch_stride + at * x.time_stride + i_h * x.head_stride;
  for (int i = 0; i < n; ++i)
    load_row(x.dtype, x.data, base + i * x.time_stride, width, padded, rows + i * padded);
  if (n < C) memset(rows + n * padded, 0, (C - n) * padded * sizeof(float));
}

// Columns [first, first + count) of the same rows, into [16][count]; those from `width` on are 0.
inline void load_columns(View x, int64_t i_b, int64_t at, int64_t i_h, int n, int64_t first,
                         int64_t width, int64_t count, float* rows) {
  const int64_t rest = width - first, bytes = x.dtype == DType::kF32 ? 4 : 2;
  x.data = static_cast<char*>(x.data) + first * bytes;
  load_rows(x, i_b, at, i_h, n, rest < 0 ? 0 : (rest < count ? rest : count), count, rows);
}

inline void store_rows(const View& x, int64_t i_b, int64_t at, int64_t i_h, int n, int64_t width,
                       int64_t padded, const float* rows) {
  const int64_t base = i_b * x.batch_stride + at * x.time_stride + i_h * x.head_stride;
  for (int i = 0; i < n; ++i)
    store_row(x.dtype, x.data, base + i * x.time_stride, width, rows + i * padded);
}

// e of the delta rule, [batch, T n, HV, V].
SEQKERN_INLINE View residual_of(const LinearAttention& p) {
  const int64_t row = p.HV * p.V;
  return {p.residual, DType::kF32, p.T * p.num_householder * row, row, p.V};
}

// The rows that the next chunk will touch. They are asked for one by one between the tiles of this
// chunk: rows of one head lie far apart, where the hardware does not look ahead, and all at once
// they would fill the miss buffers and stall the tiles.
class Prefetch {
 public:
  // Rows [at, at + C) of one head, those before `begin` or from `end` on left out.
  void add(const View& x, int64_t i_b, int64_t at, int64_t begin, int64_t end, int64_t i_h,
           int64_t width) {
    const int64_t size = x.dtype == DType::kF32 ? 4 : 2;
    const int64_t base = i_b * x.batch_stride + i_h * x.head_stride;
    const int64_t first = at < begin ? begin : at, last = at + C < end ? at + C : end;
    for (int64_t row = first; row < last; ++row) {
      rows_[count_] = static_cast<const char*>(x.data) + (base + row * x.time_stride) * size;
      bytes_[count_++] = width * size;
    }
  }
  void clear() { count_ = done_ = 0; }
  // Says that step() will be called `parts` times for all rows.
  void spread(int64_t parts) { share_ = (count_ + parts - 1) / parts; }
  SEQKERN_INLINE_MEMBER void step() {
    for (int64_t goal = done_ + share_; done_ < goal && done_ < count_; ++done_)
      for (int64_t byte = 0; byte < bytes_[done_]; byte += 64)
        __builtin_prefetch(rows_[done_] + byte, 0, 2);
  }

 private:
  const char* rows_[10 * C];
  int64_t bytes_[10 * C];
  int64_t count_ = 0, done_ = 0, share_ = 0;
};

SEQKERN_INLINE float dot(const float* a, const float* b, int64_t padded) {
  vf acc = vf{};
  for (int64_t i = 0; i < padded; i += W) acc = fma(load(a + i), load(b + i), acc);
  return sum(acc);
}

// rows <- rows / sqrt(sum rows^2 + 1e-6); rstd [16] is kept for the way back.
inline void normalize_rows(float* rows, int n, int64_t padded, float* rstd) {
  for (int i = 0; i < n; ++i) {
    float* row = rows + i * padded;
    const float r = rsqrt_exact(dot(row, row, padded) + 1e-6f);
    rstd[i] = r;
    for (int64_t j = 0; j < padded; j += W) store(row + j, load(row + j) * r);
  }
}

// d - y along, rounded once also where there is no fused multiply-add: in a narrow row nearly all
// of d cancels.
SEQKERN_INLINE vf without_part(vf d, vf y, double along) {
#if SEQKERN_LANES == 4 && !defined(__aarch64__)
  typedef double vd __attribute__((vector_size(8 * W)));
  const vd rest = __builtin_convertvector(d, vd) - __builtin_convertvector(y, vd) * along;
  return __builtin_convertvector(rest, vf);
#else
  return fnma(y, splat(static_cast<float>(along)), d);
#endif
}

// d <- rstd (d - y (y . d)), with y the normalised row.
inline void normalize_rows_backward(float* d, const float* y, const float* rstd, int n,
                                    int64_t padded) {
  for (int i = 0; i < n; ++i) {
    float* di = d + i * padded;
    const float* yi = y + i * padded;
    const float along = dot(di, yi, padded), r = rstd[i];
    for (int64_t j = 0; j < padded; j += W)
      store(di + j, without_part(load(di + j), load(yi + j), along) * r);
  }
}

// to[i] = k_i . k_i, or k_i . k_0.
template <bool kSquares>
inline void key_products(const float* k, int64_t padded, float* to) {
  vf acc[C];
#pragma GCC unroll 16
  for (int i = 0; i < C; ++i) acc[i] = vf{};
  for (int64_t x = 0; x < padded; x += W) {
    const vf first = load(k + x);
#pragma GCC unroll 16
    for (int i = 0; i < C; ++i) {
      const vf ki = load(k + i * padded + x);
      acc[i] = fma(ki, kSquares ? ki : first, acc[i]);
    }
  }
  sum_all(acc, to);
}

// Whether the cosines between the first key of a chunk and the others are 0.9 on average, up to
// sign.
inline bool nearly_parallel(const float* k, int n, int64_t padded) {
  float along[C], squares[C], cosines = 0.0f;
  key_products<false>(k, padded, along);
  key_products<true>(k, padded, squares);
  for (int i = 1; i < n; ++i) {
    const float square = squares[i] * squares[0];
    cosines += square > 0.0f ? __builtin_fabsf(along[i]) / __builtin_sqrtf(square) : 0.0f;
  }
  return cosines > 0.9f * static_cast<float>(n - 1);
}

// Cuts a chunk of nearly parallel keys short; its rows of k are there already.
inline void shorten_if_parallel(const LinearAttention& p, const Sequence& s, int64_t padded,
                                float* k, Chunk& c) {
  if (c.n <= kShortChunk || !nearly_parallel(k, c.n, padded)) return;
  c = chunk_of(p, s, c.k_at - s.start * p.num_householder, kShortChunk);
  memset(k + c.n * padded, 0, (C - c.n) * padded * sizeof(float));
}

// kTriangle[t][i] = 1 for i >= t, else 0.
struct Triangle {
  alignas(64) float x[C][C];
  constexpr Triangle() : x() {
    for (int t = 0; t < C; ++t)
      for (int i = 0; i < C; ++i) x[t][i] = i >= t ? 1.0f : 0.0f;
  }
};
constexpr Triangle kTriangle;

// Decays of a chunk with one gate per head (or none: all ones).
struct ScalarDecay {
  alignas(64) float a[C], P[C], R[C];  // by key
  alignas(64) float Pq[C];             // P at pos r
  alignas(64) float D[C][C];           // [j][i] = D_ij
  alignas(64) float Dq[C][C];          // [j][r] = D_{pos r, j}
  float total;                         // P of the whole chunk
};

inline void scalar_decay(const LinearAttention& p, const Chunk& c, int64_t i_h, ScalarDecay& d) {
  for (int i = 0; i < C; ++i) {
    const bool acts = p.gate == Gate::kScalar && c.g_at[i] >= 0;
    d.a[i] = acts ? load_one(p.g.dtype, p.g.data,
                             c.i_b * p.g.batch_stride + c.g_at[i] * p.g.time_stride +
                                 i_h * p.g.head_stride)
                  : 0.0f;
  }
  for (int i = 0; i < C; i += W) store(d.a + i, exp(load(d.a + i)));
  float running = 1.0f;
  for (int i = 0; i < C; ++i) d.P[i] = running *= d.a[i];
  d.total = running;
  running = 1.0f;
  for (int j = C - 1; j >= 0; --j) {
    d.R[j] = running;
    running *= d.a[j];
  }
  for (int j = C - 1; j >= 0; --j) {
    const float next = j + 1 < C ? d.a[j + 1] : 0.0f;
    for (int i = 0; i < C; i += W)
      store(d.D[j] + i, j + 1 < C ? load(d.D[j + 1] + i) * next : vf{});
    d.D[j][j] = 1.0f;
  }
  if (p.num_householder == 1) {
    memcpy(d.Dq, d.D, sizeof d.D);
    memcpy(d.Pq, d.P, sizeof d.P);
    return;
  }
  for (int r = 0; r < C; ++r) d.Pq[r] = d.P[c.pos[r]];
  for (int j = 0; j < C; ++j)
    for (int r = 0; r < C; ++r) d.Dq[j][r] = d.D[j][c.pos[r]];
}

// out[j][r] = factor (sum_k left[k][j] right[k][r]) mask[j][r], all 16 x 16; left has 16 columns,
// right is the first 16 of ld_right. With `raw`, the sums alone go there.
template <class Step = MultiplyAdd>
inline void masked_scores(const float* left, const float* right, int64_t ld_right, int64_t depth,
                          float factor, const float (*mask)[C], float (*out)[C],
                          float (*raw)[C] = nullptr) {
  for (int j = 0; j < C; j += MT) {
    vf acc[MT][NC];
    tile_long<Step>(acc, depth, left + j, C, right, ld_right);
    if (raw != nullptr) {
#pragma GCC unroll 16
      for (int m = 0; m < MT; ++m)
#pragma GCC unroll 4
        for (int i = 0; i < NC; ++i) store(raw[j + m] + i * W, acc[m][i]);
    }
#pragma GCC unroll 16
    for (int m = 0; m < MT; ++m)
#pragma GCC unroll 4
      for (int i = 0; i < NC; ++i)
        store(out[j + m] + i * W, acc[m][i] * load(mask[j + m] + i * W) * factor);
  }
}

// A and, for the delta rule, G of a chunk with a scalar gate. qT and kT are the columns of q and k
// (normalised, if the caller asks for that). Where the CPU multiplies pairs of bfloat16 numbers and
// q and k are such numbers, their own bits are multiplied, and normalised afterwards: the products
// are exact, and there are half as many steps. `words` holds 3 C padded / 2 floats.
struct ScoreInputs {
  const float *qT, *kT, *rstd_q, *rstd_k;
  int64_t i_h, padded;
  float* words;
};

#if defined(SEQKERN_BF16_DOT)
// Columns of 16 rows of bfloat16, two neighbours to a lane: [padded / 2][16].
inline void load_word_columns(const View& x, int64_t i_b, int64_t at, int64_t i_h, int n,
                              int64_t width, int64_t padded, float* rows, float* columns) {
  const uint16_t* from = static_cast<const uint16_t*>(x.data) + i_b * x.batch_stride +
                         at * x.time_stride + i_h * x.head_stride;
  memset(rows, 0, C * padded * sizeof(uint16_t));
  for (int i = 0; i < n; ++i)
    memcpy(rows + i * padded / 2, from + i * x.time_stride, width * sizeof(uint16_t));
  transpose_to_tokens(rows, padded / 2, padded / 2, columns, C);
}

// mask[j][r] <- mask[j][r] left_j right_r, in a copy.
inline const float (*normalized_mask(const float (*mask)[C], const float* left, const float* right,
                                     float (*copy)[C]))[C] {
  for (int j = 0; j < C; ++j)
    for (int i = 0; i < C; i += W)
      store(copy[j] + i, load(mask[j] + i) * load(right + i) * left[j]);
  return copy;
}
#endif

template <Beta kBeta>
inline void scores(const LinearAttention& p, const Chunk& at, const ScalarDecay& d,
                   const ScoreInputs& x, float (*A)[C], float (*G)[C]) {
#if defined(SEQKERN_BF16_DOT)
  if (p.q.dtype == DType::kBF16 && p.k.dtype == DType::kBF16) {
    const int64_t size = C * x.padded / 2, depth = (p.K + 1) / 2;
    float *rows = x.words, *q = rows + size, *k = q + size;
    load_word_columns(p.q, at.i_b, at.q_at, x.i_h, at.nq, p.K, x.padded, rows, q);
    load_word_columns(p.k, at.i_b, at.k_at, x.i_h, at.n, p.K, x.padded, rows, k);
    alignas(64) float maskA[C][C], maskG[C][C];
    const bool norm = p.l2norm;
    masked_scores<Bf16Dot>(k, q, C, depth, p.scale,
                           norm ? normalized_mask(d.Dq, x.rstd_k, x.rstd_q, maskA) : d.Dq, A);
    if constexpr (kBeta != Beta::kNone)
      masked_scores<Bf16Dot>(k, k, C, depth, 1.0f,
                             norm ? normalized_mask(d.D, x.rstd_k, x.rstd_k, maskG) : d.D, G);
    return;
  }
#endif
  masked_scores(x.kT, x.qT, C, p.K, p.scale, d.Dq, A);
  if constexpr (kBeta != Beta::kNone) masked_scores(x.kT, x.kT, C, p.K, 1.0f, d.D, G);
}

// Scores under a vector gate. The chunk falls into two halves of H tokens. Within a half the decay
// is a running product along j, query by query. Between the halves it splits at the border, one
// factor for the query and one for the key, both <= 1: any gate is exact.
constexpr int H = C / 2;

// Queries R and R + 1 of a half: lane sums of q_r k_j D_rj for j = 0 .. R + 1.
template <int R>
inline void vector_score_pair(const float* q, const float* k, const float* a, int64_t padded,
                              float (*out)[C]) {
  vf acc[2 * H];
#pragma GCC unroll 16
  for (int j = 0; j < 2 * H; ++j) acc[j] = vf{};
  for (int64_t x = 0; x < padded; x += W) {
    vf first = load(q + R * padded + x), second = load(q + (R + 1) * padded + x);
    acc[H + R + 1] = fma(second, load(k + (R + 1) * padded + x), acc[H + R + 1]);
    second *= load(a + (R + 1) * padded + x);
#pragma GCC unroll 8
    for (int j = R; j >= 0; --j) {
      const vf kj = load(k + j * padded + x);
      acc[j] = fma(first, kj, acc[j]);
      acc[H + j] = fma(second, kj, acc[H + j]);
      if (j > 0) {
        const vf aj = load(a + j * padded + x);
        first *= aj;
        second *= aj;
      }
    }
  }
  alignas(64) float sums[2 * H];
  sum_all(acc, sums);
  for (int j = 0; j < H; ++j) {
    out[j][R] = sums[j];
    out[j][R + 1] = sums[H + j];
  }
}

// out[j][r] = sum_k q_rk k_jk D_rjk; scratch holds C rows.
inline void vector_scores(const float* q, const float* k, const float* a, int64_t padded,
                          float* scratch, float (*out)[C]) {
  memset(out, 0, C * sizeof *out);
  float *const queries = scratch, *const keys = scratch + H * padded;
  for (int64_t x = 0; x < padded; x += W) {
    vf running = splat(1.0f);
    for (int i = 0; i < H; ++i) {
      running *= load(a + (H + i) * padded + x);
      store(queries + i * padded + x, load(q + (H + i) * padded + x) * running);
    }
    running = splat(1.0f);
    for (int j = H - 1; j >= 0; --j) {
      store(keys + j * padded + x, load(k + j * padded + x) * running);
      running *= load(a + j * padded + x);
    }
  }
  for (int half = 0; half < C; half += H) {
    float(*corner)[C] = reinterpret_cast<float(*)[C]>(&out[half][half]);
    const float *qh = q + half * padded, *kh = k + half * padded, *ah = a + half * padded;
    vector_score_pair<0>(qh, kh, ah, padded, corner);
    vector_score_pair<2>(qh, kh, ah, padded, corner);
    vector_score_pair<4>(qh, kh, ah, padded, corner);
    vector_score_pair<6>(qh, kh, ah, padded, corner);
  }
  constexpr int B = 4;
  for (int r = 0; r < H; r += B)
    for (int j = 0; j < H; j += B) {
      vf acc[B * B];
#pragma GCC unroll 16
      for (int i = 0; i < B * B; ++i) acc[i] = vf{};
      for (int64_t x = 0; x < padded; x += W) {
        vf key[B];
#pragma GCC unroll 4
        for (int i = 0; i < B; ++i) key[i] = load(keys + (j + i) * padded + x);
#pragma GCC unroll 4
        for (int m = 0; m < B; ++m) {
          const vf query = load(queries + (r + m) * padded + x);
#pragma GCC unroll 4
          for (int i = 0; i < B; ++i) acc[m * B + i] = fma(query, key[i], acc[m * B + i]);
        }
      }
      alignas(64) float sums[B * B];
      sum_all(acc, sums);
      for (int m = 0; m < B; ++m)
        for (int i = 0; i < B; ++i) out[j + i][H + r + m] = sums[m * B + i];
    }
}

inline void scale_scores(float scale, float (*A)[C]) {
  for (int j = 0; j < C; ++j)
    for (int i = 0; i < C; i += W) store(A[j] + i, load(A[j] + i) * scale);
}

// A decay that comes with its sign, at least 2^-60 in size: so much that products of it never
// vanish where the gradient, da = (a da) / a, needs them, and so little that it is zero to the
// state.
SEQKERN_INLINE vf signed_decay(vf a) {
  const vf least = splat(0x1p-60f);
  return blend(a < least, blend(a > -least, least, a), a);
}

// The same for a whole chunk, as vector_decay().
inline void vector_signed_decay(const LinearAttention& p, const Chunk& c, int64_t i_h,
                                int64_t padded, float* a) {
  load_rows(p.g, c.i_b, c.q_at, i_h, c.n, p.K, padded, a);
  for (int64_t x = 0; x < c.n * padded; x += W) store(a + x, signed_decay(load(a + x)));
  for (int64_t x = c.n * padded; x < C * padded; x += W) store(a + x, splat(1.0f));
}

// a = exp(g) of a vector gate, [16][padded]; rows beyond n and columns beyond K are 1.
inline void vector_decay(const LinearAttention& p, const Chunk& c, int64_t i_h, int64_t padded,
                         float* a) {
  if (p.signed_gate) return vector_signed_decay(p, c, i_h, padded, a);
  if (p.g.dtype == DType::kF32 && p.K == padded && c.n == C) {  // the usual case: one pass
    const float* g = static_cast<const float*>(p.g.data) + c.i_b * p.g.batch_stride +
                     c.q_at * p.g.time_stride + i_h * p.g.head_stride;
    for (int i = 0; i < C; ++i, g += p.g.time_stride, a += padded)
      for (int64_t x = 0; x < padded; x += W) store(a + x, exp(load(g + x)));
    return;
  }
  load_rows(p.g, c.i_b, c.q_at, i_h, c.n, p.K, padded, a);
  for (int64_t x = 0; x < C * padded; x += W) store(a + x, exp(load(a + x)));
}

}  // namespace
}  // namespace SEQKERN_ISA
}  // namespace seqkern
