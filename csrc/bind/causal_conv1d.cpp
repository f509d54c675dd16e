// SPDX-License-Identifier: Apache-2.0
// causal_conv1d.cpp - schema, checks, allocation and threads of the causal depthwise convolution.
#include "../include/seqkern/causal_conv1d.h"

#include "../cpu/dispatch.hpp"
#include "elementwise.hpp"

namespace seqkern::bind {
namespace {

void check_like(const Tensor& t, const Tensor& x, const char* name) {
  STD_TORCH_CHECK(t.scalar_type() == x.scalar_type(), "causal_conv1d: `", name,
                  "` must have the dtype of `x`");
  check_cpu(t, name);
}

void check_shape(const Tensor& t, std::initializer_list<int64_t> shape, const char* name) {
  bool same = t.dim() == static_cast<int64_t>(shape.size());
  int64_t i = 0;
  for (const int64_t n : shape) same = same && t.size(i++) == n;
  STD_TORCH_CHECK(same, "causal_conv1d: `", name, "` has the wrong shape");
}

// The tensors of a call, in the form that the kernels take, and what keeps them alive.
struct Call {
  CausalConv1d p;
  Tensor x, taps;
  OptionalTensor residual, initial_state, cu_seqlens;

  int64_t rows() const { return p.cu_seqlens == nullptr ? p.N * p.T : p.T; }
};

Call prepare(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
             const OptionalTensor& initial_state, const OptionalTensor& cu_seqlens, bool silu,
             const CausalConv1dKernels& kernels) {
  STD_TORCH_CHECK(x.dim() == 3, "causal_conv1d: `x` must be [B, T, D]");
  check_cpu(x, "x");
  Call call{CausalConv1d{}, with_contiguous_rows(x), x, {}, {}, {}};
  CausalConv1d& p = call.p;
  p.N = x.size(0);
  p.T = x.size(1);
  p.D = x.size(2);
  p.silu = silu;
  p.dtype = dtype_of(x, "x");
  STD_TORCH_CHECK(weight.dim() == 2 && weight.size(0) == p.D && weight.size(1) >= 1 &&
                      weight.size(1) <= kConvMaxWidth,
                  "causal_conv1d: `weight` must be [D, W] with 1 <= W <= ", kConvMaxWidth);
  p.width = weight.size(1);
  const Tensor w = as_float(weight, "weight");
  OptionalTensor b;
  if (bias) {
    check_shape(*bias, {p.D}, "bias");
    b = as_float(*bias, "bias");
  }
  call.taps = float_empty({(p.width + 1) * padded_channels(p.D)});
  p.taps = call.taps.const_data_ptr<float>();
  kernels.pack(w.const_data_ptr<float>(), b ? b->const_data_ptr<float>() : nullptr, p.D, p.width,
               call.taps.mutable_data_ptr<float>());
  if (cu_seqlens) {
    call.cu_seqlens = checked_cu_seqlens(*cu_seqlens, p.N, p.T);
    p.cu_seqlens = call.cu_seqlens->const_data_ptr<int64_t>();
    p.N = call.cu_seqlens->size(0) - 1;
  }
  if (initial_state) {
    check_like(*initial_state, x, "initial_state");
    check_shape(*initial_state, {p.N, p.D, p.width}, "initial_state");
    call.initial_state = dense(*initial_state);
    p.initial_state = call.initial_state->const_data_ptr();
  }
  p.x = view_of(call.x, "x");
  return call;
}

// How many of the tasks of `rows` x `channels` elements one thread takes at least.
int64_t grain(int64_t rows, int64_t channels) {
  constexpr int64_t kElements = 32768;
  const int64_t each = rows * channels;
  return each >= kElements ? 1 : kElements / (each > 0 ? each : 1);
}

std::tuple<Tensor, Tensor> causal_conv1d_fwd(const Tensor& x, const Tensor& weight,
                                             const OptionalTensor& bias,
                                             const OptionalTensor& residual,
                                             const OptionalTensor& initial_state,
                                             const OptionalTensor& cu_seqlens, bool silu,
                                             bool output_final_state) {
  const CausalConv1dKernels& kernels = seqkern::kernels().causal_conv1d;
  Call call = prepare(x, weight, bias, initial_state, cu_seqlens, silu, kernels);
  CausalConv1d& p = call.p;
  const Tensor y = dense_like(x, x.scalar_type());
  p.y = view_of(y, "x");
  if (residual) {
    check_like(*residual, x, "residual");
    check_shape(*residual, {x.size(0), x.size(1), x.size(2)}, "residual");
    call.residual = with_contiguous_rows(*residual);
    p.residual = view_of(*call.residual, "x");
  }
  if (p.D == 0) return {y, empty_state(x, output_final_state, {p.N, p.D, p.width})};
  const Tensor final_state = empty_state(x, output_final_state, {p.N, p.D, p.width});
  const int64_t across = conv_blocks(p.D, kConvForwardChannels);
  torch::stable::parallel_for(
      0, conv_blocks(call.rows(), kConvRows) * across,
      grain(kConvRows, p.D < kConvForwardChannels ? p.D : kConvForwardChannels),
      [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          kernels.forward(p, i / across * kConvRows, i % across * kConvForwardChannels);
      });
  if (output_final_state) {
    p.final_state = final_state.mutable_data_ptr();
    torch::stable::parallel_for(0, p.N, grain(p.width, p.D), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) kernels.final_state(p, i);
    });
  }
  return {y, final_state};
}

// The parts of the sums over rows: they depend on the shape alone, never on the threads.
void split_items(int64_t rows, CausalConv1dGrad& g) {
  const int64_t blocks = conv_blocks(rows, kConvRows);
  g.rows_per_item = conv_blocks(blocks > 0 ? blocks : 1, kConvMaxItems) * kConvRows;
  g.items = conv_blocks(rows, g.rows_per_item);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> causal_conv1d_bwd(
    const Tensor& dy, const OptionalTensor& dfinal_state, const Tensor& x, const Tensor& weight,
    const OptionalTensor& bias, const OptionalTensor& initial_state,
    const OptionalTensor& cu_seqlens, bool silu) {
  const CausalConv1dKernels& kernels = seqkern::kernels().causal_conv1d;
  const Call call = prepare(x, weight, bias, initial_state, cu_seqlens, silu, kernels);
  CausalConv1dGrad g;
  g.in = call.p;
  const CausalConv1d& p = g.in;
  check_like(dy, x, "dy");
  check_shape(dy, {x.size(0), x.size(1), x.size(2)}, "dy");
  const Tensor dy_rows = with_contiguous_rows(dy);
  g.dy = view_of(dy_rows, "x");
  const Tensor dx = dense_like(x, x.scalar_type());
  g.dx = view_of(dx, "x");
  OptionalTensor dht;
  if (dfinal_state) {
    check_like(*dfinal_state, x, "dfinal_state");
    check_shape(*dfinal_state, {p.N, p.D, p.width}, "dfinal_state");
    dht = dense(*dfinal_state);
    g.dfinal_state = dht->const_data_ptr();
  }
  const Tensor dweight = float_empty({p.D, p.width});
  const Tensor dbias = float_empty({bias ? p.D : 0});
  const Tensor dstate = empty_state(x, initial_state.has_value(), {p.N, p.D, p.width});
  if (p.D == 0) return {dx, dweight, dbias, dstate};
  g.dweight = dweight.mutable_data_ptr<float>();
  if (bias) g.dbias = dbias.mutable_data_ptr<float>();
  split_items(call.rows(), g);
  const Tensor partial = float_empty({g.items * (p.width + 1) * padded_channels(p.D)});
  g.partial = partial.mutable_data_ptr<float>();
  const int64_t across = conv_blocks(p.D, kConvBackwardChannels);
  torch::stable::parallel_for(
      0, g.items * across,
      grain(g.rows_per_item, p.D < kConvBackwardChannels ? p.D : kConvBackwardChannels),
      [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          kernels.backward(g, i / across, i % across * kConvBackwardChannels);
      });
  torch::stable::parallel_for(0, across, grain(g.items * p.width, kConvBackwardChannels),
                              [&](int64_t begin, int64_t end) {
                                for (int64_t i = begin; i < end; ++i)
                                  kernels.reduce(g, i * kConvBackwardChannels);
                              });
  if (initial_state) {
    g.dinitial_state = dstate.mutable_data_ptr();
    torch::stable::parallel_for(0, p.N, grain(p.width * p.width, p.D),
                                [&](int64_t begin, int64_t end) {
                                  for (int64_t i = begin; i < end; ++i)
                                    kernels.backward_state(g, i);
                                });
  }
  return {dx, dweight, dbias, dstate};
}

Tensor causal_conv1d_update(const Tensor& x, const Tensor& state, const Tensor& weight,
                            const OptionalTensor& bias, const OptionalTensor& residual, bool silu) {
  STD_TORCH_CHECK(x.dim() == 3, "causal_conv1d_update: `x` must be [N, T, D]");
  check_cpu(x, "x");
  CausalConv1dUpdate p;
  p.N = x.size(0);
  p.T = x.size(1);
  p.D = x.size(2);
  p.silu = silu;
  p.dtype = dtype_of(x, "x");
  STD_TORCH_CHECK(weight.dim() == 2 && weight.size(0) == p.D && weight.size(1) >= 1,
                  "causal_conv1d_update: `weight` must be [D, W]");
  p.width = weight.size(1);
  check_like(state, x, "state");
  STD_TORCH_CHECK(state.dim() == 3 && state.size(0) == p.N && state.size(1) == p.D &&
                      state.size(2) >= p.width - 1,
                  "causal_conv1d_update: the state must be [N, D, W - 1 or more]");
  p.state_width = state.size(2);
  p.state = state.mutable_data_ptr();
  p.state_n = state.stride(0);
  p.state_d = state.stride(1);
  p.state_w = state.stride(2);
  const Tensor w = as_float(weight, "weight");
  p.weight = w.const_data_ptr<float>();
  OptionalTensor b;
  if (bias) {
    check_shape(*bias, {p.D}, "bias");
    b = as_float(*bias, "bias");
    p.bias = b->const_data_ptr<float>();
  }
  p.x = view_of(x, "x");
  if (residual) {
    check_like(*residual, x, "residual");
    check_shape(*residual, {p.N, p.T, p.D}, "residual");
    p.residual = view_of(*residual, "x");
  }
  const Tensor y = dense_like(x, x.scalar_type());
  p.y = view_of(y, "x");
  const CausalConv1dKernels& kernels = seqkern::kernels().causal_conv1d;
  if (p.N == 1) {
    kernels.update(p, 0);
    return y;
  }
  torch::stable::parallel_for(0, p.N, grain(p.T * p.width, p.D), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) kernels.update(p, i);
  });
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(seqkern, m) {
  m.def(
      "causal_conv1d_fwd(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, "
      "Tensor? initial_state, Tensor? cu_seqlens, bool silu, bool output_final_state) "
      "-> (Tensor y, Tensor final_state)");
  m.def(
      "causal_conv1d_bwd(Tensor dy, Tensor? dfinal_state, Tensor x, Tensor weight, Tensor? bias, "
      "Tensor? initial_state, Tensor? cu_seqlens, bool silu) "
      "-> (Tensor dx, Tensor dweight, Tensor dbias, Tensor dinitial_state)");
  m.def(
      "causal_conv1d_update(Tensor x, Tensor(a!) state, Tensor weight, Tensor? bias, "
      "Tensor? residual, bool silu) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(seqkern, CPU, m) {
  m.impl("causal_conv1d_fwd", TORCH_BOX(&causal_conv1d_fwd));
  m.impl("causal_conv1d_bwd", TORCH_BOX(&causal_conv1d_bwd));
  m.impl("causal_conv1d_update", TORCH_BOX(&causal_conv1d_update));
}

}  // namespace seqkern::bind
