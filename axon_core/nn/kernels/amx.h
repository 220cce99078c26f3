// Products of bfloat16 rows and packed weights in AMX's tiles, where the processor has them and the system permits them.
//
// Of every 32 inputs the even ones are added in float32, one after the other, and the odd ones beside them; then both are
// added to the sum. Numbers below the smallest normal one are 0. This is the hardware's order in each row of a tile, however
// many rows there are. A process computes all its products so, or none: a row's bits do not depend on its company.
#pragma once

#include "product.h"

#if defined(__AMX_BF16__) && defined(__AVX512BW__) && defined(__linux__)
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

constexpr int64_t TILE_ROWS = 16, TILE_INPUTS = 32, BLOCK_ROWS = 2 * TILE_ROWS;

// Up to 32 rows as tiles read them: 32 inputs of all rows, then the next 32, with 0 after the last.
inline void tile_rows(const bf16* x, int64_t rows, int64_t d, bf16* tiled) {
  for (int64_t k = 0; k < d; k += TILE_INPUTS)
    for (int64_t i = 0; i < rows; i++, tiled += TILE_INPUTS)
      std::fill(std::copy(x + i * d + k, x + i * d + std::min(d, k + TILE_INPUTS), tiled), tiled + TILE_INPUTS, bf16{});
}

// Tells GCC, which knows only addresses of what tiles read, that the memory itself is read.
inline void mark_read(const void* memory) { asm volatile("" ::"r"(memory) : "memory"); }

// The tiles of a thread: sums 0 and 1 of the first 16 rows, 2 and 3 of the others; rows 4 and 5; weights 6 and 7.
class Tiles {
 public:
  ~Tiles() { _tile_release(); }

  // The sums of up to 32 tiled rows with a panel of so many steps; fetches as much as the panel has from `ahead` meanwhile.
  void multiply(const bf16* w, int64_t steps, const bf16* x, int64_t rows, float* sums, const char* ahead) {
    if (rows != rows_) resize(rows);
    rows > TILE_ROWS ? multiply<true>(w, steps, x, sums, ahead) : multiply<false>(w, steps, x, sums, ahead);
  }

 private:
  void resize(int64_t rows) {
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } shapes;
    int64_t first = std::min(rows, TILE_ROWS), second = rows - first;
    int64_t each[] = {first, first, second, second, first, second, TILE_ROWS, TILE_ROWS};
    for (int t = 0; t < 8; t++) shapes.rows[t] = each[t], shapes.bytes[t] = each[t] ? 64 : 0;
    mark_read(&shapes);
    _tile_loadconfig(&shapes);
    rows_ = rows;
  }

  template <bool BOTH>
  void multiply(const bf16* w, int64_t steps, const bf16* x, float* sums, const char* ahead) {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (BOTH) {
      _tile_zero(2);
      _tile_zero(3);
    }
    bf16 rest[TILE_ROWS * STEP<bf16>];
    for (int64_t step = 0; step < steps; step += TILE_ROWS, w += TILE_ROWS * STEP<bf16>, x += rows_ * TILE_INPUTS) {
      if (steps - step < TILE_ROWS) {
        std::fill(std::copy(w, w + (steps - step) * STEP<bf16>, rest), rest + TILE_ROWS * STEP<bf16>, bf16{});
        w = rest;
      }
      mark_read(w);
      _tile_loadd(4, x, 64);
      _tile_loadd(6, w, 128);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, w + 32, 128);
      _tile_dpbf16ps(1, 4, 7);
      if constexpr (BOTH) {
        _tile_loadd(5, x + TILE_ROWS * TILE_INPUTS, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
      if (ahead)
        for (int line = 0; line < 32; line++, ahead += 64) __builtin_prefetch(ahead, 0, 2);
    }
    _tile_stored(0, sums, 128);
    _tile_stored(1, sums + LANES, 128);
    if constexpr (BOTH) {
      _tile_stored(2, sums + TILE_ROWS * OUTPUTS, 128);
      _tile_stored(3, sums + TILE_ROWS * OUTPUTS + LANES, 128);
    }
  }

  int64_t rows_ = 0;
};

}  // namespace axon
#endif
