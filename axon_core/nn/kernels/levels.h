// Weights of 4 bits: each code names one of 16 numbers in registers, and each block of weights has a scale.
//
// A group of 8 weights for each lane is read as 32 bits a lane. Shifted by 4 s bits, their lowest 4 bits are the code of
// weight 8 i + (s ^ 1) of the group in lane i, which a look-up turns into its level; the inputs are arranged to match. Nothing
// is rounded: the products of a group are summed in float32, multiplied by the scale of their lane, and added to the sum.
#pragma once

#include "product.h"

namespace axon {

constexpr int64_t GROUP = 8 * LANES;  // weights that are read at once
constexpr int64_t AHEAD = 4096;       // bytes of codes that are fetched before they are needed

// The 16 levels, in registers where the processor can look them up there.
struct Levels {
#if defined(__AVX512F__) && defined(__AVX512BW__)
  explicit Levels(const float* from) : all(_mm512_loadu_ps(from)) {}
  Floats operator[](Words codes) const { return (Floats)_mm512_permutexvar_ps((__m512i)codes, all); }
  __m512 all;
#elif defined(__AVX2__) && defined(__FMA__)
  explicit Levels(const float* from) : low(_mm256_loadu_ps(from)), high(_mm256_loadu_ps(from + 8)) {}
  Floats operator[](Words codes) const {
    __m256 a = _mm256_permutevar8x32_ps(low, (__m256i)codes), b = _mm256_permutevar8x32_ps(high, (__m256i)codes);
    return (Floats)_mm256_blendv_ps(a, b, (__m256)(codes << 28));
  }
  __m256 low, high;
#else
  explicit Levels(const float* from) : all(from) {}
  Floats operator[](Words codes) const {
    Floats v;
    for (int i = 0; i < LANES; i++) v[i] = all[codes[i] & 15];
    return v;
  }
  const float* all;
#endif
};

// The scales of a weight's blocks, each of which has a multiple of 8 weights.
template <typename S>
struct Scales {
  const S* from;
  int64_t block;

  // The scales of the lanes of a group that begins at weight `at`; 0 from lane `some` on.
  [[gnu::noinline]] Floats lanes(int64_t at, int64_t some) const {
    float each[LANES] = {};
    for (int64_t i = 0; i < some; i++) each[i] = widened(from[(at + 8 * i) / block]);
    return load<Floats>(each);
  }

  // The same of all lanes, from the scales of the P whole blocks that the group holds, or of the one it is in.
  template <int P>
  static Floats whole(const S* first) {
    if constexpr (P == 1) return all(widened(*first));
#if defined(__AVX512F__) && defined(__AVX512BW__)
    if constexpr (P == 2) return (Floats)_mm512_mask_blend_ps(0xff00, (__m512)all(widened(first[0])), (__m512)all(widened(first[1])));
    if constexpr (P == 4) {
      const __m512i lane = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
      __m128i four;
      if constexpr (sizeof(S) == 4)
        four = _mm_loadu_si128(reinterpret_cast<const __m128i*>(first));
      else
        four = _mm_slli_epi32(_mm_cvtepu16_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(first))), 16);
      return (Floats)_mm512_permutexvar_epi32(lane, _mm512_castsi128_si512(four));
    }
#endif
    Floats v;
    for (int i = 0; i < LANES; i++) v[i] = widened(first[i * P / LANES]);
    return v;
  }
};

// How many whole blocks the groups of every row hold; 0 where a group may begin inside a block.
inline int blocks_of_groups(int64_t d, int64_t block) {
  if (d % block) return 0;
  if (block % GROUP == 0) return 1;
  return GROUP % block == 0 ? GROUP / block : 0;
}

// A row of inputs in the order of the codes: input 8 i + (s ^ 1) of a group is number s · LANES + i; 0 beyond the row's end.
template <typename T>
void arrange_row(const T* x, int64_t d, float* to) {
  for (int64_t first = 0; first < d; first += GROUP, to += GROUP)
    for (int64_t s = 0; s < 8; s++)
      for (int64_t i = 0; i < LANES; i++) {
        int64_t k = first + 8 * i + (s ^ 1);
        to[s * LANES + i] = k < d ? widened(x[k]) : 0;
      }
}

// A weight of 4 bits with d inputs, a multiple of 8.
template <typename S>
struct Coded {
  const uint8_t* codes;
  Scales<S> scales;
  Levels levels;
  int64_t d;
};

// The products of R rows of arranged inputs with O rows of a weight from row `o` on; R · O numbers, weight by weight.
template <int R, int O, int P, typename S>
[[gnu::noinline]] void multiply_coded(const Coded<S>& w, int64_t o, const float* x, int64_t stride, float* out) {
  Floats sums[O * R] = {};
  const uint8_t* begin = w.codes + uint64_t(o * w.d) / 2;
  int64_t bytes = uint64_t(w.d) / 2, blocks = P ? w.d / w.scales.block : 0;
  const S* scales = w.scales.from + o * blocks;
  int64_t ahead = (AHEAD / (O * bytes) + 1) * O * bytes;  // what the rows that come then will read
  for (int64_t first = 0; first < w.d; first += GROUP, x += GROUP, begin += GROUP / 2) {
    int64_t some = std::min<int64_t>((w.d - first) / 8, LANES);
    Words codes[O];
    Floats parts[O * R];
    AXON_UNROLL
    for (int c = 0; c < O; c++) {
      const uint8_t* from = begin + c * bytes;
      codes[c] = some == LANES ? load<Words>(from) : (Words)read_some(reinterpret_cast<const float*>(from), some);
      __builtin_prefetch(from + ahead, 0, 2);
    }
    AXON_UNROLL
    for (int s = 0; s < 8; s++) {
      Floats level[O];
      AXON_UNROLL
      for (int c = 0; c < O; c++) level[c] = w.levels[s ? codes[c] >> (4 * s) : codes[c]];
      AXON_UNROLL
      for (int r = 0; r < R; r++) {
        Floats input = load<Floats>(x + r * stride + s * LANES);
        AXON_UNROLL
        for (int c = 0; c < O; c++) parts[c * R + r] = s ? fma(level[c], input, parts[c * R + r]) : level[c] * input;
      }
    }
    const S* here = scales + (P > 1 ? first / GROUP * P : P ? first / w.scales.block : 0);
    AXON_UNROLL
    for (int c = 0; c < O; c++) {
      Floats scale = P && some == LANES ? Scales<S>::template whole<P ? P : 1>(here + c * blocks)
                                        : w.scales.lanes((o + c) * w.d + first, some);
      AXON_UNROLL
      for (int r = 0; r < R; r++) sums[c * R + r] = fma(parts[c * R + r], scale, sums[c * R + r]);
    }
  }
  for (int a = 0; a < O * R; a += 4) {
    auto sum = [&](int b) { return sums[std::min(a + b, O * R - 1)]; };
    float four[4];
    sum_lanes(sum(0), sum(1), sum(2), sum(3), four);
    std::copy(four, four + std::min(4, O * R - a), out + a);
  }
}

// The products of all rows with the weight's rows from `o` to before `last`: `y` is their first output.
template <int P, typename S, typename T>
void multiply_coded_rows(const Coded<S>& w, int64_t o, int64_t last, const float* x, int64_t n, int64_t stride,
                         const float* bias, T* y, int64_t outputs) {
  for (int64_t i = 0, some; i < n; i += some) {
    some = n - i <= 4 ? n - i : n - i == 5 ? 3 : n - i == 6 ? 3 : 4;
    for (int64_t c = o, at_once; c < last; c += at_once) {
      at_once = last - c >= 4 ? 4 : 1;
      float found[16];
      auto run = [&]<int R>() {
        if (at_once == 4)
          multiply_coded<R, 4, P>(w, c, x + i * stride, stride, found);
        else
          multiply_coded<R, 1, P>(w, c, x + i * stride, stride, found);
      };
      switch (some) {
        case 1: run.template operator()<1>(); break;
        case 2: run.template operator()<2>(); break;
        case 3: run.template operator()<3>(); break;
        default: run.template operator()<4>();
      }
      for (int64_t r = 0; r < some; r++) {
        Floats v = {};
        for (int64_t a = 0; a < at_once; a++) v[a] = found[a * some + r] + (bias ? bias[c - o + a] : 0);
        write_some(y + (i + r) * outputs + c - o, v, at_once);
      }
    }
  }
}

// The weights from `first` on, in their order; `first` is a multiple of 8, and a block of 16.
template <typename S, typename T>
void widen_codes(const uint8_t* codes, const Scales<S>& scales, const float* table, int64_t first, int64_t count, T* to) {
  Levels levels(table);
  int64_t i = first, end = first + count;
  auto one = [&] {
    int code = i & 1 ? codes[i / 2] & 15 : codes[i / 2] >> 4;
    write_some(to + i - first, all(table[code] * widened(scales.from[i / scales.block])), 1);
    i++;
  };
  while (i < end && i % 16) one();
#if defined(__AVX2__) && defined(__FMA__)
  Words shifts;
  for (int lane = 0; lane < LANES; lane++) shifts[lane] = 4 * (lane % 8 ^ 1);
  for (; i + LANES <= end; i += LANES) {
    Words pair;
#if defined(__AVX512F__) && defined(__AVX512BW__)
    pair = (Words)_mm512_mask_blend_epi32(0xff00, _mm512_set1_epi32(load<int32_t>(codes + i / 2)),
                                          _mm512_set1_epi32(load<int32_t>(codes + i / 2 + 4)));
#else
    pair = (Words)all(load<int32_t>(codes + i / 2));
#endif
    write(to + i - first, levels[pair >> shifts] * all(widened(scales.from[i / scales.block])));
  }
#endif
  while (i < end) one();
}

}  // namespace axon
