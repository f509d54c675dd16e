// SPDX-License-Identifier: Apache-2.0
// rnn.cpp - the recurrent kernels against rnn_definition.hpp, outputs and gradients.
#include <cstdio>
#include <numeric>

#include "../cpu/dispatch.hpp"
#include "checks.hpp"
#include "rnn_definition.hpp"

namespace seqkern::test {
namespace {

struct Case {
  Cell cell = Cell::kLstm;
  int64_t B = 1, T = 1, H = 1, D = 1;
  std::vector<int64_t> lengths;  // of packed sequences; empty: B sequences of T steps
  DType dtype = DType::kF32;
  Layout layout = Layout::kDense;
  int out_states = 1, dout_states = 1;
  bool reverse = false, reset = false, s0 = true, bias = true, dlast = true, cut = false;
  float forward_clip = 0.0f, clip = 0.0f;

  int64_t sequences() const { return lengths.empty() ? B : static_cast<int64_t>(lengths.size()); }
};

std::string name_of(const Case& c) {
  char text[240];
  snprintf(text, sizeof text,
           "cell=%d B=%d T=%d H=%d D=%d packed=%d dtype=%d layout=%d out=%d dout=%d reverse=%d "
           "reset=%d s0=%d bias=%d dlast=%d cut=%d clips=%g %g",
           int(c.cell), int(c.B), int(c.T), int(c.H), int(c.D), int(c.lengths.size()), int(c.dtype),
           int(c.layout), c.out_states, c.dout_states, c.reverse, c.reset, c.s0, c.bias, c.dlast,
           c.cut, c.forward_clip, c.clip);
  return text;
}

// Gates or states are heads of a Tensor, part by part.
RnnView parts_of(const Tensor& x, int64_t heads) {
  const View v = x.view();
  return {v.data, v.dtype, v.batch_stride, v.time_stride, heads * v.head_stride, v.head_stride};
}

struct Data {
  CellShape shape;
  Tensor Wx, R, bias, s0, dout, dlast;  // R: [gate][D_out][head][D_in]; states: [S][N][H][D]
  std::vector<int64_t> offsets, order;
  std::vector<uint8_t> reset;

  Data(const Case& c, Random& random) : shape(cell_shape(c.cell)) {
    const auto normal = [&] { return random.normal(); };
    const double scale = 1.0 / std::sqrt(static_cast<double>(c.D));
    const int64_t N = c.sequences();
    fill(Wx = Tensor(c.dtype, c.layout, c.B, c.T, shape.input * c.H, c.D), normal);
    fill(R = Tensor(c.dtype, c.layout, shape.recurrent, c.D, c.H, c.D),
         [&] { return scale * random.normal(); });
    fill(bias = dense(1, shape.bias, c.H, c.D), normal);
    fill(s0 = dense(shape.states, N, c.H, c.D), normal);
    if (c.cell == Cell::kSlstm)  // carried and fresh units side by side
      for (int64_t n = 0; n < N; ++n)
        for (int64_t h = 0; h < c.H; ++h)
          for (int64_t d = 0; d < c.D; ++d) {
            const bool fresh = random.below(3) == 0;
            s0.set(2, n, h, d, fresh ? 0.0 : 1.0 + std::fabs(s0.at(2, n, h, d)));
            if (fresh) s0.set(1, n, h, d, 0.0);
          }
    fill(dout = Tensor(c.dtype, c.layout, c.B, c.T, shape.states * c.H, c.D), normal);
    fill(dlast = dense(shape.states, N, c.H, c.D), normal);
    for (int64_t i = 0; i < c.B * c.T; ++i) reset.push_back(random.below(4) == 0);
    if (c.lengths.empty()) return;
    offsets.assign(1, 0);
    for (const int64_t length : c.lengths) offsets.push_back(offsets.back() + length);
    order.resize(c.lengths.size());
    std::iota(order.begin(), order.end(), int64_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return c.lengths[a] > c.lengths[b]; });
  }
};

template <class Real>
struct Results {
  std::vector<Real> out, last, dWx, dR, db, ds0;
};

template <class Real>
Results<Real> define(const Case& c, const Data& data) {
  using V = Var<Real>;
  const CellShape shape = data.shape;
  Tape<Real> tape;
  const auto leaf = [&](double x) {
    return V{static_cast<Real>(x), tape.add(-1, Real(0), -1, Real(0)), &tape};
  };
  const auto leaves = [&](const Tensor& x) {
    std::vector<V> all;
    for (const double value : x.values()) all.push_back(leaf(value));
    return all;
  };
  const std::vector<V> Wx = leaves(data.Wx), R = leaves(data.R), bias = leaves(data.bias),
                       s0 = leaves(data.s0);
  const int64_t N = c.sequences(), H = c.H, D = c.D;
  std::vector<V> out(static_cast<size_t>(c.B * c.T * shape.states * H * D)), last(s0.size());
  for (int64_t n = 0; n < N; ++n)
    for (int64_t h = 0; h < H; ++h) {
      const int64_t b = c.lengths.empty() ? n : 0;
      const int64_t start = c.lengths.empty() ? 0 : data.offsets[n];
      const int64_t length = c.lengths.empty() ? c.T : c.lengths[n];
      std::vector<std::vector<V>> s(D, std::vector<V>(shape.states));
      for (int64_t d = 0; d < D; ++d)
        for (int i = 0; i < shape.states; ++i)
          if (c.s0) s[d][i] = s0[((i * N + n) * H + h) * D + d];
      for (int64_t step = 0; step < length; ++step) {
        const int64_t t = start + (c.reverse ? length - 1 - step : step), token = b * c.T + t;
        if (c.reset && data.reset[token] != 0)
          for (auto& unit : s) unit.assign(shape.states, V{});
        std::vector<std::vector<V>> next(D);
        for (int64_t d = 0; d < D; ++d) {
          std::vector<V> a(shape.bias);
          for (int g = 0; g < shape.bias; ++g) {
            if (c.bias) a[g] = bias[(g * H + h) * D + d];
            const int input = g - (shape.bias - shape.input);
            if (input >= 0) a[g] = a[g] + Wx[((token * shape.input + input) * H + h) * D + d];
            if (g >= shape.recurrent) continue;
            V y{};
            for (int64_t p = 0; p < D; ++p) {
              V before = s[p][0];
              if (c.cut) before = {before.v, -1, nullptr};
              y = y + R[((g * D + d) * H + h) * D + p] * before;
            }
            a[g] = a[g] + y;
          }
          next[d] = cell_step(c.cell, a, s[d]);
          if (c.forward_clip > 0)
            next[d][0] = clamp(next[d][0], Real(-c.forward_clip), Real(c.forward_clip));
          for (int i = 0; i < shape.states; ++i)
            out[((token * shape.states + i) * H + h) * D + d] = next[d][i];
        }
        s = next;
      }
      for (int64_t d = 0; d < D; ++d)
        for (int i = 0; i < shape.states; ++i) last[((i * N + n) * H + h) * D + d] = s[d][i];
    }
  std::vector<int> outputs;
  std::vector<Real> weights;
  const std::vector<double> dout = data.dout.values(), dlast = data.dlast.values();
  for (size_t i = 0; i < out.size(); ++i) {
    const int64_t state = static_cast<int64_t>(i) / (H * D) % shape.states;
    outputs.push_back(out[i].id);
    weights.push_back(state < c.dout_states ? static_cast<Real>(dout[i]) : Real(0));
  }
  for (size_t i = 0; i < last.size(); ++i) {
    outputs.push_back(last[i].id);
    weights.push_back(c.dlast ? static_cast<Real>(dlast[i]) : Real(0));
  }
  const std::vector<Real> grad = tape.gradients(outputs, weights);
  const auto values = [](const std::vector<V>& of) {
    std::vector<Real> all;
    for (const V& x : of) all.push_back(x.v);
    return all;
  };
  const auto grads = [&](const std::vector<V>& of) {
    std::vector<Real> all;
    for (const V& x : of) all.push_back(grad[static_cast<size_t>(x.id)]);
    return all;
  };
  return {values(out), values(last), grads(Wx), grads(R), grads(bias), grads(s0)};
}

// The tokens' states of which the kernel was asked for the first ones.
template <class Real>
std::vector<Real> first_states(const std::vector<Real>& all, const Case& c, int states) {
  std::vector<Real> some;
  const size_t row = static_cast<size_t>(c.H * c.D);
  const size_t whole = row * static_cast<size_t>(states);
  for (size_t at = 0; at < all.size(); at += whole)
    some.insert(some.end(), all.begin() + at, all.begin() + at + row * c.out_states);
  return some;
}

// With a 16-bit type h and da are rounded where they are multiplied or stored: the error follows
// the unit of that type, and is told from the largest value.
double terms_of(const Case& c, const std::vector<double>& exact) {
  double largest = 0.0;
  for (const double x : exact) largest = std::max(largest, std::fabs(x));
  return c.dtype == DType::kF32 ? 0.0 : largest * (c.dtype == DType::kF16 ? 1 << 10 : 1 << 13);
}

struct Kernel {
  const Case& c;
  const Data& data;
  RnnKernels k = kernels().rnn;
  Rnn p;
  RnnGrad grad;
  RnnMatrix R;

  Kernel(const Case& c, const Data& data) : c(c), data(data) {
    p.cell = c.cell;
    p.B = c.B;
    p.T = c.T;
    p.N = c.sequences();
    p.H = c.H;
    p.D = c.D;
    p.reverse = c.reverse;
    p.cu_seqlens = c.lengths.empty() ? nullptr : data.offsets.data();
    p.order = c.lengths.empty() ? nullptr : data.order.data();
    p.reset = c.reset ? data.reset.data() : nullptr;
    p.forward_clip = c.forward_clip;
    p.Wx = parts_of(data.Wx, c.H);
    p.bias = c.bias ? data.bias.floats() : nullptr;
    p.s0 = c.s0 ? data.s0.floats() : nullptr;
    p.half_gates = c.dtype == DType::kBF16;
    p.bf16_dot = k.has_bf16_dot && c.dtype == DType::kBF16;
    p.out_states = c.out_states;
    const View v = data.R.view();
    R = {v.data, v.dtype, v.batch_stride, v.head_stride, v.time_stride};
  }

  int64_t saved_floats() const {
    return c.H * c.B * c.T * rnn_saved_width(c.cell, c.D, p.half_gates);
  }

  // run(head, first and last row, team) for all heads and rows, at most five rows at a time.
  template <class Run>
  void all(bool transposed, int64_t shared_floats, const Run& run) {
    const int64_t bytes = k.packed_bytes(c.cell, c.D, p.bf16_dot);
    const Scratch packed(std::max<int64_t>(64, bytes * c.H));
    const Scratch shared(shared_floats * 4);
    int arrived[kRnnBarrier] = {};
    p.packed = grad.in.packed = packed.data();
    RnnTeam team;
    team.arrived = arrived;
    team.shared = static_cast<float*>(shared.data());
    for (int64_t h = 0; h < c.H; ++h) {
      for (int g = 0; g < data.shape.recurrent; ++g)
        k.pack(R, c.cell, c.D, h, g, transposed, p.bf16_dot,
               static_cast<unsigned char*>(packed.data()) + h * bytes);
      for (int64_t begin = 0; begin < p.N; begin += kRows)
        run(h, begin, std::min(begin + kRows, p.N), team);
    }
  }
  static constexpr int64_t kRows = 13;
};

void check_case(const Case& c, const Data& data, const Results<double>& exact,
                const Results<float>& rough, Report& report) {
  Kernel kernel(c, data);
  const RnnKernels& k = kernel.k;
  const CellShape shape = data.shape;
  const int64_t N = c.sequences(), rows = std::min(Kernel::kRows, N);
  const Tensor out(c.dtype, c.layout, c.B, c.T, c.out_states * c.H, c.D);
  const Tensor last = dense(shape.states, N, c.H, c.D);
  const Tensor saved = dense(1, 1, 1, kernel.saved_floats());
  kernel.p.out = parts_of(out, c.H);
  kernel.p.last = last.floats();
  kernel.p.saved = saved.floats();
  kernel.all(false, k.forward_shared(kernel.p, rows),
             [&](int64_t h, int64_t begin, int64_t end, const RnnTeam& team) {
               k.forward(kernel.p, h, begin, end, team);
             });
  const auto compare = [&](const char* name, const Tensor& got, const std::vector<double>& truth,
                           const std::vector<float>& in_float) {
    report.compare(name, got, {truth, in_float, terms_of(c, truth)});
  };
  compare("out", out, first_states(exact.out, c, shape.states),
          first_states(rough.out, c, shape.states));
  compare("last", last, exact.last, rough.last);

  const Tensor dWx(c.dtype, c.layout, c.B, c.T, shape.input * c.H, c.D);
  const Tensor ds0 = dense(shape.states, N, c.H, c.D);
  RnnGrad& grad = kernel.grad;
  grad.in = kernel.p;
  grad.cut = c.cut;
  grad.clip = c.clip;
  grad.dout = parts_of(data.dout, c.H);
  grad.dout_states = c.dout_states;
  grad.dlast = c.dlast ? data.dlast.floats() : nullptr;
  grad.dWx = parts_of(dWx, c.H);
  grad.ds0 = ds0.floats();
  const int64_t width = rnn_padded(c.D), each = (shape.recurrent * width + shape.bias) * width;
  const Tensor sums = dense(1, 1, c.H, each);
  kernel.all(true, k.backward_shared(kernel.p, rows),
             [&](int64_t h, int64_t begin, int64_t end, const RnnTeam& team) {
               float* const to = sums.floats() + h * each;
               const RnnSums into{to, to + shape.recurrent * width * width};
               k.backward(grad, h, begin, end, team, into, begin > 0);
             });
  Tensor dR = dense(shape.recurrent, c.D, c.H, c.D), db = dense(1, shape.bias, c.H, c.D);
  for (int64_t h = 0; h < c.H; ++h)
    for (int64_t d = 0; d < c.D; ++d) {
      const float* const from = sums.floats() + h * each;
      for (int64_t g = 0; g < shape.bias; ++g)
        db.set(0, g, h, d, from[(shape.recurrent * width + g) * width + d]);
      for (int64_t g = 0; g < shape.recurrent; ++g)
        for (int64_t i = 0; i < c.D; ++i) dR.set(g, d, h, i, from[(g * width + d) * width + i]);
    }
  compare("dWx", dWx, exact.dWx, rough.dWx);
  compare("dR", dR, exact.dR, rough.dR);
  if (c.bias) compare("db", db, exact.db, rough.db);
  if (c.s0) compare("ds0", ds0, exact.ds0, rough.ds0);
}

// One step straight from R; the definition is that of the first tokens.
void check_step(const Case& c, const Data& data, const Results<double>& exact,
                const Results<float>& rough, Report& report) {
  const Kernel kernel(c, data);
  RnnStep p;
  p.cell = c.cell;
  p.B = c.B;
  p.H = c.H;
  p.D = c.D;
  p.forward_clip = c.forward_clip;
  p.Wx = kernel.p.Wx;
  p.R = kernel.R;
  p.bias = kernel.p.bias;
  p.s = data.s0.floats();
  const Tensor out = dense(data.shape.states, c.B, c.H, c.D);
  p.out = out.floats();
  for (int64_t h = 0; h < c.H; ++h)
    for (int64_t unit = 0; unit < c.D; unit += kRnnStepUnits) kernel.k.step(p, h, unit);
  report.compare("step", out, {exact.last, rough.last});
}

void check_activations(Report& report) {
  std::vector<float> x;
  for (uint32_t bits = 0; bits < 0x7f800000u; bits += 0x3313u)
    for (const uint32_t sign : {0u, 0x80000000u}) {
      const uint32_t both = bits | sign;
      float value;
      memcpy(&value, &both, 4);
      x.push_back(value);
    }
  std::vector<float> y(x.size());
  const char* names[] = {"sigmoid", "tanh", "log_sigmoid"};
  for (int kind = 0; kind < 3; ++kind) {
    kernels().rnn.activate(kind, x.data(), y.data(), static_cast<int64_t>(x.size()));
    double worst = 0.0;
    for (size_t i = 0; i < x.size(); ++i) {
      const double v = x[i];
      const double truth = kind == 0   ? 1.0 / (1.0 + std::exp(-v))
                           : kind == 1 ? std::tanh(v)
                                       : std::min(v, 0.0) - std::log1p(std::exp(-std::fabs(v)));
      if (std::fabs(truth) < 1.2e-38) {
        worst = std::max(worst, std::fabs(y[i]) > 1.2e-38 ? 1e9 : 0.0);
        continue;
      }
      worst = std::max(worst, std::fabs(y[i] - truth) / (2.0 * half_ulp(DType::kF32, truth)));
    }
    char text[80];
    snprintf(text, sizeof text, "%s is off by %.2f ulp", names[kind], worst);
    report.check(worst <= (kind == 2 ? 4.0 : 3.0), text);
    const float inf = std::numeric_limits<float>::infinity();
    const float special[] = {inf, -inf, std::numeric_limits<float>::quiet_NaN()};
    float got[3];
    kernels().rnn.activate(kind, special, got, 3);
    const float limits[][2] = {{1, 0}, {1, -1}, {0, -inf}};
    report.check(got[0] == limits[kind][0] && got[1] == limits[kind][1] && got[2] != got[2],
                 std::string(names[kind]) + " of infinities and NaN");
  }
}

}  // namespace

Report test_rnn(const Plan& plan) {
  Report report("rnn", plan.isas);
  uint64_t seed = 3000;
  const auto run = [&](Case c, bool step) {
    if (plan.quick && ++seed % 3 != 0) return;
    Random random(seed);
    c.layout = random.pick<Layout>({Layout::kDense, Layout::kPadded, Layout::kHeadFirst});
    const Data data(c, random);
    const auto exact = define<double>(c, data);
    const auto rough = define<float>(c, data);
    on_every_isa(plan, report, name_of(c), [&] {
      check_case(c, data, exact, rough, report);
      if (step) check_step(c, data, exact, rough, report);
    });
  };
  for (int cell = 0; cell < kCells; ++cell) {
    Case base;
    base.cell = static_cast<Cell>(cell);
    base.out_states = base.dout_states = cell_shape(base.cell).states;
    const auto with = [&](auto change, bool step = false) {
      Case c = base;
      change(c);
      run(c, step);
    };
    const auto size = [](Case& c, int64_t B, int64_t T, int64_t H, int64_t D) {
      c.B = B;
      c.T = T;
      c.H = H;
      c.D = D;
    };
    for (const int64_t D : {1, 3, 16, 17, 40, 80})
      with([&](Case& c) { size(c, 3, 1, 2, D); }, true);
    for (const int64_t D : {1, 15, 33}) with([&](Case& c) { size(c, 5, 7, 2, D); });
    with([&](Case& c) { size(c, 19, 3, 1, 18); });
    with([&](Case& c) { size(c, 2, 70, 1, 4), c.reset = true; });
    with([&](Case& c) { size(c, 2, 4, 2, 20), c.reverse = true, c.s0 = false, c.bias = false; });
    with([&](Case& c) { size(c, 3, 4, 1, 20), c.out_states = c.dout_states = 1, c.dlast = false; });
    with([&](Case& c) { size(c, 4, 5, 1, 24), c.cut = true; });
    with([&](Case& c) { size(c, 4, 5, 1, 24), c.forward_clip = 0.3f; });
    // All numbers of sequences up to thirteen; panels side by side, one left over, a narrow one.
    with([&](Case& c) {
      size(c, 1, 91, 1, 168), c.lengths = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13};
    });
    // A sum that is cut at a kink tells little about rounding.
    if (base.cell != Cell::kElmanRelu && base.cell != Cell::kSlstm)
      for (const DType dtype : {DType::kBF16, DType::kF16})
        for (const int64_t D : {16, 21, 70})
          with([&](Case& c) { size(c, 5, 6, 1, D), c.dtype = dtype; });
    with([&](Case& c) {
      size(c, 1, 24, 2, 10), c.lengths = {3, 0, 11, 1, 9};
      c.reverse = true, c.reset = true;
    });
  }
  on_every_isa(plan, report, "activations", [&] { check_activations(report); });
  return report;
}

}  // namespace seqkern::test
