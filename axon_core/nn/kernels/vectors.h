// Registers of numbers, and the few operations on them that products and attention are made of.
//
// The compiler's vectors do the rest (+, *, <<, comparisons). Every sum is written out, with one rounding a step, and the
// library is compiled with -ffp-contract=off: a result depends on what is written here, never on the tile it stands in.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

// Registers are addressed by constants: without this, GCC keeps arrays of them in memory.
#define AXON_UNROLL _Pragma("GCC unroll 16")

namespace axon {

#if defined(__AVX512F__) && defined(__AVX512BW__)
constexpr int LANES = 16;
#elif defined(__AVX2__) && defined(__FMA__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));
typedef int16_t Narrow __attribute__((vector_size(2 * LANES)));
typedef int16_t Shorts __attribute__((vector_size(4 * LANES)));  // two for each number of `Ints`

struct bf16 {
  uint16_t bits;
};

template <typename V>
inline V load(const void* from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <typename V>
inline void store(void* to, V v) {
  std::memcpy(to, &v, sizeof v);
}

inline Floats all(float x) {
#if defined(__AVX512F__) && defined(__AVX512BW__)
  return (Floats)_mm512_set1_ps(x);
#elif defined(__AVX2__) && defined(__FMA__)
  return (Floats)_mm256_set1_ps(x);
#else
  return Floats{x, x, x, x};
#endif
}

inline Ints all(int32_t x) {
#if defined(__AVX512F__) && defined(__AVX512BW__)
  return (Ints)_mm512_set1_epi32(x);
#elif defined(__AVX2__) && defined(__FMA__)
  return (Ints)_mm256_set1_epi32(x);
#else
  return Ints{x, x, x, x};
#endif
}

// a b + c, rounded once where the processor can.
inline Floats fma(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__) && defined(__AVX512BW__)
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__) && defined(__FMA__)
  return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_NEON)
  return vfmaq_f32(c, a, b);
#else
  return a * b + c;
#endif
}

// sum + x[2i] w[2i] + x[2i + 1] w[2i + 1], exactly, for 16-bit pairs x that are alike in all lanes.
inline Ints add_pairs(Ints sum, Shorts w, Ints x) {
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
  return (Ints)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)w, (__m512i)x);
#elif defined(__AVX512F__) && defined(__AVX512BW__)
  return sum + (Ints)_mm512_madd_epi16((__m512i)w, (__m512i)x);
#elif defined(__AVX2__) && defined(__FMA__)
  return sum + (Ints)_mm256_madd_epi16((__m256i)w, (__m256i)x);
#else
  Ints pair = (Ints)w;
  return sum + ((pair << 16) >> 16) * ((x << 16) >> 16) + (pair >> 16) * (x >> 16);
#endif
}

// `v`, held in a register: otherwise GCC adds several products of integers before it adds them to a sum, for which there
// are too few registers.
inline Ints in_register(Ints v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#endif
  return v;
}

inline Floats widen(Halves v) { return (Floats)(__builtin_convertvector(v, Words) << 16); }
inline Floats read(const float* from) { return load<Floats>(from); }
inline Floats read(const bf16* from) { return widen(load<Halves>(from)); }
inline float widened(float x) { return x; }
inline float widened(bf16 x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}

inline void write(float* to, Floats v) { store(to, v); }
inline void write(bf16* to, Floats v) {  // to the nearest, ties to even; a NaN stays one
  Words bits = (Words)v;
  Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  Words nan = (Words)(v != v);
  store(to, __builtin_convertvector((rounded & ~nan) | (0x7fc0 & nan), Halves));
}

// The first n numbers of `v`, n ≤ LANES.
template <typename T>
inline void write_some(T* to, Floats v, int64_t n) {
  T whole[LANES];
  write(whole, v);
  std::memcpy(to, whole, n * sizeof(T));
}

// As many, the others 0.
template <typename T>
inline Floats read_some(const T* from, int64_t n) {
  if (n == LANES) return read(from);
  T whole[LANES] = {};
  std::memcpy(whole, from, n * sizeof(T));
  return read(whole);
}

// `v` with another value in all lanes but the first n.
inline Floats first_lanes(Floats v, int64_t n, float otherwise) {
  float whole[LANES];
  store(whole, v);
  std::fill(whole + n, whole + LANES, otherwise);
  return load<Floats>(whole);
}

// The sums of the lanes of four registers.
inline void sum_lanes(Floats a, Floats b, Floats c, Floats d, float* four) {
#if defined(__AVX2__) && defined(__FMA__)
#if defined(__AVX512F__) && defined(__AVX512BW__)
  auto half = [](Floats v) {
    __m512d both = (__m512d)v;
    return _mm256_add_ps((__m256)_mm512_castpd512_pd256(both), (__m256)_mm512_extractf64x4_pd(both, 1));
  };
#else
  auto half = [](Floats v) { return (__m256)v; };
#endif
  __m256 sums = _mm256_hadd_ps(_mm256_hadd_ps(half(a), half(b)), _mm256_hadd_ps(half(c), half(d)));
  _mm_storeu_ps(four, _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1)));
#else
  Floats all[4] = {a, b, c, d};
  for (int i = 0; i < 4; i++) four[i] = (all[i][0] + all[i][1]) + (all[i][2] + all[i][3]);
#endif
}

// exp x for x ≤ 0, to two units in the last place; below −87, where float32 is about to end, it is 0.
inline Floats exponential(Floats x) {
  constexpr float magic = 12582912;  // 1.5 · 2²³: added and taken away, it rounds to whole numbers
  Floats n = x * all(1.44269504f) + all(magic) - all(magic);  // x = n ln 2 + r, |r| ≤ ½ ln 2
  Floats r = fma(n, all(-0.693145752f), x);                   // the first 15 bits of ln 2, so that the product is exact
  r = fma(n, all(-1.42860677e-6f), r);
  Floats y = all(1.0f / 5040);
  for (float factorial : {720.0f, 120.0f, 24.0f, 6.0f, 2.0f, 1.0f, 1.0f}) y = fma(y, r, all(1 / factorial));
  Ints power = (__builtin_convertvector(n, Ints) + 127) << 23;
  return x < all(-87.0f) ? Floats{} : y * (Floats)power;
}

}  // namespace axon
