// Attention of one token to the keys of its sequence, which lie in blocks.
//
// A query and a key are multiplied in one order, and values are added in the order of their keys, so that a token's result
// does not depend on what is computed beside it, or on how the keys are cut into blocks.
#pragma once

#include <algorithm>
#include <cmath>

#include "vectors.h"

namespace axon {

// Keys or values in blocks, (blocks size groups d), as one group of a sequence sees them.
template <typename T>
struct Pool {
  const T* data;
  int64_t size, groups, d;
  const T* at(int64_t block, int64_t slot, int64_t g) const { return data + ((block * size + slot) * groups + g) * d; }
};

// The keys that a token sees, from `first` to before `last`.
struct Span {
  const int32_t* table;
  int64_t first, last;
};

// Goes through the keys or values of a span, one after the other, from block to block.
template <typename T>
class Walk {
 public:
  Walk(const Pool<T>& pool, const Span& span, int64_t g)
      : pool_(pool), table_(span.table + span.first / pool.size), slot_(span.first % pool.size), g_(g) {
    enter();
  }
  const T* next() {
    if (slot_ == pool_.size) slot_ = 0, table_++, enter();
    slot_++;
    const T* found = at_;
    at_ += pool_.groups * pool_.d;
    return found;
  }

 private:
  void enter() { at_ = pool_.at(*table_, slot_, g_); }
  const Pool<T>& pool_;
  const int32_t* table_;
  int64_t slot_, g_;
  const T* at_;
};

constexpr int QUERIES = 3, KEYS = 4, COLUMNS = 4;  // 12 sums at once

inline int64_t padded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

// Scores of R queries, each of `padded(d)` numbers, and the keys of a span: scores[r · stride + j − first].
template <int R, typename T>
void multiply_keys(const float* q, const Pool<T>& keys, int64_t g, const Span& span, float* scores, int64_t stride) {
  int64_t d = keys.d, wide = padded(d), n = span.last - span.first;
  Walk<T> walk(keys, span, g);
  for (int64_t j = 0; j < n; j += KEYS) {
    int64_t some = std::min<int64_t>(n - j, KEYS);
    const T* key[KEYS];  // the last one again where there are fewer
    for (int a = 0; a < KEYS; a++) key[a] = a < some ? walk.next() : key[a - 1];
    Floats sums[R][KEYS];
    AXON_UNROLL
    for (int a = 0; a < R * KEYS; a++) sums[a / KEYS][a % KEYS] = Floats{};
    for (int64_t c = 0; c < wide; c += LANES) {
      Floats row[R];
      AXON_UNROLL
      for (int r = 0; r < R; r++) row[r] = load<Floats>(q + r * wide + c);
      AXON_UNROLL
      for (int a = 0; a < KEYS; a++) {
        Floats k = read_some(key[a] + c, std::min<int64_t>(d - c, LANES));
        AXON_UNROLL
        for (int r = 0; r < R; r++) sums[r][a] = fma(row[r], k, sums[r][a]);
      }
    }
    AXON_UNROLL
    for (int r = 0; r < R; r++) {
      float four[KEYS];
      sum_lanes(sums[r][0], sums[r][1], sums[r][2], sums[r][3], four);
      std::memcpy(scores + r * stride + j, four, some * sizeof(float));
    }
  }
}

// Turns n scores into exp(score · scale + bias − largest), in place, and returns their sum.
inline float weigh(float* scores, int64_t n, float scale, const float* bias) {
  Floats most = all(-INFINITY);
  for (int64_t j = 0; j < n; j += LANES) {
    int64_t some = std::min<int64_t>(n - j, LANES);
    Floats s = read_some(scores + j, some) * all(scale);
    if (bias) s = s + read_some(bias + j, some);
    if (some < LANES) s = first_lanes(s, some, -INFINITY);
    store(scores + j, s);
    most = s > most ? s : most;
  }
  float largest = most[0];
  for (int lane = 1; lane < LANES; lane++) largest = std::max(largest, most[lane]);
  Floats sum = {};
  for (int64_t j = 0; j < n; j += LANES) {
    Floats weight = exponential(load<Floats>(scores + j) - all(largest));
    store(scores + j, weight);
    sum = sum + weight;
  }
  float four[KEYS];
  sum_lanes(sum, sum, sum, sum, four);
  return four[0];
}

// C registers of Σ weights · values for R queries, divided by the sums of the weights.
template <int R, int C, typename T, typename Q>
void add_values(const float* weights, int64_t stride, const Pool<T>& values, int64_t g, const Span& span, int64_t column,
                const float* totals, Q* out, int64_t apart) {
  int64_t some = std::min<int64_t>(values.d - column - (C - 1) * LANES, LANES);  // of the last register
  Floats sums[R][C];
  AXON_UNROLL
  for (int a = 0; a < R * C; a++) sums[a / C][a % C] = Floats{};
  Walk<T> walk(values, span, g);
  for (int64_t j = 0; j < span.last - span.first; j++) {
    const T* v = walk.next() + column;
    Floats row[C];
    AXON_UNROLL
    for (int c = 0; c < C; c++) row[c] = c < C - 1 ? read(v + c * LANES) : read_some(v + c * LANES, some);
    AXON_UNROLL
    for (int r = 0; r < R; r++) {
      Floats weight = all(weights[r * stride + j]);
      AXON_UNROLL
      for (int c = 0; c < C; c++) sums[r][c] = fma(weight, row[c], sums[r][c]);
    }
  }
  for (int r = 0; r < R; r++)
    for (int c = 0; c < C; c++) {
      Floats v = sums[r][c] / all(totals[r]);
      Q* to = out + r * apart + column + c * LANES;
      c < C - 1 || some == LANES ? write(to, v) : write_some(to, v, some);
    }
}

// Attention of R heads of a token that share group g; `room` has place for R · (padded(d) + padded(last − first)) numbers.
// Head r's bias is at bias + r · bias_apart.
template <int R, typename T, typename Q>
void attend_heads(const Q* q, const Pool<T>& keys, const Pool<T>& values, int64_t g, const Span& span, float scale,
                  const float* bias, int64_t bias_apart, float* room, Q* out) {
  int64_t d = keys.d, wide = padded(d), n = span.last - span.first, stride = padded(n);
  float *rows = room, *scores = room + R * wide, totals[R];
  for (int r = 0; r < R; r++)
    for (int64_t c = 0; c < wide; c += LANES)
      store(rows + r * wide + c, read_some(q + r * d + c, std::min<int64_t>(d - c, LANES)));
  multiply_keys<R>(rows, keys, g, span, scores, stride);
  for (int r = 0; r < R; r++)
    totals[r] = weigh(scores + r * stride, n, scale, bias ? bias + r * bias_apart + span.first : nullptr);
  for (int64_t column = 0; column < values.d;) {
    auto run = [&]<int C>() {
      add_values<R, C>(scores, stride, values, g, span, column, totals, out, values.d);
      column += C * LANES;
    };
    switch ((values.d - column + LANES - 1) / LANES) {
      case 1: run.template operator()<1>(); break;
      case 2: run.template operator()<2>(); break;
      case 3: run.template operator()<3>(); break;
      default: run.template operator()<COLUMNS>();
    }
  }
}

}  // namespace axon
