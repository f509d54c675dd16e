// SPDX-License-Identifier: Apache-2.0
// linear_attention.h - the contract between the bindings and the kernels of gated linear attention
// and of the (gated) delta rule.
//
//   S_t = diag(a_t) S_{t-1} + k_t u_t^T      a_t = exp(g_t)      S: [K, V] per head
//   u_t = v_t                                                     additive rule
//   u_t = beta_t (v_t - (diag(a_t) S_{t-1})^T k_t)                delta rule
//   o_t = scale S_t^T q_t
//
// With num_householder = n, k, v and beta have n virtual tokens for each real one: the gate acts
// before the first of them, the read-out comes after the last.
#pragma once

#include <stdint.h>

#include "types.h"

namespace seqkern {

constexpr int kChunk = 16;  // virtual tokens that a kernel takes at a time

enum class Gate : int32_t { kNone = 0, kScalar = 1, kVector = 2 };
enum class Beta : int32_t { kNone = 0, kScalar = 1, kVector = 2 };

struct LinearAttention {
  int64_t N = 0;   // sequences
  int64_t T = 0;   // real tokens of each sequence, or of all of them when packed
  int64_t H = 0;   // heads of q, k and a vector gate
  int64_t HV = 0;  // heads of v, o, beta and a scalar gate; a multiple of H
  int64_t K = 0, V = 0;
  int64_t num_householder = 1;
  float scale = 1.0f;
  bool l2norm = false;  // q, k <- x / sqrt(sum x^2 + 1e-6)
  Gate gate = Gate::kNone;
  bool signed_gate =
      false;  // a vector gate holds a_t itself, of any sign, instead of its logarithm
  Beta beta_kind = Beta::kNone;
  const int64_t* cu_seqlens = nullptr;  // [N + 1] real tokens, or null: N = batch
  View q, k, v, g, beta, o;             // g, beta: any dtype, read as float32
  const float* h0 = nullptr;            // [N, HV, K, V] dense, or null for zeros
  float* ht = nullptr;                  // [N, HV, K, V] dense, or null if nobody asked
  // What the backward pass wants to find again; null at inference.
  int64_t checkpoint_interval = 0;  // virtual tokens, a multiple of kChunk
  int64_t num_checkpoints = 0;      // T n / checkpoint_interval
  float* residual = nullptr;        // [batch, T n, HV, V]: u / beta of the delta rule
  float* checkpoints = nullptr;     // [batch, num_checkpoints, HV, K, V]
};

struct LinearAttentionGrad {
  LinearAttention in;          // the forward call; o is not read
  View d_o;                    // dtype of q
  const float* dht = nullptr;  // [N, HV, K, V] dense, or null for zeros
  View dq, dk, dv;             // written; per value head, so the caller sums groups of HV / H
  View dg;                     // float32; a vector gate's is per value head too
  View dbeta;                  // float32
  float* dh0 = nullptr;        // [N, HV, K, V] dense, written
};

// One head of one sequence; `workspace` is 64-byte aligned and holds *_workspace() bytes.
using LinearAttentionForward = void (*)(const LinearAttention&, int64_t i_n, int64_t i_h,
                                        void* workspace);
using LinearAttentionBackward = void (*)(const LinearAttentionGrad&, int64_t i_n, int64_t i_h,
                                         void* workspace);
using LinearAttentionWorkspace = int64_t (*)(const LinearAttention&);

}  // namespace seqkern
