// Products of rows with packed weights: the sum over the inputs has one order, whatever rows stand beside.
//
// A panel of two registers of outputs is multiplied with 4 to 6 rows at a time: 8 to 12 sums in registers, each of which
// adds one input after the other. Threads take panels as they get done, so that one that is interrupted keeps the others
// waiting for one panel at most, and fetch the next panel from memory while they compute with one.
#pragma once

#include <algorithm>
#include <cmath>
#include <new>

#include "vectors.h"

namespace axon {

constexpr int WIDTH = 2;          // registers of a panel
constexpr int64_t OUTPUTS = WIDTH * LANES;

template <typename T>
struct Buffer {  // uninitialised, from a whole cache line on
  explicit Buffer(int64_t n) : data(static_cast<T*>(::operator new((n + 1) * sizeof(T), std::align_val_t(64)))) {}
  ~Buffer() { ::operator delete(data, std::align_val_t(64)); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* data;
};

// How the inputs and sums of a weight are held, and how many inputs a piece of a panel has. Inputs of a weight that lie
// side by side (`pack_weight`) fill 32 bits, so that a step of a panel is 64 bytes with AVX2.
template <typename W>
struct Kind {
  using Input = float;
  using Sum = Floats;
  static constexpr int64_t INPUTS = 2048;  // what stays in a processor's second cache
};

template <>
struct Kind<int8_t> {
  using Input = int16_t;
  using Sum = Ints;
  static constexpr int64_t INPUTS = 512;  // 512 · 127 · 2¹⁵ < 2³¹: 32 bits hold their sum
};

template <typename W>
constexpr int TOGETHER = 4 / sizeof(W);

template <typename W>
constexpr int STEP = OUTPUTS * TOGETHER<W>;  // weights of a step

// Adds the products of one step to the sums of R rows, whose inputs are `stride` apart.
template <int R>
inline void add(Floats (&sums)[R][WIDTH], const float* w, const float* x, int64_t stride) {
  Floats row[WIDTH];
  AXON_UNROLL
  for (int c = 0; c < WIDTH; c++) row[c] = load<Floats>(w + c * LANES);
  AXON_UNROLL
  for (int r = 0; r < R; r++) {
    Floats input = all(x[r * stride]);
    AXON_UNROLL
    for (int c = 0; c < WIDTH; c++) sums[r][c] = fma(input, row[c], sums[r][c]);
  }
}

template <int R>
inline void add(Floats (&sums)[R][WIDTH], const bf16* w, const float* x, int64_t stride) {
  AXON_UNROLL
  for (int i = 0; i < 2; i++) {
    Floats row[WIDTH];
    AXON_UNROLL
    for (int c = 0; c < WIDTH; c++) {
      Words pair = load<Words>(w + 2 * c * LANES);
      row[c] = (Floats)((i ? pair >> 16 : pair) << 16);
    }
    AXON_UNROLL
    for (int r = 0; r < R; r++) {
      Floats input = all(x[r * stride + i]);
      AXON_UNROLL
      for (int c = 0; c < WIDTH; c++) sums[r][c] = fma(input, row[c], sums[r][c]);
    }
  }
}

template <int R>
inline void add(Ints (&sums)[R][WIDTH], const int8_t* w, const int16_t* x, int64_t stride) {
  AXON_UNROLL
  for (int i = 0; i < 2; i++) {
    Shorts row[WIDTH];
    AXON_UNROLL
    for (int c = 0; c < WIDTH; c++) {
      Shorts both = load<Shorts>(w + 4 * c * LANES);
      row[c] = (i ? both : both << 8) >> 8;
    }
    AXON_UNROLL
    for (int r = 0; r < R; r++) {
      Ints input = all(load<int32_t>(x + r * stride + 2 * i));
      AXON_UNROLL
      for (int c = 0; c < WIDTH; c++) sums[r][c] = in_register(add_pairs(sums[r][c], row[c], input));
    }
  }
}

// What sums of a piece begin with, and what is kept of them after it.
inline void begin(Floats& sum, const float* kept) { sum = kept ? load<Floats>(kept) : Floats{}; }
inline void begin(Ints& sum, const float*) { sum = Ints{}; }
inline void keep(Floats sum, float* kept, bool, float) { store(kept, sum); }
inline void keep(Ints sum, float* kept, bool first, float scale) {
  store(kept, fma(__builtin_convertvector(sum, Floats), all(scale), first ? Floats{} : load<Floats>(kept)));
}

// The rows of a product: of float32, or of 16 bits and a scale for each piece of a row.
template <typename W>
struct Rows {
  const typename Kind<W>::Input* inputs;
  int64_t n, d;
  const float* scales;
  int64_t pieces() const { return (d + Kind<W>::INPUTS - 1) / Kind<W>::INPUTS; }
};

// Multiplies R rows, from row i on, with one piece of P panels that are `apart` weights apart, and fetches `ahead` at so
// many bytes a step meanwhile. What is kept of a panel lies `rows.n` rows after what is kept of the one before.
template <int R, int P, typename W>
[[gnu::noinline]] void multiply(const W* w, int64_t apart, const Rows<W>& rows, int64_t i, int64_t piece, float* kept,
                                const char* ahead, int64_t pace) {
  int64_t first = piece * Kind<W>::INPUTS, last = std::min(first + Kind<W>::INPUTS, rows.d);
  const auto* x = rows.inputs + i * rows.d;
  typename Kind<W>::Sum sums[P][R][WIDTH];
  auto place = [&](int a) { return kept + (a / (R * WIDTH) * rows.n * WIDTH + a % (R * WIDTH)) * LANES; };
  auto sum = [&](int a) -> auto& { return sums[a / (R * WIDTH)][a / WIDTH % R][a % WIDTH]; };
  AXON_UNROLL
  for (int a = 0; a < P * R * WIDTH; a++) begin(sum(a), piece ? place(a) : nullptr);
  for (int64_t k = first; k < last; k += TOGETHER<W>, w += STEP<W>, ahead += pace) {
    AXON_UNROLL
    for (int p = 0; p < P; p++) {
      const char* line = ahead + p * apart * int64_t(sizeof(W));
      __builtin_prefetch(line, 0, 2);
      if constexpr (STEP<W> * sizeof(W) > 64) __builtin_prefetch(line + 64, 0, 2);
      add<R>(sums[p], w + p * apart, x + k, rows.d);
    }
  }
  AXON_UNROLL
  for (int a = 0; a < P * R * WIDTH; a++) {
    float scale = rows.scales ? rows.scales[(i + a / WIDTH % R) * rows.pieces() + piece] : 1;
    keep(sum(a), place(a), piece == 0, scale);
  }
}

// How many panels are multiplied at a time: one or two rows have too few sums in one to keep the processor busy.
template <typename W>
int panels_at_once(int64_t n) {
  return n <= 2 && sizeof(W) > 1 ? 2 : 1;
}

// The sums of all rows with P panels; `following` comes next, and is fetched meanwhile.
template <int P, typename W>
void multiply_panels(const W* w, const Rows<W>& rows, float* sums, const W* following) {
  int64_t apart = rows.d * OUTPUTS;
  for (int64_t piece = 0; piece < rows.pieces(); piece++) {
    int64_t inputs = std::min(Kind<W>::INPUTS, rows.d - piece * Kind<W>::INPUTS), passes = (rows.n + 3) / 4;
    const W* next = piece + 1 < rows.pieces() ? w + inputs * OUTPUTS : following;
    const char* ahead = reinterpret_cast<const char*>(next);
    int64_t pace = STEP<W> * sizeof(W) / passes;
    for (int64_t i = 0; i < rows.n;) {
      auto run = [&]<int R>() {
        multiply<R, P>(w, apart, rows, i, piece, sums + i * OUTPUTS, ahead, pace);
        i += R;
      };
      if constexpr (P > 1) {
        rows.n - i == 1 ? run.template operator()<1>() : run.template operator()<2>();
      } else {
        switch (rows.n - i) {  // fewer than 4 rows have too few sums to keep the processor busy
          case 1: run.template operator()<1>(); break;
          case 2: run.template operator()<2>(); break;
          case 3: run.template operator()<3>(); break;
          case 5: run.template operator()<5>(); break;
          case 6: run.template operator()<6>(); break;
          default: run.template operator()<4>();
        }
      }
      ahead += pace * (inputs / TOGETHER<W>);
    }
    w = next;
  }
}

// A row rounded to 16 bits: x ≈ scale · q in each piece, with the smallest power of two as its scale.
inline void round_row(const float* x, int64_t d, int16_t* q, float* scales) {
  for (int64_t first = 0; first < d; first += Kind<int8_t>::INPUTS, scales++) {
    int64_t last = std::min(first + Kind<int8_t>::INPUTS, d);
    Ints most = {};  // of the magnitudes' bits, which are in the order of the magnitudes, with infinities and NaN last
    for (int64_t k = first; k < last; k += LANES) {
      Ints bits = (Ints)read_some(x + k, std::min<int64_t>(last - k, LANES)) & 0x7fffffff;
      most = bits > most ? bits : most;
    }
    int32_t largest = 0;
    for (int lane = 0; lane < LANES; lane++) largest = std::max(largest, most[lane]);
    int exponent = std::max(largest >> 23, 15) - 141;  // |x| < 2¹⁵ · 2^exponent
    bool finite = largest < 0x7f800000;
    *scales = finite ? std::ldexp(1.0f, exponent) : NAN;
    Floats inverse = all(finite ? std::ldexp(1.0f, -exponent) : 0);
    for (int64_t k = first; k < last; k += LANES) {
      int64_t some = std::min<int64_t>(last - k, LANES);
      Floats whole = read_some(x + k, some) * inverse;
      whole = whole + 12582912.0f - 12582912.0f;  // 1.5 · 2²³: the sum has no room for fractions; ties go to even
      whole = whole < 32767.0f ? whole : all(32767.0f);
      Narrow rounded = __builtin_convertvector(__builtin_convertvector(whole, Ints), Narrow);
      std::memcpy(q + k, &rounded, some * 2);
    }
  }
}

// s ⊙ sums + b for the outputs of a panel, rounded to the result's dtype.
template <typename T>
void finish(const float* sums, int64_t n, const float* scale, const float* bias, T* y, int64_t stride, int64_t outputs) {
  for (int64_t i = 0; i < n; i++)
    for (int c = 0; c < WIDTH && c * LANES < outputs; c++) {
      int64_t some = std::min<int64_t>(outputs - c * LANES, LANES);
      Floats v = load<Floats>(sums + (i * WIDTH + c) * LANES);
      if (scale) v = v * read_some(scale + c * LANES, some);
      if (bias) v = v + read_some(bias + c * LANES, some);
      T* to = y + i * stride + c * LANES;
      some == LANES ? write(to, v) : write_some(to, v, some);
    }
}

}  // namespace axon
