// SPDX-License-Identifier: Apache-2.0
// rnn_cells.hpp - what one unit of a recurrent cell does in one step: the policies that the
// recurrence is compiled for. W units at a time.
//
// V: a vector of units, or several side by side.
//
//   gates     a(i): the pre-activation of bias gate i; g(i, x): x is what gate i has for saving.
//             Either is called once a gate, a(i) before g(i, ...), and in such an order that little
//             is held between: g may overwrite what a reads.
//   update    s: states, replaced; g as gates() left it, completed
//             Both are loops of their own: what waits for another activation would hold up the
//             rest.
//   kClipGate the saved gate that tells the backward pass where h was clipped
//   kFreeGate the saved gate that may lie beyond [-1, 1], or kNone
//   backward  ds: gradient of the new states, replaced by that of the old ones, all but what flows
//             through R h; da: gradient of the pre-activations. `prev` is complete; of `now` all
//             but h is there.
//
// A new cell is one policy here, a place in Cells, and a row in kCellShapes.
#pragma once

#include "../include/seqkern/rnn.h"
#include "rnn_math.hpp"

namespace seqkern {
namespace SEQKERN_ISA {
namespace {

// The derivatives of sigmoid and tanh by their values.
template <class V>
SEQKERN_INLINE V sigmoid_slope(V s) {
  return less_product(s, s, s);
}
template <class V>
SEQKERN_INLINE V tanh_slope(V t) {
  return less_product(t, t, splat(1.0f));
}

// Saved in place of gate P::kClipGate, which is never below -1, where h was clipped: nothing flows
// to that gate then.
constexpr float kClipped = -2.0f;
constexpr int kNone = -1;

struct ElmanCell {
  static constexpr Cell kId = Cell::kElman;
  static constexpr int kClipGate = 0;
  static constexpr int kFreeGate = kNone;
  template <class A, class G>
  static SEQKERN_INLINE_MEMBER void gates(A a, G g) {
    g(0, tanh_of(a(0)));
  }
  template <class V>
  static SEQKERN_INLINE_MEMBER void update(V* s, V* g) {
    s[0] = g[0];
  }
  template <class V>
  static SEQKERN_INLINE_MEMBER void backward(const V* g, const V*, const V*, V* ds, V* da) {
    da[0] = ds[0] * tanh_slope(g[0]);
    ds[0] = V{};
  }
};

struct ElmanReluCell {
  static constexpr Cell kId = Cell::kElmanRelu;
  static constexpr int kClipGate = 0;
  static constexpr int kFreeGate = kNone;
  template <class A, class G>
  static SEQKERN_INLINE_MEMBER void gates(A a, G g) {
    g(0, at_least(vf{}, a(0)));
  }
  // What is saved is the slope: a small h would become 0 in float16.
  template <class V>
  static SEQKERN_INLINE_MEMBER void update(V* s, V* g) {
    s[0] = g[0];
    g[0] = blend(s[0] > vf{}, V{} + 1.0f, V{});
  }
  template <class V>
  static SEQKERN_INLINE_MEMBER void backward(const V* g, const V*, const V*, V* ds, V* da) {
    da[0] = blend(g[0] > vf{}, ds[0], vf{});
    ds[0] = V{};
  }
};

// c' = s(f) c + s(i) tanh(z);  h' = s(o) tanh(c')
struct LstmCell {
  static constexpr Cell kId = Cell::kLstm;
  static constexpr int kClipGate = 3;
  static constexpr int kFreeGate = kNone;
  template <class A, class G>
  static SEQKERN_INLINE_MEMBER void gates(A a, G g) {
    g(0, sigmoid_of(a(0)));
    g(1, sigmoid_of(a(1)));
    g(2, tanh_of(a(2)));
    g(3, sigmoid_of(a(3)));
  }
  template <class V>
  static SEQKERN_INLINE_MEMBER void update(V* s, V* g) {
    s[1] = fma(g[1], s[1], g[0] * g[2]);
    s[0] = g[3] * tanh_of(s[1]);
  }
  template <class V>
  static SEQKERN_INLINE_MEMBER void backward(const V* g, const V* prev, const V* now, V* ds,
                                             V* da) {
    const V t = tanh_of(now[1]);
    const V dc = fma(ds[0] * g[3], tanh_slope(t), ds[1]);
    da[0] = dc * g[2] * sigmoid_slope(g[0]);
    da[1] = dc * prev[1] * sigmoid_slope(g[1]);
    da[2] = dc * g[0] * tanh_slope(g[2]);
    da[3] = ds[0] * t * sigmoid_slope(g[3]);
    ds[0] = V{};
    ds[1] = dc * g[1];
  }
};

// Gates g r z n;  n = tanh(a_n + s(r) g), u = s(z), h' = u h + (1 - u) n
struct GruCell {
  static constexpr Cell kId = Cell::kGru;
  static constexpr int kClipGate = 2;
  static constexpr int kFreeGate = 0;
  template <class A, class G>
  static SEQKERN_INLINE_MEMBER void gates(A a, G g) {
    g(2, sigmoid_of(a(2)));
    const auto r = sigmoid_of(a(1)), y = a(0);
    g(3, fma(r, y, a(3)));
    g(0, y);
    g(1, r);
  }
  template <class V>
  static SEQKERN_INLINE_MEMBER void update(V* s, V* g) {
    g[3] = tanh_of(g[3]);
    s[0] = fma(g[2], s[0] - g[3], g[3]);
  }
  template <class V>
  static SEQKERN_INLINE_MEMBER void backward(const V* g, const V* prev, const V*, V* ds, V* da) {
    da[2] = ds[0] * (prev[0] - g[3]) * sigmoid_slope(g[2]);
    da[3] = less_product(ds[0], g[2], ds[0]) * tanh_slope(g[3]);
    da[1] = da[3] * g[0] * sigmoid_slope(g[1]);
    da[0] = da[3] * g[1];
    ds[0] = ds[0] * g[2];
  }
};

// Gates g f n;  n = tanh(a_n + s(f) g), h' = (1 - s(f)) h + s(f) n
struct MguCell {
  static constexpr Cell kId = Cell::kMgu;
  static constexpr int kClipGate = 1;
  static constexpr int kFreeGate = 0;
  template <class A, class G>
  static SEQKERN_INLINE_MEMBER void gates(A a, G g) {
    const auto f = sigmoid_of(a(1)), y = a(0);
    g(2, fma(f, y, a(2)));
    g(0, y);
    g(1, f);
  }
  template <class V>
  static SEQKERN_INLINE_MEMBER void update(V* s, V* g) {
    g[2] = tanh_of(g[2]);
    s[0] = fma(g[1], g[2] - s[0], s[0]);
  }
  template <class V>
  static SEQKERN_INLINE_MEMBER void backward(const V* g, const V* prev, const V*, V* ds, V* da) {
    da[2] = ds[0] * g[1] * tanh_slope(g[2]);
    da[1] = fma(ds[0], g[2] - prev[0], da[2] * g[0]) * sigmoid_slope(g[1]);
    da[0] = da[2] * g[1];
    ds[0] = less_product(ds[0], g[1], ds[0]);
  }
};

// l = log s(f) + m;  m' = i where n = 0 or i >= l, else l;  I = exp(min(i - m', 0)),
// F = exp(min(l - m', 0));  c' = F c + I tanh(z), n' = max(F n + I, 1), h' = s(o) c' / n'
struct SlstmCell {
  static constexpr Cell kId = Cell::kSlstm;
  static constexpr int kClipGate = 3;
  static constexpr int kFreeGate = kNone;
  template <class A, class G>
  static SEQKERN_INLINE_MEMBER void gates(A a, G g) {
    g(0, a(0));
    const auto f = a(1);
    auto u = f;
    g(1, log_sigmoid_of(f, u));
    g(4, blend(f > vf{}, u, splat(1.0f)) * reciprocal(1.0f + u));  // 1 - s(f)
    g(2, tanh_of(a(2)));
    g(3, sigmoid_of(a(3)));
  }
  template <class V>
  static SEQKERN_INLINE_MEMBER void update(V* s, V* g) {
    const V l = g[1] + s[3];
    const auto fresh = (s[2] == vf{}) | (g[0] >= l);
    const V m = blend(fresh, g[0], l);
    const V write = exp_negative(at_most(vf{}, g[0] - m));
    const V keep = exp_negative(at_most(vf{}, l - m));
    s[1] = fma(keep, s[1], write * g[2]);
    s[2] = at_least(splat(1.0f), fma(keep, s[2], write));
    s[3] = m;
    s[0] = g[3] * s[1] / s[2];
    g[0] = write;
    // 2: cut at 1, so that nothing flows to l; negative: m' = l.
    g[1] = blend(fresh, blend(l > m, splat(2.0f), keep), -keep);
  }
  template <class V>
  static SEQKERN_INLINE_MEMBER void backward(const V* g, const V* prev, const V* now, V* ds,
                                             V* da) {
    const V write = g[0], z = g[2], o = g[3];
    const auto of_l = g[1] < vf{};
    const auto cut = g[1] > splat(1.0f);
    const V keep = blend(cut, splat(1.0f), magnitude(g[1]));
    const V dy = ds[0] / now[2], ratio = now[1] / now[2];
    const V dc = fma(dy, o, ds[1]);
    V dn = less_product(dy * o, ratio, ds[2]);
    dn = blend(fma(keep, prev[2], write) >= splat(1.0f), dn, vf{});
    const V to_write = write * fma(z, dc, dn);
    V to_keep = keep * fma(prev[1], dc, prev[2] * dn);
    to_keep = blend(cut, vf{}, to_keep);
    const V dl = blend(of_l, ds[3] - to_write, to_keep);
    da[0] = blend(of_l, to_write, ds[3] - to_keep);
    da[1] = dl * g[4];
    da[2] = dc * write * tanh_slope(z);
    da[3] = ds[0] * ratio * sigmoid_slope(o);
    ds[0] = V{};
    ds[1] = keep * dc;
    ds[2] = keep * dn;
    ds[3] = dl;
  }
};

// In the order of enum Cell.
template <class... P>
struct CellList {};
using Cells = CellList<ElmanCell, ElmanReluCell, LstmCell, GruCell, SlstmCell, MguCell>;

}  // namespace
}  // namespace SEQKERN_ISA
}  // namespace seqkern
