// The largest numbers of a row, and the logarithm of the sum of its exponentials.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "vectors.h"

namespace axon {

struct Choice {
  float score;
  int64_t id;
};

// The best so far, in order: the larger first, and of equal ones the one that came first.
class Best {
 public:
  explicit Best(int64_t k) : best_(k, Choice{-INFINITY, 0}) {}
  void clear(int64_t otherwise) { std::fill(best_.begin(), best_.end(), Choice{-INFINITY, otherwise}); }
  float least() const { return best_.back().score; }
  const Choice& operator[](int64_t i) const { return best_[i]; }
  void add(float score, int64_t id) {
    if (!(score > least())) return;
    int64_t i = int64_t(best_.size()) - 1;
    for (; i > 0 && score > best_[i - 1].score; i--) best_[i] = best_[i - 1];
    best_[i] = {score, id};
  }

 private:
  std::vector<Choice> best_;
};

// The largest of n numbers; a NaN may be overlooked.
template <typename T>
float largest(const T* x, int64_t n) {
  Floats most[4] = {all(-INFINITY), all(-INFINITY), all(-INFINITY), all(-INFINITY)};
  int64_t j = 0;
  for (; j + 4 * LANES <= n; j += 4 * LANES) {
    AXON_UNROLL
    for (int a = 0; a < 4; a++) {
      Floats v = read(x + j + a * LANES);
      most[a] = v > most[a] ? v : most[a];
    }
  }
  float found = -INFINITY;
  for (int a = 0; a < 4; a++)
    for (int lane = 0; lane < LANES; lane++) found = std::max(found, most[a][lane]);
  for (; j < n; j++) found = std::max(found, widened(x[j]));
  return found;
}

// Adds the best of n numbers; number j has the id first + j. A block whose largest is too small is passed over.
template <typename T>
void choose(const T* x, int64_t n, int64_t first, Best& best) {
  constexpr int64_t BLOCK = 8 * LANES;
  for (int64_t j = 0; j < n; j += BLOCK) {
    int64_t some = std::min(n - j, BLOCK);
    if (!(largest(x + j, some) > best.least())) continue;
    for (int64_t i = j; i < j + some; i++) best.add(widened(x[i]), first + i);
  }
}

// log Σ exp x of n numbers, the largest of which is `most`.
template <typename T>
float log_sum(const T* x, int64_t n, float most) {
  Floats sums[2] = {}, top = all(most);
  int64_t j = 0;
  for (; j + 2 * LANES <= n; j += 2 * LANES) {
    AXON_UNROLL
    for (int a = 0; a < 2; a++) sums[a] = sums[a] + exponential(read(x + j + a * LANES) - top);
  }
  for (; j < n; j += LANES) {
    int64_t some = std::min<int64_t>(n - j, LANES);
    Floats v = read_some(x + j, some) - top;
    sums[0] = sums[0] + exponential(some == LANES ? v : first_lanes(v, some, -INFINITY));
  }
  float four[4];
  sum_lanes(sums[0], sums[1], Floats{}, Floats{}, four);
  return most + std::log(four[0] + four[1]);
}

// A row of v numbers: its k best among the first `limit`, without number `except`, and how likely they are.
template <typename T>
void best_of_row(const T* x, int64_t v, int64_t limit, int64_t except, int64_t k, Best& best, float* logprobs, int64_t* ids) {
  best.clear(std::max<int64_t>(except, 0));
  int64_t before = except >= 0 && except < limit ? except : limit;
  choose(x, before, 0, best);
  if (before < limit) choose(x + before + 1, limit - before - 1, before + 1, best);
  float most = std::max(best[0].score, largest(x + limit, v - limit));
  if (before < limit) most = std::max(most, widened(x[except]));
  float total = log_sum(x, v, most);
  for (int64_t i = 0; i < k; i++) logprobs[i] = best[i].score - total, ids[i] = best[i].id;
}

}  // namespace axon
