// Activations, of which every number is computed in the same way wherever it stands.
#pragma once

#include "vectors.h"

namespace axon {

// x / (1 + e^−x), from e^−|x|, which cannot overflow.
inline Floats silu(Floats x) {
  Floats e = exponential(x < all(0.0f) ? x : -x);
  return x * (x < all(0.0f) ? e : all(1.0f)) / (all(1.0f) + e);
}

// silu(gate) ⊙ up, rounded to their dtype before the product, as torch does.
template <typename T>
void gate_row(const T* gate, const T* up, int64_t d, T* y) {
  for (int64_t k = 0; k < d; k += LANES) {
    int64_t some = std::min<int64_t>(d - k, LANES);
    T rounded[LANES];
    write(rounded, silu(read_some(gate + k, some)));
    Floats v = read(rounded) * read_some(up + k, some);
    some == LANES ? write(y + k, v) : write_some(y + k, v, some);
  }
}

}  // namespace axon
