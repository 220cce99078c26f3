// Products of rows and packed weights in AMX's tiles, where the processor has them and the system permits them.
//
// In bfloat16, of every 32 inputs the even ones are added in float32, one after the other, and the odd ones beside them;
// then both are added to the sum. Numbers below the smallest normal one are 0. This is the hardware's order in each row of a
// tile, however many rows there are. A process computes all its products so, or none: a row's bits do not depend on its
// company. Products with 8-bit weights are exact in each piece of a row, and have the same bits in tiles and in registers.
#pragma once

#include "product.h"

#if defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(__AVX512BW__) && defined(__linux__)
#define AXON_AMX
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>

namespace axon {

// Whether this process computes with tiles: Linux gives them only to a process that asks, and threads have what it has.
inline bool has_tiles() {
  constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
  static const bool permitted =
      !std::getenv("AXON_NO_AMX") && syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
  return permitted;
}

constexpr int64_t TILE_ROWS = 16, LINE = 64;  // bytes of a tile's row

// How many inputs a row of a tile has, how many rows are multiplied at once, and what they are summed in.
template <typename W>
struct TileKind {
  using Sum = float;
  static constexpr int64_t INPUTS = 32, BLOCK = 2 * TILE_ROWS;
};

// Rows of 16 bits are two tiles: of their upper bytes and of their lower ones.
template <>
struct TileKind<int8_t> {
  using Sum = int32_t;
  static constexpr int64_t INPUTS = 64, BLOCK = TILE_ROWS;
};

// A block of rows as tiles read them: a line of each row, then the next line of each, with 0 after the last input.
inline void tile_rows(const bf16* x, int64_t rows, int64_t d, bf16* tiled) {
  constexpr int64_t inputs = TileKind<bf16>::INPUTS;
  for (int64_t k = 0; k < d; k += inputs)
    for (int64_t i = 0; i < rows; i++, tiled += inputs)
      std::fill(std::copy(x + i * d + k, x + i * d + std::min(d, k + inputs), tiled), tiled + inputs, bf16{});
}

// The same of both bytes, in the order in which `pack_weight` puts four 8-bit weights.
inline void tile_rows(const int16_t* x, int64_t rows, int64_t d, int16_t* tiled) {
  constexpr int64_t inputs = TileKind<int8_t>::INPUTS;
  auto* bytes = reinterpret_cast<uint8_t*>(tiled);
  for (int64_t k = 0; k < d; k += inputs)
    for (int shift : {8, 0})
      for (int64_t i = 0; i < rows; i++, bytes += inputs)
        for (int64_t j = 0; j < inputs; j++) {
          int64_t at = k + (j & ~3) + (j % 4 == 1 || j % 4 == 2 ? 3 - j % 4 : j % 4);
          bytes[j] = at < d ? x[i * d + at] >> shift : 0;
        }
}

// Tells GCC, which knows only addresses of what tiles read, that the memory itself is read.
inline void mark_read(const void* memory) { asm volatile("" ::"r"(memory) : "memory"); }

// The tiles of a thread: sums 0 and 1 of the first tile of rows, 4, and 2 and 3 of the second, 5; weights 6 and 7.
class Tiles {
 public:
  ~Tiles() { _tile_release(); }

  // Sets how many rows the first and the second tile have.
  void resize(int64_t first, int64_t second) {
    if (first == first_ && second == second_) return;
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } shapes;
    int64_t each[] = {first, first, second, second, first, second, TILE_ROWS, TILE_ROWS};
    for (int t = 0; t < 8; t++) shapes.rows[t] = each[t], shapes.bytes[t] = each[t] ? LINE : 0;
    mark_read(&shapes);
    _tile_loadconfig(&shapes);
    first_ = first, second_ = second;
  }

  // The sums of the rows of both tiles with so many steps of a panel; fetches as many bytes from `ahead` meanwhile.
  template <typename W>
  void multiply(const W* w, int64_t steps, const void* x, void* sums, const char* ahead) {
    auto* rows = static_cast<const char*>(x);
    auto* to = static_cast<float*>(sums);
    second_ ? multiply<true>(w, steps, rows, to, ahead) : multiply<false>(w, steps, rows, to, ahead);
  }

 private:
  template <bool BOTH, typename W>
  void multiply(const W* w, int64_t steps, const char* x, float* sums, const char* ahead) {
    constexpr bool whole = std::is_same_v<W, int8_t>;
    constexpr int64_t size = TILE_ROWS * STEP<W>;
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (BOTH) {
      _tile_zero(2);
      _tile_zero(3);
    }
    W rest[size];
    for (int64_t step = 0; step < steps; step += TILE_ROWS, w += size, x += (first_ + second_) * LINE) {
      if (steps - step < TILE_ROWS) {
        std::fill(std::copy(w, w + (steps - step) * STEP<W>, rest), rest + size, W{});
        w = rest;
      }
      mark_read(w);
      _tile_loadd(4, x, LINE);
      _tile_loadd(6, w, 2 * LINE);
      _tile_loadd(7, w + STEP<W> / 2, 2 * LINE);
      if constexpr (whole) {
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
      } else {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
      }
      if constexpr (BOTH) {
        _tile_loadd(5, x + first_ * LINE, LINE);
        if constexpr (whole) {
          _tile_dpbusd(2, 5, 6);
          _tile_dpbusd(3, 5, 7);
        } else {
          _tile_dpbf16ps(2, 5, 6);
          _tile_dpbf16ps(3, 5, 7);
        }
      }
      if (ahead)
        for (int line = 0; line < 2 * TILE_ROWS; line++, ahead += LINE) __builtin_prefetch(ahead, 0, 2);
    }
    _tile_stored(0, sums, 2 * LINE);
    _tile_stored(1, sums + LANES, 2 * LINE);
    if constexpr (BOTH) {
      _tile_stored(2, sums + first_ * OUTPUTS, 2 * LINE);
      _tile_stored(3, sums + first_ * OUTPUTS + LANES, 2 * LINE);
    }
  }

  int64_t first_ = 0, second_ = 0;
};

// The sums of a block of rows with a panel: rows in bfloat16.
inline void multiply_block(Tiles& tiles, const bf16* w, int64_t steps, const bf16* x, const float*, int64_t rows, float* sums,
                           const char* ahead) {
  tiles.resize(std::min(rows, TILE_ROWS), std::max<int64_t>(rows - TILE_ROWS, 0));
  tiles.multiply(w, steps, x, sums, ahead);
}

// Rows in 16 bits, with a scale for each piece: the same bits as in registers, since sums of a piece are exact.
inline void multiply_block(Tiles& tiles, const int8_t* w, int64_t steps, const int16_t* x, const float* scales, int64_t rows,
                           float* sums, const char* ahead) {
  constexpr int64_t piece = Kind<int8_t>::INPUTS / TOGETHER<int8_t>;  // steps
  int64_t pieces = (steps + piece - 1) / piece;
  alignas(64) int32_t whole[2 * TILE_ROWS * OUTPUTS];
  tiles.resize(rows, rows);
  for (int64_t at = 0; at < pieces; at++, w += piece * STEP<int8_t>, x += rows * Kind<int8_t>::INPUTS) {
    tiles.multiply(w, std::min(piece, steps - at * piece), x, whole, ahead ? ahead + at * piece * STEP<int8_t> : ahead);
    for (int64_t i = 0; i < rows; i++)
      for (int c = 0; c < WIDTH; c++) {
        int64_t k = (i * WIDTH + c) * LANES;
        Ints sum = load<Ints>(whole + k) * 256 + load<Ints>(whole + rows * OUTPUTS + k);
        keep(sum, sums + k, at == 0, scales[i * pieces + at]);
      }
  }
}

}  // namespace axon
#endif
