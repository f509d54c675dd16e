// SPDX-License-Identifier: Apache-2.0
// search.hpp - depth first search over one program; constrint/_twin.py is its twin.
//
// Node       picks a variable (those with a given order first, then the smallest quotient of domain
//            size and failures below it), takes one end of its domain or one half, propagates.
// Memory     one frame and one trail entry per changed variable and level; no node is stored.
// Pausing    `run` may stop at any propagation and goes on from there.
#pragma once

#include <chrono>
#include <limits>
#include <memory>

#include "propagate.hpp"
#include "relax.hpp"

namespace constrint {

// PAUSED: the nodes are spent; LATE: the time is, maybe in the middle of a node.
enum Outcome { DONE = 0, SOLUTION = 1, PAUSED = 2, OVERFLOWN = 3, LATE = 4 };

class Engine {
 public:
  virtual ~Engine() = default;
  virtual int run(int64_t nodes, double seconds) = 0;
  virtual std::vector<Wide> solution() const = 0;
  virtual std::vector<std::pair<Wide, std::vector<Wide>>> best() const = 0;
  virtual Wide bound() const = 0;
  int64_t nodes = 0, propagations = 0, failures = 0, solutions = 0;
};

template <class I>
class Search final : public Engine {
 public:
  // keep: 0 to stop at every solution, or how many with the least objective to keep.
  // restarts: begin again at the root after some failures, more each time; for a first solution.
  Search(const char* data, size_t bytes, size_t keep, bool counting, bool restarts)
      : program_(data, bytes),
        store_(program_),
        propagators_(program_, store_),
        keep_(keep),
        counting_(counting),
        restart_at_(restarts ? patience_ : -1),
        weight_(program_.user, 1) {
    if (keep > 0 && program_.objective < 0) throw std::invalid_argument("program: no objective");
    for (size_t p = 0; p < program_.props.size(); ++p) {
      blame(program_.props[p]);
    }
    slow_ = SLOW + SLOW_EACH * int64_t(program_.props.size());
    window_ = WINDOW + int64_t(program_.props.size());
    wake_all();
  }

  int run(int64_t nodes_more, double seconds) override {
    const Clock::time_point deadline = after(seconds);
    const int64_t last = nodes_more > std::numeric_limits<int64_t>::max() - nodes
                             ? std::numeric_limits<int64_t>::max()
                             : nodes + nodes_more;
    try {
      return advance(last, deadline);
    } catch (const Overflow&) {
      phase_ = END;
      return OVERFLOWN;
    }
  }

  std::vector<Wide> solution() const override {
    std::vector<Wide> values;
    for (int32_t x = 0; x < program_.user; ++x) values.push_back(store_.lo(x));
    return values;
  }

  std::vector<std::pair<Wide, std::vector<Wide>>> best() const override {
    std::vector<std::pair<Wide, std::vector<Wide>>> found;
    for (const auto& [value, numbers] : best_) {
      found.emplace_back(value, std::vector<Wide>(numbers.begin(), numbers.end()));
    }
    return found;
  }

  Wide bound() const override {
    if (program_.objective < 0) return 0;
    I least = store_.lo(program_.objective);
    for (const Frame& f : frames_) least = std::min(least, f.bound);
    return least;
  }

 private:
  using Clock = std::chrono::steady_clock;
  enum Phase { PROPAGATE, BRANCH, BACKTRACK, END };
  enum class Ran { WELL, FAILED, LATE };

  struct Frame {
    size_t trail;
    int32_t x, direction;
    I at, bound;
    bool open;
  };

  // Domains of up to this many values are tried value by value, larger ones are halved.
  static constexpr int VALUES = 8;
  static constexpr int64_t SIZE_CAP = int64_t(1) << 40;
  static constexpr int64_t PROPAGATIONS_PER_LOOK = 64;
  // One node may take so many propagations, and so many for each propagator, before the rules that
  // run next are looked at together and the search branches.
  static constexpr int64_t SLOW = 200, SLOW_EACH = 3, WINDOW = 64;

  Program<I> program_;
  Store<I> store_;
  Propagators<I> propagators_;
  size_t keep_;
  bool counting_;
  // Failures until the next restart; each one waits for a fifth more.
  int64_t patience_ = 100, restart_at_ = -1;
  int64_t restarts_ = 0;
  uint64_t dice_ = 0;
  // Propagations of this node; those seen late; whether it was left before they came to rest.
  int64_t steps_ = 0, slow_ = 0, window_ = 0;
  std::vector<int32_t> late_;
  bool open_ = false;
  Phase phase_ = PROPAGATE;
  std::vector<int64_t> weight_;
  std::vector<Frame> frames_;
  std::vector<std::pair<I, std::vector<I>>> best_;

  static Clock::time_point after(double seconds) {
    const double capped = std::min(std::max(seconds, 0.0), 1e8);
    return Clock::now() +
           std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(capped));
  }

  void blame(const Prop& p) {
    for (uint32_t k = 0; k < p.scope.size; ++k) ++weight_[program_.ids[p.scope.begin + k]];
  }

  int advance(int64_t last, Clock::time_point deadline) {
    for (;;) {
      switch (phase_) {
        case PROPAGATE:
          switch (propagate(deadline)) {
            case Ran::LATE:
              return LATE;
            case Ran::WELL:
              phase_ = BRANCH;
              break;
            case Ran::FAILED:
              phase_ = BACKTRACK;
          }
          break;
        case BRANCH: {
          int32_t direction;
          const int32_t x = choose(direction);
          if (x < 0 && open_) {
            open_ = false;
            phase_ = PROPAGATE;
            wake_all();
          } else if (x < 0) {
            phase_ = BACKTRACK;
            if (take_solution()) return SOLUTION;
          } else if (nodes >= last) {
            return PAUSED;
          } else {
            descend(x, direction);
          }
          break;
        }
        case BACKTRACK:
          if (nodes >= last && !frames_.empty()) return PAUSED;
          if (!backtrack()) phase_ = END;
          break;
        case END:
          return DONE;
      }
    }
  }

  void wake_all() {
    for (size_t p = 0; p < program_.props.size(); ++p) {
      if (!store_.waits(int32_t(p))) store_.push(int32_t(p));
    }
  }

  enum class Pace { GOES_ON, STAYS, CLASHES };

  // Notes that p runs late; STAYS: leave the node as it is.
  Pace creeping(int32_t p) {
    if (steps_ <= slow_ + window_) {
      if (std::find(late_.begin(), late_.end(), p) == late_.end()) late_.push_back(p);
      return Pace::GOES_ON;
    }
    if (Relaxation<I>(store_).refuted(program_, late_)) return Pace::CLASHES;
    steps_ = 0;
    late_.clear();
    for (int32_t x = 0; x < program_.user; ++x) {
      if (!store_.fixed(x)) return Pace::STAYS;
    }
    return Pace::GOES_ON;
  }

  Ran propagate(Clock::time_point deadline) {
    while (!store_.idle()) {
      ++propagations;
      const int32_t p = store_.pop();
      const Prop& prop = program_.props[p];
      const Pace pace = ++steps_ > slow_ ? creeping(p) : Pace::GOES_ON;
      if (pace == Pace::STAYS) {
        store_.release(p);
        store_.clear_queue();
        open_ = true;
        return Ran::WELL;
      }
      const bool once = Propagators<I>::idempotent(prop.op);
      if (!once) store_.release(p);
      const bool well = pace == Pace::GOES_ON && propagators_.run(prop);
      if (once) store_.release(p);
      if (!well) {
        store_.release(p);
        store_.clear_queue();
        ++failures;
        blame(prop);
        return Ran::FAILED;
      }
      if (propagations % PROPAGATIONS_PER_LOOK == 0 && Clock::now() > deadline) return Ran::LATE;
    }
    return Ran::WELL;
  }

  // A fair coin, the same on every run.
  bool coin() {
    dice_ = dice_ * 6364136223846793005u + 1442695040888963407u;
    return dice_ >> 63;
  }

  int32_t choose(int32_t& direction) {
    for (const auto& [x, way] : program_.order) {
      if (!store_.fixed(x)) {
        direction = way;
        return x;
      }
    }
    int32_t best = -1;
    Wide best_size = 0, best_weight = 1;
    for (int32_t x = 0; x < program_.user; ++x) {
      if (store_.fixed(x)) continue;
      const Wide size = std::min(Wide(store_.size(x)), Wide(SIZE_CAP)), weight = weight_[x];
      if (best < 0 || size * best_weight < best_size * weight) {
        best = x;
        best_size = size;
        best_weight = weight;
      }
    }
    direction = best >= 0 ? program_.directions[best] : 1;
    if (restarts_ % 2 == 1 && best >= 0 && coin()) direction = -direction;
    return best;
  }

  void descend(int32_t x, int32_t direction) {
    const I lo = store_.lo(x), hi = store_.hi(x);
    I at = lo + (hi - lo) / 2;
    if (store_.size(x) <= VALUES) at = direction > 0 ? lo : hi - 1;
    const I bound = program_.objective >= 0 ? store_.lo(program_.objective) : I(0);
    frames_.push_back({store_.mark(), x, direction, at, bound, open_});
    store_.enter();
    branch(x, direction, at);
  }

  // Takes the part of x up to `at` (direction 1) or above it (-1).
  void branch(int32_t x, int32_t direction, I at) {
    ++nodes;
    phase_ = PROPAGATE;
    steps_ = 0;
    late_.clear();
    if (open_) wake_all();
    open_ = false;
    bool well = direction > 0 ? store_.set_hi(x, at) : store_.set_lo(x, Wide(at) + 1);
    if (well && keep_ > 0 && best_.size() >= keep_) {
      well = store_.set_hi(program_.objective, Wide(best_.back().first) - 1);
    }
    if (!well) {
      store_.clear_queue();
      phase_ = BACKTRACK;
    }
  }

  bool backtrack() {
    if (frames_.empty()) return false;
    if (restart_at_ >= 0 && failures >= restart_at_) {
      patience_ += patience_ / 5;
      restart_at_ = failures + patience_;
      ++restarts_;
      store_.undo(frames_.front().trail);
      open_ = frames_.front().open;
      frames_.clear();
      phase_ = BRANCH;
      return true;
    }
    const Frame f = frames_.back();
    frames_.pop_back();
    store_.undo(f.trail);
    open_ = f.open;
    branch(f.x, -f.direction, f.at);
    return true;
  }

  // Notes the solution; true: stop here.
  bool take_solution() {
    ++solutions;
    if (counting_) return false;
    if (keep_ == 0) return true;
    const I value = store_.lo(program_.objective);
    size_t k = best_.size();
    while (k > 0 && best_[k - 1].first > value) --k;
    std::vector<I> numbers;
    for (int32_t x = 0; x < program_.user; ++x) numbers.push_back(store_.lo(x));
    best_.insert(best_.begin() + k, {value, std::move(numbers)});
    if (best_.size() > keep_) best_.pop_back();
    return false;
  }
};

// Throws Overflow when the program's sums may leave the width asked for.
inline std::unique_ptr<Engine> make_engine(const char* data, size_t bytes, int width, size_t keep,
                                           bool counting, bool restarts) {
  if (width == 8) {
    return std::make_unique<Search<int64_t>>(data, bytes, keep, counting, restarts);
  }
  if (width == 16) {
    return std::make_unique<Search<Wide>>(data, bytes, keep, counting, restarts);
  }
  throw std::invalid_argument("program: the width must be 8 or 16");
}

}  // namespace constrint
