// SPDX-License-Identifier: Apache-2.0
// rnn.cpp - schema, checks, allocation and threads of the recurrent cells.
#include "../include/seqkern/rnn.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>

#include "../cpu/dispatch.hpp"
#include "elementwise.hpp"

namespace seqkern::bind {
namespace {

constexpr const char* kNames[kCells] = {"elman", "elman_relu", "lstm", "gru", "slstm", "mgu"};

Cell cell_of(const std::string& name) {
  for (int i = 0; i < kCells; ++i)
    if (name == kNames[i]) return static_cast<Cell>(i);
  STD_TORCH_CHECK(false, "rnn: there is no cell \"", name, "\"");
}

// 0 is no clip: one that float32 would round to 0 becomes the least number that kernels know.
float clip_of(double value) {
  using Limits = std::numeric_limits<float>;
  if (value > Limits::max()) return Limits::infinity();
  return value > 0.0 ? std::max(static_cast<float>(value), Limits::min()) : 0.0f;
}

void check(bool ok, const char* what) { STD_TORCH_CHECK(ok, "rnn: ", what); }

void check_shape(const Tensor& t, std::initializer_list<int64_t> shape, const char* name) {
  bool same = t.dim() == static_cast<int64_t>(shape.size());
  int64_t i = 0;
  for (const int64_t n : shape) same = same && t.size(i++) == n;
  STD_TORCH_CHECK(same, "rnn: `", name, "` has the wrong shape");
  check_cpu(t, name);
}

// A [batch, time, part, head, width] tensor; the caller keeps `x` alive.
RnnView view_of_parts(const Tensor& x, const char* name) {
  return {x.data_ptr(), dtype_of(x, name), x.stride(0), x.stride(1), x.stride(2), x.stride(3)};
}

// A [part, batch, time, head, width] tensor.
RnnView view_of_states(const Tensor& x, const char* name) {
  return {x.data_ptr(), dtype_of(x, name), x.stride(1), x.stride(2), x.stride(0), x.stride(3)};
}

// Whether time comes before the batch in the memory of x, whose dimensions `batch` and `batch` + 1
// these are. All tensors along time lie in memory as Wx does.
bool time_first(const Tensor& x, int64_t batch) {
  return x.size(batch) > 1 && x.size(batch + 1) > 1 && x.stride(batch) < x.stride(batch + 1);
}

Tensor along_time(std::vector<int64_t> shape, int64_t batch, bool time_first, ScalarType dtype) {
  if (!time_first) return new_empty(shape, dtype);
  std::swap(shape[static_cast<size_t>(batch)], shape[static_cast<size_t>(batch) + 1]);
  return torch::stable::transpose(new_empty(shape, dtype), batch, batch + 1);
}

RnnMatrix matrix_of(const Tensor& R) {
  return {R.data_ptr(), dtype_of(R, "R"), R.stride(0), R.stride(1), R.stride(2)};
}

const float* floats_or_null(const OptionalTensor& x) {
  return x ? x->const_data_ptr<float>() : nullptr;
}

bool past_caches(const RnnView& v, int64_t numel) {
  return bind::past_caches(v.data, v.dtype, numel,
                           {v.batch_stride, v.time_stride, v.part_stride, v.head_stride});
}

// A dense float32 state [states, sequences, H, D], or nothing.
OptionalTensor checked_state(const OptionalTensor& s, const Rnn& p, const char* name) {
  if (!s) return {};
  check_shape(*s, {cell_shape(p.cell).states, p.N, p.H, p.D}, name);
  return as_float(*s, name);
}

// The arguments that the forward and the backward pass share, and what keeps them alive.
struct Call {
  // Asked for once: another thread may change the instruction set meanwhile.
  const KernelTable& table = seqkern::kernels();
  const RnnKernels& kernels = table.rnn;
  Rnn p;
  CellShape shape;
  Tensor R;
  OptionalTensor b, s0, cu_seqlens, reset;
  std::vector<int64_t> order;
  Tensor packed;

  // `x`: Wx [B, T, gates, H, D], or the states [S, B, T, H, D], whose B is dimension `batch`.
  Call(const Tensor& x, int64_t batch, const Tensor& R_, const OptionalTensor& b_,
       const OptionalTensor& s0_, const OptionalTensor& cu_seqlens_, const OptionalTensor& reset_,
       const std::string& cell, bool reverse, double forward_clip)
      : R(R_) {
    p.cell = cell_of(cell);
    shape = cell_shape(p.cell);
    p.B = p.N = x.size(batch);
    p.T = x.size(batch + 1);
    p.H = x.size(3);
    p.D = x.size(4);
    p.Wx.dtype = dtype_of(x, "Wx");
    p.reverse = reverse;
    p.forward_clip = clip_of(forward_clip);
    // float16 gates would cost float16 results digits; bfloat16 ones have none to lose.
    p.half_gates = p.Wx.dtype == DType::kBF16;
    check_shape(R, {shape.recurrent, p.H, p.D, p.D}, "R");
    R = with_contiguous_rows(R);
    p.bf16_dot =
        kernels.has_bf16_dot && p.Wx.dtype == DType::kBF16 && dtype_of(R, "R") == DType::kBF16;
    if (b_) {
      check_shape(*b_, {shape.bias, p.H, p.D}, "b");
      b = as_float(*b_, "b");
      p.bias = b->const_data_ptr<float>();
    }
    if (cu_seqlens_) {
      cu_seqlens = checked_cu_seqlens(*cu_seqlens_, p.B, p.T);
      p.cu_seqlens = cu_seqlens->const_data_ptr<int64_t>();
      p.N = cu_seqlens->size(0) - 1;
      order.resize(static_cast<size_t>(p.N));
      std::iota(order.begin(), order.end(), int64_t{0});
      const auto length = [&](int64_t n) { return p.cu_seqlens[n + 1] - p.cu_seqlens[n]; };
      std::stable_sort(order.begin(), order.end(),
                       [&](int64_t x, int64_t y) { return length(x) > length(y); });
      p.order = order.data();
    }
    if (reset_) {
      check_shape(*reset_, {p.B, p.T}, "reset");
      const ScalarType type = reset_->scalar_type();
      check(type == ScalarType::Bool || type == ScalarType::Byte, "`reset` must be bool or uint8");
      reset = dense(*reset_);
      p.reset = static_cast<const uint8_t*>(reset->data_ptr());
    }
    s0 = checked_state(s0_, p, "s0");
    p.s0 = floats_or_null(s0);
  }

  // Packs R for one pass.
  void pack(bool transposed) {
    const int64_t bytes = kernels.packed_bytes(p.cell, p.D, p.bf16_dot);
    packed = new_empty({std::max<int64_t>(1, p.H * bytes / 4)}, ScalarType::Float);
    unsigned char* const to = static_cast<unsigned char*>(packed.data_ptr());
    const RnnMatrix from = matrix_of(R);
    torch::stable::parallel_for(0, p.H * shape.recurrent, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t i_h = i / shape.recurrent, i_g = i % shape.recurrent;
        kernels.pack(from, p.cell, p.D, i_h, i_g, transposed, p.bf16_dot, to + i_h * bytes);
      }
    });
    p.packed = to;
  }
};

// How sequences are cut into tiles that advance together: by the shape alone, so that no sum
// depends on the number of threads. A narrow head's R stays in the second-level cache, and small
// tiles leave more to share out; a wide one's is read once for as many rows as possible.
struct Tiles {
  int64_t rows = 1, count = 0;
  explicit Tiles(const Rnn& p) {
    const int64_t floats = cell_shape(p.cell).recurrent * rnn_padded(p.D) * rnn_padded(p.D);
    const int64_t most = floats <= 65536 ? 16 : kRnnMaxRows;
    const int64_t tiles = (p.N + most - 1) / most;
    if (tiles > 0) rows = (p.N + tiles - 1) / tiles;
    if (rows > 8) rows = (rows + 7) / 8 * 8;
    count = (p.N + rows - 1) / rows;
  }
};

// Threads for each of `tasks`: more than one where tasks are fewer than threads, and every step is
// worth a meeting.
int64_t parts_of_task(const Call& call, int64_t tasks, int64_t rows) {
  const Rnn& p = call.p;
  const int64_t threads = torch::stable::get_num_threads();
  if (tasks == 0 || tasks * 2 > threads || p.T < 2) return 1;
  constexpr int64_t kLeast = 65536;  // multiply-adds of one part in one step
  const int64_t step = rows * cell_shape(p.cell).recurrent * p.D * p.D;
  return std::max<int64_t>(
      1, std::min({threads / tasks, step / kLeast, call.kernels.most_parts(p.D)}));
}

// run(task, team) for every task and every part of it, the parts of a task at the same time.
template <class Run>
void run_teams(int64_t tasks, int64_t parts, int64_t shared_floats, const Run& run) {
  if (parts == 1) {
    parallel_tasks(tasks, shared_floats * 4, [&](int64_t task, void* workspace) {
      RnnTeam team;
      team.shared = static_cast<float*>(workspace);
      run(task, team);
    });
    return;
  }
  const int64_t each = (shared_floats + 15) / 16 * 16;
  Tensor shared = float_empty({tasks * each});
  std::vector<int> arrived(static_cast<size_t>(tasks * kRnnBarrier), 0);
  torch::stable::parallel_for(0, tasks * parts, 1, [&](int64_t begin, int64_t end) {
    // A thread that was given several parts of one task takes them as one.
    while (begin < end) {
      const int64_t task = begin / parts;
      const int64_t stop = std::min(end, (task + 1) * parts);
      RnnTeam team;
      team.part = static_cast<int>(begin - task * parts);
      team.weight = static_cast<int>(stop - begin);
      team.parts = static_cast<int>(parts);
      team.arrived = arrived.data() + task * kRnnBarrier;
      team.shared = shared.mutable_data_ptr<float>() + task * each;
      run(task, team);
      begin = stop;
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> rnn_fwd(const Tensor& Wx, const Tensor& R,
                                           const OptionalTensor& b, const OptionalTensor& s0,
                                           const OptionalTensor& cu_seqlens,
                                           const OptionalTensor& reset, std::string cell,
                                           bool reverse, double forward_clip, int64_t out_states,
                                           bool save) {
  check(Wx.dim() == 5 && Wx.size(2) == cell_shape(cell_of(cell)).input,
        "`Wx` must be [B, T, input gates, N, D]");
  check_cpu(Wx, "Wx");
  Call call(Wx, 0, R, b, s0, cu_seqlens, reset, cell, reverse, forward_clip);
  Rnn& p = call.p;
  const Tensor inputs = with_contiguous_rows(Wx);
  p.Wx = view_of_parts(inputs, "Wx");
  check(out_states >= 1 && out_states <= call.shape.states,
        "`out_states` must lie between 1 and the states of the cell");
  const Tensor states =
      along_time({out_states, p.B, p.T, p.H, p.D}, 1, time_first(Wx, 0), Wx.scalar_type());
  const Tensor last = float_empty({call.shape.states, p.N, p.H, p.D});
  const Tensor saved = float_empty(
      save ? std::vector<int64_t>{p.H, p.T, p.B, rnn_saved_width(p.cell, p.D, p.half_gates)}
           : std::vector<int64_t>{0});
  p.out = view_of_states(states, "states");
  p.out_states = static_cast<int>(out_states);
  p.last = static_cast<float*>(last.data_ptr());
  p.saved = save ? static_cast<float*>(saved.data_ptr()) : nullptr;
  p.stream_out = past_caches(p.out, states.numel());
  p.stream_saved = !p.half_gates && past_caches({p.saved, DType::kF32}, saved.numel());
  if (last.numel() == 0) return {states, last, saved};
  call.pack(false);
  const Tiles tiles(p);
  const int64_t tasks = p.H * tiles.count;
  const RnnKernels& k = call.kernels;
  run_teams(tasks, parts_of_task(call, tasks, tiles.rows), k.forward_shared(p, tiles.rows),
            [&](int64_t task, const RnnTeam& team) {
              const int64_t begin = task % tiles.count * tiles.rows;
              k.forward(p, task / tiles.count, begin, std::min(begin + tiles.rows, p.N), team);
            });
  return {states, last, saved};
}

// The sums of all groups of a head, in their order, into the dense gradients.
void add_groups(const Call& call, int64_t groups, int64_t i_h, const float* sums, int64_t each,
                const Tensor& dR, const Tensor& db) {
  const Rnn& p = call.p;
  const CellShape shape = call.shape;
  const int64_t width = rnn_padded(p.D);
  const KernelTable& table = call.table;
  const DType type = dtype_of(dR, "R");
  std::vector<float> row(static_cast<size_t>(width));
  const auto add = [&](int64_t offset) {
    std::memcpy(row.data(), sums + offset, static_cast<size_t>(width) * sizeof(float));
    for (int64_t i = 1; i < groups; ++i)
      for (int64_t x = 0; x < p.D; ++x) row[static_cast<size_t>(x)] += sums[i * each + offset + x];
    return row.data();
  };
  for (int64_t g = 0; g < shape.recurrent; ++g)
    for (int64_t d = 0; d < p.D; ++d)
      table.sum_groups(add((g * width + d) * width), type, dR.data_ptr(),
                       ((g * p.H + i_h) * p.D + d) * p.D, 1, 1, p.D);
  for (int64_t g = 0; g < shape.bias; ++g)
    table.sum_groups(add((shape.recurrent * width + g) * width), DType::kF32, db.data_ptr(),
                     (g * p.H + i_h) * p.D, 1, 1, p.D);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> rnn_bwd(
    const OptionalTensor& dstates, const OptionalTensor& dlast, const Tensor& R,
    const OptionalTensor& b, const OptionalTensor& s0, const OptionalTensor& cu_seqlens,
    const OptionalTensor& reset, const Tensor& states, const Tensor& saved, std::string cell,
    bool reverse, double forward_clip, bool cut, double grad_clip) {
  check(states.dim() == 5 && states.size(0) >= 1, "`states` must be those of the forward pass");
  check_cpu(states, "states");
  Call call(states, 1, R, b, s0, cu_seqlens, reset, cell, reverse, forward_clip);
  Rnn& p = call.p;
  const CellShape shape = call.shape;
  check(saved.numel() == p.H * p.B * p.T * rnn_saved_width(p.cell, p.D, p.half_gates) &&
            saved.scalar_type() == ScalarType::Float && saved.is_contiguous(),
        "`saved` must be that of the forward pass");
  check(!dstates || dstates->scalar_type() == states.scalar_type(),
        "`dstates` must have the dtype of `states`");
  const Tensor h = with_contiguous_rows(states);
  p.out = view_of_states(h, "states");
  p.saved = static_cast<float*>(saved.data_ptr());
  RnnGrad grad;
  OptionalTensor dout;
  if (dstates) {
    check_shape(*dstates, {dstates->size(0), p.B, p.T, p.H, p.D}, "dstates");
    check(dstates->size(0) <= shape.states, "`dstates` has too many states");
    dout = with_contiguous_rows(*dstates);
    grad.dout = view_of_states(*dout, "dstates");
    grad.dout_states = static_cast<int>(dstates->size(0));
  }
  const OptionalTensor dense_dlast = checked_state(dlast, p, "dlast");
  grad.dlast = floats_or_null(dense_dlast);
  grad.cut = cut;
  grad.clip = clip_of(grad_clip);
  const Tensor dWx =
      along_time({p.B, p.T, shape.input, p.H, p.D}, 0, time_first(states, 1), states.scalar_type());
  grad.dWx = view_of_parts(dWx, "dWx");
  grad.stream_dWx = past_caches(grad.dWx, dWx.numel());
  const Tensor dR = new_empty(sizes_of(call.R), call.R.scalar_type());
  const Tensor db = float_empty({shape.bias, p.H, p.D});
  const Tensor ds0 = float_empty({shape.states, p.N, p.H, p.D});
  grad.ds0 = static_cast<float*>(ds0.data_ptr());
  if (db.numel() == 0) return {dWx, dR, db, ds0};
  call.pack(true);
  grad.in = p;
  const Tiles tiles(p);
  constexpr int64_t kMostGroups = 8;
  const int64_t per_group = std::max<int64_t>(1, (tiles.count + kMostGroups - 1) / kMostGroups);
  const int64_t groups = std::max<int64_t>(1, (tiles.count + per_group - 1) / per_group);
  const int64_t width = rnn_padded(p.D);
  const int64_t each = (shape.recurrent * width + shape.bias) * width;
  const Tensor sums = float_empty({p.H, groups, each});
  float* const all = static_cast<float*>(sums.data_ptr());
  if (tiles.count == 0) std::memset(all, 0, static_cast<size_t>(sums.numel()) * sizeof(float));
  const RnnKernels& k = call.kernels;
  const int64_t tasks = tiles.count == 0 ? 0 : p.H * groups;
  run_teams(tasks, parts_of_task(call, tasks, tiles.rows), k.backward_shared(p, tiles.rows),
            [&](int64_t task, const RnnTeam& team) {
              float* const to = all + task * each;
              const RnnSums into{to, to + shape.recurrent * width * width};
              const int64_t first = task % groups * per_group;
              const int64_t end = std::min(first + per_group, tiles.count);
              for (int64_t tile = first; tile < end; ++tile) {
                const int64_t begin = tile * tiles.rows;
                k.backward(grad, task / groups, begin, std::min(begin + tiles.rows, p.N), team,
                           into, tile > first);
              }
            });
  torch::stable::parallel_for(0, p.H, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i_h = begin; i_h < end; ++i_h)
      add_groups(call, groups, i_h, all + i_h * groups * each, each, dR, db);
  });
  return {dWx, dR, db, ds0};
}

Tensor rnn_step(const Tensor& Wx, const Tensor& R, const OptionalTensor& b, const Tensor& s,
                std::string cell, double forward_clip, int64_t first) {
  RnnStep p;
  p.cell = cell_of(cell);
  const CellShape shape = cell_shape(p.cell);
  check(Wx.dim() == 4 && Wx.size(1) == shape.input, "`Wx` must be [B, input gates, N, D]");
  check_cpu(Wx, "Wx");
  const Tensor x = with_contiguous_rows(Wx);
  p.B = x.size(0);
  p.H = x.size(2);
  p.D = x.size(3);
  p.Wx = {x.data_ptr(), dtype_of(x, "Wx"), x.stride(0), 0, x.stride(1), x.stride(2)};
  check_shape(R, {shape.recurrent, p.H, p.D, p.D}, "R");
  const Tensor rows = with_contiguous_rows(R);
  p.R = matrix_of(rows);
  check(first >= 0 && first < shape.recurrent, "`first` must be a recurrent gate");
  p.first = first;
  p.forward_clip = clip_of(forward_clip);
  OptionalTensor bias;
  if (b) {
    check_shape(*b, {shape.bias, p.H, p.D}, "b");
    bias = as_float(*b, "b");
    p.bias = bias->const_data_ptr<float>();
  }
  check_shape(s, {shape.states, p.B, p.H, p.D}, "s");
  const Tensor before = as_float(s, "s");
  p.s = before.const_data_ptr<float>();
  const Tensor out = float_empty(sizes_of(before));
  p.out = static_cast<float*>(out.data_ptr());
  const int64_t blocks = (p.D + kRnnStepUnits - 1) / kRnnStepUnits;
  const int64_t work = p.B * shape.recurrent * p.D * kRnnStepUnits;
  constexpr int64_t kLeast = 262144;  // multiply-adds that are worth a thread
  const RnnKernels& k = kernels().rnn;
  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) k.step(p, i / blocks, i % blocks * kRnnStepUnits);
  };
  if (p.B == 0) return out;
  if (p.H * blocks * work < 2 * kLeast)
    run(0, p.H * blocks);
  else
    torch::stable::parallel_for(0, p.H * blocks, std::max<int64_t>(1, kLeast / work), run);
  return out;
}

// Sigmoid, tanh or the logarithm of the sigmoid as the cells compute it, for the tests.
Tensor rnn_activate(const Tensor& x, std::string kind) {
  const std::vector<std::string> kinds{"sigmoid", "tanh", "log_sigmoid"};
  const auto found = std::find(kinds.begin(), kinds.end(), kind);
  check(found != kinds.end(), "`kind` must be \"sigmoid\", \"tanh\" or \"log_sigmoid\"");
  const Tensor in = as_float(x, "x");
  const Tensor out = dense_like(in, ScalarType::Float);
  kernels().rnn.activate(static_cast<int>(found - kinds.begin()), in.const_data_ptr<float>(),
                         static_cast<float*>(out.data_ptr()), in.numel());
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(seqkern, m) {
  m.def(
      "rnn_fwd(Tensor Wx, Tensor R, Tensor? b, Tensor? s0, Tensor? cu_seqlens, Tensor? reset, "
      "str cell, bool reverse, float forward_clip, int out_states, bool save) "
      "-> (Tensor states, Tensor last, Tensor saved)");
  m.def(
      "rnn_bwd(Tensor? dstates, Tensor? dlast, Tensor R, Tensor? b, Tensor? s0, "
      "Tensor? cu_seqlens, Tensor? reset, Tensor states, Tensor saved, str cell, bool reverse, "
      "float forward_clip, bool cut, float grad_clip) "
      "-> (Tensor dWx, Tensor dR, Tensor db, Tensor ds0)");
  m.def(
      "rnn_step(Tensor Wx, Tensor R, Tensor? b, Tensor s, str cell, float forward_clip, "
      "int first) -> Tensor");
  m.def("rnn_activate(Tensor x, str kind) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(seqkern, CPU, m) {
  m.impl("rnn_fwd", TORCH_BOX(&rnn_fwd));
  m.impl("rnn_bwd", TORCH_BOX(&rnn_bwd));
  m.impl("rnn_step", TORCH_BOX(&rnn_step));
  m.impl("rnn_activate", TORCH_BOX(&rnn_activate));
}

}  // namespace seqkern::bind
