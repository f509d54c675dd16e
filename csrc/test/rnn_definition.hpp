// SPDX-License-Identifier: Apache-2.0
// rnn_definition.hpp - the recurrent cells from their equations, one unit at a time, and every
// gradient by the chain rule: the steps are written down on a tape and walked back.
#pragma once

#include <cmath>
#include <vector>

#include "../include/seqkern/rnn.h"

namespace seqkern::test {

template <class Real>
class Tape {
 public:
  int add(int a, Real da, int b, Real db) {
    nodes_.push_back({a, b, da, db});
    return static_cast<int>(nodes_.size()) - 1;
  }
  // The gradients of sum(weights[i] * outputs[i]) by every value on the tape.
  std::vector<Real> gradients(const std::vector<int>& outputs,
                              const std::vector<Real>& weights) const {
    std::vector<Real> grad(nodes_.size(), Real(0));
    for (size_t i = 0; i < outputs.size(); ++i)
      if (outputs[i] >= 0) grad[static_cast<size_t>(outputs[i])] += weights[i];
    walk(grad, nodes_.size(), 0);
    return grad;
  }

 private:
  struct Node {
    int a, b;
    Real da, db;
  };
  void walk(std::vector<Real>& grad, size_t from, size_t to) const {
    for (size_t i = from; i-- > to;) {
      const Node& node = nodes_[i];
      if (node.a >= 0) grad[static_cast<size_t>(node.a)] += node.da * grad[i];
      if (node.b >= 0) grad[static_cast<size_t>(node.b)] += node.db * grad[i];
    }
  }
  std::vector<Node> nodes_;
};

// A number whose history is on the tape; constants have none.
template <class Real>
struct Var {
  Real v = 0;
  int id = -1;
  Tape<Real>* tape = nullptr;
};

template <class Real>
Var<Real> record(const Var<Real>& x, Real dx, const Var<Real>& y, Real dy, Real value) {
  Tape<Real>* tape = x.tape != nullptr ? x.tape : y.tape;
  if (tape == nullptr) return {value, -1, nullptr};
  return {value, tape->add(x.id, dx, y.id, dy), tape};
}
template <class Real>
Var<Real> record(const Var<Real>& x, Real dx, Real value) {
  return record(x, dx, Var<Real>{}, Real(0), value);
}
template <class Real>
Var<Real> operator+(const Var<Real>& x, const Var<Real>& y) {
  return record(x, Real(1), y, Real(1), x.v + y.v);
}
template <class Real>
Var<Real> operator-(const Var<Real>& x, const Var<Real>& y) {
  return record(x, Real(1), y, Real(-1), x.v - y.v);
}
template <class Real>
Var<Real> operator*(const Var<Real>& x, const Var<Real>& y) {
  return record(x, y.v, y, x.v, x.v * y.v);
}
template <class Real>
Var<Real> operator/(const Var<Real>& x, const Var<Real>& y) {
  return record(x, 1 / y.v, y, -x.v / (y.v * y.v), x.v / y.v);
}
template <class Real>
Var<Real> exp(const Var<Real>& x) {
  const Real y = std::exp(x.v);
  return record(x, y, y);
}
template <class Real>
Var<Real> tanh(const Var<Real>& x) {
  const Real y = std::tanh(x.v);
  return record(x, 1 - y * y, y);
}
template <class Real>
Var<Real> sigmoid(const Var<Real>& x) {
  const Real y = 1 / (1 + std::exp(-x.v));
  return record(x, y * (1 - y), y);
}
template <class Real>
Var<Real> log_sigmoid(const Var<Real>& x) {
  const Real y = std::min(x.v, Real(0)) - std::log1p(std::exp(-std::fabs(x.v)));
  return record(x, 1 / (1 + std::exp(x.v)), y);
}
// Within bounds the identity, the bounds included; beyond them a constant.
template <class Real>
Var<Real> clamp(const Var<Real>& x, Real low, Real high) {
  const bool inside = x.v >= low && x.v <= high;
  return record(x, Real(inside ? 1 : 0), std::min(std::max(x.v, low), high));
}

// The states after one step of one unit.
template <class Real>
std::vector<Var<Real>> cell_step(Cell cell, const std::vector<Var<Real>>& a,
                                 const std::vector<Var<Real>>& s) {
  const Var<Real> one{Real(1), -1, nullptr};
  const Real none = 0, far = std::numeric_limits<Real>::max();
  switch (cell) {
    case Cell::kElman:
      return {tanh(a[0])};
    case Cell::kElmanRelu:
      return {record(a[0], Real(a[0].v > 0 ? 1 : 0), std::max(a[0].v, none))};
    case Cell::kLstm: {
      const Var<Real> c = sigmoid(a[1]) * s[1] + sigmoid(a[0]) * tanh(a[2]);
      return {sigmoid(a[3]) * tanh(c), c};
    }
    case Cell::kGru: {
      const Var<Real> n = tanh(a[3] + sigmoid(a[1]) * a[0]), u = sigmoid(a[2]);
      return {u * s[0] + (one - u) * n};
    }
    case Cell::kMgu: {
      const Var<Real> f = sigmoid(a[1]), n = tanh(a[2] + f * a[0]);
      return {(one - f) * s[0] + f * n};
    }
    case Cell::kSlstm: {
      const Var<Real> l = log_sigmoid(a[1]) + s[3];
      const Var<Real> m = s[2].v == 0 || a[0].v >= l.v ? a[0] : l;
      const Var<Real> write = exp(clamp(a[0] - m, -far, none));
      const Var<Real> keep = exp(clamp(l - m, -far, none));
      const Var<Real> c = keep * s[1] + write * tanh(a[2]);
      const Var<Real> n = clamp(keep * s[2] + write, Real(1), far);
      return {sigmoid(a[3]) * c / n, c, n, m};
    }
  }
  return {};
}

}  // namespace seqkern::test
