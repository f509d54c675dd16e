// SPDX-License-Identifier: Apache-2.0
// lssl.cpp - schema, checks, allocation and threads of the linear state-space layer.
#include "../include/seqkern/lssl.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <stdexcept>

#include "../cpu/dispatch.hpp"
#include "lssl_family.hpp"

namespace seqkern::bind {
namespace {

// A magnification of rounding errors beyond which elimination without row exchanges is refused.
constexpr double kMostGrowth32 = 1e3, kMostGrowth64 = 1e9;

// A batch is split until a convolution has as many tasks; each computes its kernels' spectra.
constexpr int64_t kConvolutionTasks = 4;

void check_shape(const Tensor& t, const std::vector<int64_t>& shape, const char* name) {
  check_cpu(t, name);
  bool same = t.dim() == static_cast<int64_t>(shape.size());
  for (size_t i = 0; same && i < shape.size(); ++i)
    same = t.size(static_cast<int64_t>(i)) == shape[i];
  STD_TORCH_CHECK(same, "lssl: `", name, "` has the wrong shape");
}

Tensor typed(const Tensor& t, ScalarType type, const char* name) {
  STD_TORCH_CHECK(t.scalar_type() == type, "lssl: `", name, "` has the wrong dtype");
  return dense(t);
}

// `t` with its last dimension contiguous; `kept` keeps what the pointer points into.
const void* rows_in(const Tensor& t, std::vector<Tensor>& kept) {
  kept.push_back(with_contiguous_rows(t));
  return kept.back().data_ptr();
}

struct Call {
  // Asked for once: another thread may change the instruction set meanwhile.
  const LsslKernels& kernels = seqkern::kernels().lssl;
  LsslScan scan;
  ScalarType type;
  std::vector<Tensor> kept;
  std::vector<double> memory;  // of what is shared
  LsslShared shared;

  Call(const Tensor& E, const Tensor& F, const Tensor& g, const Tensor& C, const OptionalTensor& D,
       const OptionalTensor& u, const OptionalTensor& x0, int64_t L, int64_t segment) {
    LsslSystem& s = scan.system;
    take(C, D, u, x0, L, segment);
    s.E = keep(E, {3, s.H, s.N}, ScalarType::Double, "E").const_data_ptr<double>();
    s.F = keep(F, {3, s.H, s.N}, ScalarType::Double, "F").const_data_ptr<double>();
    s.lower = nothing_above(s.E, s.H, s.N) && nothing_above(s.F, s.H, s.N);
    s.g = keep(g, {s.H, s.N}, ScalarType::Double, "g").const_data_ptr<double>();
    if (!kernels.shares(scan)) return;
    memory.resize(static_cast<size_t>(lssl_share_memory(s)));
    s.compact = lssl_share(s, memory.data(), shared);
    if (s.compact) s.shared = &shared;
  }

  // `family` must outlive the call.
  Call(Family& family, double alpha, const Tensor& C, const OptionalTensor& D,
       const OptionalTensor& u, const OptionalTensor& x0, int64_t L, int64_t segment) {
    LsslSystem& s = scan.system;
    take(C, D, u, x0, L, segment);
    STD_TORCH_CHECK(family.shared && family.H == s.H && family.N == s.N,
                    "lssl: `A` and `B` must be [N], and `dt` [H]");
    family.look_at(0);
    memory.resize(static_cast<size_t>(3 * s.N));
    for (size_t i = 0; i < memory.size(); ++i) memory[i] = -alpha * family.slope[i];
    shared = {family.constant.data(), memory.data(), family.slope.data(), family.slope_in.data(),
              family.dt.data};
    s.shared = &shared;
    s.lower = family.diagonals < 3 || (nothing_above(family.constant.data(), 1, s.N) &&
                                       nothing_above(family.slope.data(), 1, s.N));
    s.compact = kernels.shares(scan);
  }

  // Everything but the system.
  void take(const Tensor& C, const OptionalTensor& D, const OptionalTensor& u,
            const OptionalTensor& x0, int64_t L, int64_t segment) {
    STD_TORCH_CHECK(C.dim() == 3, "lssl: `C` must be [H, M, N]");
    type = C.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double,
                    "lssl: `C` must be float32 or float64");
    LsslSystem& s = scan.system;
    s.H = C.size(0);
    s.M = C.size(1);
    s.N = C.size(2);
    s.f64 = type == ScalarType::Double;
    STD_TORCH_CHECK(s.N >= 1 && s.M >= 1 && L >= 0 && segment >= 1, "lssl: empty N, M or segment");
    s.C = keep(C, {s.H, s.M, s.N}, type, "C").data_ptr();
    if (D) s.D = keep(*D, {s.H, s.M}, type, "D").data_ptr();
    if (u) STD_TORCH_CHECK(u->dim() == 3, "lssl: `u` must be [B, L, H]");
    scan.B = u ? u->size(0) : 1;
    scan.L = u ? u->size(1) : L;
    scan.segment = segment;
    if (u) {
      check_shape(*u, {scan.B, scan.L, s.H}, "u");
      STD_TORCH_CHECK(u->scalar_type() == type, "lssl: `u` has the wrong dtype");
      scan.u = rows_in(*u, kept);
      scan.u_batch = kept.back().stride(0);
      scan.u_time = kept.back().stride(1);
    }
    if (x0) scan.x0 = keep(*x0, {scan.B, s.H, s.N}, type, "initial_state").data_ptr();
  }

  const Tensor& keep(const Tensor& t, const std::vector<int64_t>& shape, ScalarType want,
                     const char* name) {
    check_shape(t, shape, name);
    kept.push_back(typed(t, want, name));
    return kept.back();
  }

  // Whether the third plane of [3][H][N] is 0 but for what is not read; without a branch in a row,
  // which the compiler would not turn into vectors.
  static bool nothing_above(const double* matrix, int64_t H, int64_t N) {
    const double* above = matrix + 2 * H * N;
    for (int64_t h = 0; h < H; ++h) {
      int64_t found = 0;
      for (int64_t n = 0; n + 1 < N; ++n) found += above[h * N + n] != 0.0;
      if (found > 0) return false;
    }
    return true;
  }

  std::vector<int64_t> checkpoint_shape() const {
    const int64_t width = lssl_checkpoint_block(scan.system.H);
    const int64_t blocks = (scan.system.H + width - 1) / width;
    const int64_t segments = (scan.L + scan.segment - 1) / scan.segment;
    return {scan.B, segments, blocks, scan.system.N, width};
  }
};

// Who reads this passed the values, so that no place in a source goes before it.
void check_growth(double growth, bool f64) {
  if (growth <= (f64 ? kMostGrowth64 : kMostGrowth32)) return;
  char times[32];
  snprintf(times, sizeof times, "%.3g", growth);
  throw std::runtime_error(
      std::string("lssl: elimination without row exchanges would magnify rounding errors ") +
      times +
      " times for this `A` and `dt` (or they hold NaN). Pass the matrix itself, `A.dense()`, which "
      "is solved with pivoting.");
}

// y, the last state if it is wanted, and the checkpoints, if they are to be kept.
std::tuple<Tensor, Tensor, Tensor> run_forward(Call& call, bool state, bool keep) {
  LsslScan& p = call.scan;
  const LsslSystem& s = p.system;
  const Tensor y = new_empty({p.B, p.L, s.M, s.H}, call.type);
  const auto none = std::vector<int64_t>{0};
  const Tensor xt = new_empty(state ? std::vector<int64_t>{p.B, s.H, s.N} : none, call.type);
  const Tensor checkpoints = new_empty(keep ? call.checkpoint_shape() : none, call.type);
  p.y = y.data_ptr();
  p.xt = state ? xt.data_ptr() : nullptr;
  p.checkpoints = keep ? checkpoints.data_ptr() : nullptr;
  const int64_t words = s.f64 ? 2 : 1;
  p.stream = keep && past_caches(p.checkpoints, DType::kF32, checkpoints.numel() * words, {});
  // A row of outputs meets little work where the order is low, and evicts what the steps read.
  constexpr int64_t kLargeOutput = 256 << 10;
  p.stream_output = past_caches(p.y, DType::kF32, y.numel() * words, {s.H * words}, kLargeOutput);
  const LsslKernels& kernels = call.kernels;
  const int64_t tasks = p.B > 0 ? kernels.forward_tasks(p) : 0;
  std::vector<double> growth(static_cast<size_t>(tasks), 0.0);
  parallel_tasks(tasks, kernels.forward_workspace(p), [&](int64_t task, void* workspace) {
    growth[static_cast<size_t>(task)] = kernels.forward(p, task, workspace);
  });
  // NaN compares false with everything, so it must not be lost in a maximum.
  for (const double x : growth) check_growth(x, s.f64);
  return {y, xt, checkpoints};
}

std::tuple<Tensor, Tensor, Tensor> lssl_fwd(const Tensor& E, const Tensor& F, const Tensor& g,
                                            const Tensor& C, const OptionalTensor& D,
                                            const OptionalTensor& u, const OptionalTensor& x0,
                                            int64_t L, int64_t segment, bool keep) {
  Call call(E, F, g, C, D, u, x0, L, segment);
  return run_forward(call, true, keep);
}

std::tuple<Tensor, Tensor> lssl_structured(const Tensor& P, const Tensor& D, const Tensor& Q,
                                           const Tensor& lower, const Tensor& diagonal,
                                           const OptionalTensor& upper, const Tensor& B,
                                           const Tensor& dt, double alpha, const Tensor& C,
                                           const OptionalTensor& pass, const OptionalTensor& u,
                                           const OptionalTensor& x0, int64_t L, int64_t segment) {
  Family family(P, D, Q, lower, diagonal, upper, B, dt);
  Call call(family, alpha, C, pass, u, x0, L, segment);
  const auto [y, xt, checkpoints] = run_forward(call, u.has_value(), false);
  return {y, xt};
}

// The sum over the parts, [parts, ...] to [...]; a single part is allocated without that dimension.
Tensor sum_parts(const Tensor& parts, bool single) {
  if (single) return parts;
  std::vector<int64_t> shape = sizes_of(parts);
  const int64_t count = shape.front();
  shape.erase(shape.begin());
  const Tensor total = new_empty(shape, ScalarType::Double);
  double* to = total.mutable_data_ptr<double>();
  const double* from = parts.const_data_ptr<double>();
  const int64_t width = total.numel();
  std::fill(to, to + width, 0.0);
  for (int64_t part = 0; part < count; ++part)
    for (int64_t i = 0; i < width; ++i) to[i] += from[part * width + i];
  return total;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> lssl_bwd(
    const Tensor& dy, const OptionalTensor& dxt, const Tensor& E, const Tensor& F, const Tensor& g,
    const Tensor& C, const OptionalTensor& D, const OptionalTensor& u, const OptionalTensor& x0,
    const Tensor& checkpoints, int64_t segment, int64_t wanted) {
  STD_TORCH_CHECK(dy.dim() == 4, "lssl: `dy` must be [B, L, M, H]");
  STD_TORCH_CHECK(wanted >= 0 && wanted <= 2, "lssl: `wanted` must be 0, 1 or 2");
  Call call(E, F, g, C, D, u, x0, dy.size(1), segment);
  LsslGrad p;
  p.scan = call.scan;
  const LsslSystem& s = p.scan.system;
  const int64_t B = p.scan.B, L = p.scan.L;
  check_shape(dy, {B, L, s.M, s.H}, "dy");
  STD_TORCH_CHECK(dy.scalar_type() == call.type, "lssl: `dy` has the wrong dtype");
  p.dy = rows_in(dy, call.kept);
  p.dy_batch = call.kept.back().stride(0);
  p.dy_time = call.kept.back().stride(1);
  p.dy_channel = call.kept.back().stride(2);
  if (dxt) p.dxt = call.keep(*dxt, {B, s.H, s.N}, call.type, "dxt").data_ptr();
  p.scan.checkpoints =
      call.keep(checkpoints, call.checkpoint_shape(), call.type, "checkpoints").data_ptr();
  p.wanted = static_cast<LsslWanted>(wanted);
  const auto none = std::vector<int64_t>{0};
  const Tensor du = new_empty(u ? std::vector<int64_t>{B, L, s.H} : none, call.type);
  const Tensor dx0 = new_empty({B, s.H, s.N}, call.type);
  p.du = u ? du.data_ptr() : nullptr;
  p.dx0 = dx0.data_ptr();
  p.parts = std::max<int64_t>(1, std::min(B, kLsslMaxParts));
  const auto part = [&](std::vector<int64_t> shape, bool needed, double*& data) {
    if (!needed) shape[0] = 0;
    if (p.parts > 1) shape.insert(shape.begin(), p.parts);
    const Tensor t = new_empty(shape, ScalarType::Double);
    data = needed ? t.mutable_data_ptr<double>() : nullptr;
    return t;
  };
  const bool system = p.wanted != LsslWanted::kNone;
  const Tensor dE = part({3, s.H, s.N}, system, p.dE), dF = part({3, s.H, s.N}, system, p.dF);
  const Tensor dg = part({s.H, s.N}, system, p.dg), dC = part({s.H, s.M, s.N}, true, p.dC);
  const Tensor dD = part({s.H, s.M}, D.has_value(), p.dD);
  const LsslKernels& kernels = call.kernels;
  parallel_tasks(p.parts * kernels.groups(s), kernels.backward_workspace(p),
                 [&](int64_t task, void* workspace) { kernels.backward(p, task, workspace); });
  const auto sum = [&](const Tensor& parts) { return sum_parts(parts, p.parts == 1); };
  return {du, dx0, sum(dE), sum(dF), sum(dg), sum(dC), sum(dD)};
}

// The sum over the parts in the type of the kernels, [parts, L, M, H] to [L, M, H].
template <class T>
void add_parts(const Tensor& parts, const Tensor& total) {
  const int64_t width = total.numel();
  const T* from = static_cast<const T*>(parts.data_ptr());
  T* to = static_cast<T*>(total.data_ptr());
  std::copy(from, from + width, to);
  for (int64_t part = 1; part < parts.size(0); ++part)
    for (int64_t i = 0; i < width; ++i) to[i] += from[part * width + i];
}

struct ConvolutionCall {
  LsslConvolution p;
  ScalarType type;
  std::vector<Tensor> kept;

  ConvolutionCall(const Tensor& u, const Tensor& K, const OptionalTensor& D) {
    STD_TORCH_CHECK(u.dim() == 3, "lssl: `u` must be [B, L, H]");
    STD_TORCH_CHECK(K.dim() == 3 && K.size(1) >= 1, "lssl: `K` must be [L, M, H]");
    type = u.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double,
                    "lssl: `u` must be float32 or float64");
    check_cpu(u, "u");
    p.B = u.size(0);
    p.L = u.size(1);
    p.H = u.size(2);
    p.M = K.size(1);
    p.f64 = type == ScalarType::Double;
    p.u = rows_in(u, kept);
    p.u_batch = kept.back().stride(0);
    p.u_time = kept.back().stride(1);
    check_shape(K, {p.L, p.M, p.H}, "K");
    kept.push_back(typed(K, type, "K"));
    p.K = kept.back().data_ptr();
    if (D) {
      check_shape(*D, {p.H, p.M}, "D");
      kept.push_back(typed(*D, type, "D"));
      p.D = kept.back().data_ptr();
    }
    if (!empty()) p.spectrum = lssl_spectrum(p.L, p.f64);
    // Parts depend on the shape alone, so that the sums over them do.
    const int64_t pairs = (p.B + 1) / 2, blocks = block_count();
    p.parts = std::max<int64_t>(1, std::min(pairs, kConvolutionTasks / blocks));
  }

  int64_t block_count() const { return std::max<int64_t>(1, (p.H + kLsslBlock - 1) / kLsslBlock); }
  // Nothing to compute; gradients that are sums are then 0.
  bool empty() const { return p.B * p.L * p.H == 0; }
};

Tensor lssl_conv_fwd(const Tensor& u, const Tensor& K, const OptionalTensor& D) {
  ConvolutionCall call(u, K, D);
  LsslConvolution& p = call.p;
  const Tensor y = new_empty({p.B, p.L, p.M, p.H}, call.type);
  if (call.empty()) return y;
  p.y = y.data_ptr();
  const LsslKernels& kernels = seqkern::kernels().lssl;
  parallel_tasks(p.parts * call.block_count(), kernels.convolution_workspace(p),
                 [&](int64_t task, void* workspace) { kernels.convolve(p, task, workspace); });
  return y;
}

std::tuple<Tensor, Tensor> lssl_conv_bwd(const Tensor& dy, const Tensor& u, const Tensor& K,
                                         const OptionalTensor& D, bool du_wanted, bool dK_wanted) {
  ConvolutionCall call(u, K, D);
  LsslConvolution& p = call.p;
  check_shape(dy, {p.B, p.L, p.M, p.H}, "dy");
  STD_TORCH_CHECK(dy.scalar_type() == call.type, "lssl: `dy` has the wrong dtype");
  p.dy = rows_in(dy, call.kept);
  p.dy_batch = call.kept.back().stride(0);
  p.dy_time = call.kept.back().stride(1);
  p.dy_channel = call.kept.back().stride(2);
  const auto none = std::vector<int64_t>{0};
  const Tensor du = new_empty(du_wanted ? std::vector<int64_t>{p.B, p.L, p.H} : none, call.type);
  const Tensor dK = new_empty(dK_wanted ? std::vector<int64_t>{p.L, p.M, p.H} : none, call.type);
  if (call.empty()) {
    memset(dK.data_ptr(), 0, static_cast<size_t>(dK.numel() * (p.f64 ? 8 : 4)));
    return {du, dK};
  }
  const bool several = dK_wanted && p.parts > 1;
  const Tensor parts = several ? new_empty({p.parts, p.L, p.M, p.H}, call.type) : dK;
  p.du = du_wanted ? du.data_ptr() : nullptr;
  p.dK = dK_wanted ? parts.data_ptr() : nullptr;
  const LsslKernels& kernels = seqkern::kernels().lssl;
  parallel_tasks(p.parts * call.block_count(), kernels.convolution_workspace(p),
                 [&](int64_t task, void* workspace) { kernels.convolve_back(p, task, workspace); });
  if (several) p.f64 ? add_parts<double>(parts, dK) : add_parts<float>(parts, dK);
  return {du, dK};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(seqkern, m) {
  m.def(
      // L counts only where there is no u: the impulse response of that length.
      "lssl_fwd(Tensor E, Tensor F, Tensor g, Tensor C, Tensor? D, Tensor? u, Tensor? x0, "
      "SymInt L, int segment, bool keep) -> (Tensor, Tensor, Tensor)");
  m.def(
      "lssl_bwd(Tensor dy, Tensor? dxt, Tensor E, Tensor F, Tensor g, Tensor C, Tensor? D, "
      "Tensor? u, Tensor? x0, Tensor checkpoints, int segment, int wanted) -> (Tensor, Tensor, "
      "Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      // The same without E, F and g, for a matrix that all features share; without u, no last
      // state.
      "lssl_structured(Tensor P, Tensor D, Tensor Q, Tensor lower, Tensor diagonal, "
      "Tensor? upper, Tensor B, Tensor dt, float alpha, Tensor C, Tensor? pass_through, Tensor? u, "
      "Tensor? x0, SymInt L, int segment) -> (Tensor, Tensor)");
  m.def("lssl_conv_fwd(Tensor u, Tensor K, Tensor? D) -> Tensor");
  m.def(
      "lssl_conv_bwd(Tensor dy, Tensor u, Tensor K, Tensor? D, bool du_wanted, bool dK_wanted) -> "
      "(Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(seqkern, CPU, m) {
  m.impl("lssl_fwd", TORCH_BOX(&lssl_fwd));
  m.impl("lssl_structured", TORCH_BOX(&lssl_structured));
  m.impl("lssl_bwd", TORCH_BOX(&lssl_bwd));
  m.impl("lssl_conv_fwd", TORCH_BOX(&lssl_conv_fwd));
  m.impl("lssl_conv_bwd", TORCH_BOX(&lssl_conv_bwd));
}

}  // namespace seqkern::bind
