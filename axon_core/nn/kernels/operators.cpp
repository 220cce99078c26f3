// The operators as torch calls them: sizes and dtypes from tensors, and as many threads as torch uses.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "activation.h"
#include "amx.h"
#include "attention.h"
#include "choice.h"
#include "levels.h"
#include "product.h"
#include "threads.h"

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Maybe = std::optional<Tensor>;

namespace axon {
namespace {

// Calls work(take) in as many threads as torch uses.
template <typename Work>
void in_turns(int64_t n, int64_t least, const Work& work) {
  take_turns(n, least, torch::stable::get_num_threads(), work);
}

const float* floats(const Maybe& x) { return x ? static_cast<const float*>(x->const_data_ptr()) : nullptr; }

template <typename T>
const float* widened_rows(const T* x, int64_t n, int64_t d, int64_t padded, std::optional<Buffer<float>>& buffer) {
  if constexpr (std::is_same_v<T, float>)
    if (d == padded) return x;
  buffer.emplace(n * padded);
  in_turns(n, 1 + (1 << 15) / (d + 1), [&](auto take) {
    for (int64_t i; (i = take()) < n;) {
      float* to = buffer->data + i * padded;
      for (int64_t k = 0; k < padded; k += LANES) {
        Floats v = read_some(x + i * d + k, std::clamp<int64_t>(d - k, 0, LANES));
        padded - k < LANES ? write_some(to + k, v, padded - k) : write(to + k, v);
      }
    }
  });
  return buffer->data;
}

template <typename W, typename T>
void multiply_rows(const W* w, int64_t panels, const Rows<W>& rows, const float* scale, const float* bias, T* y, int64_t outputs) {
  int64_t size = rows.d * OUTPUTS, at_once = panels_at_once<W>(rows.n), turns = (panels + at_once - 1) / at_once;
  in_turns(turns, 1 + (1 << 16) / (rows.n * size * at_once + 1), [&](auto take) {
    Buffer<float> sums(at_once * rows.n * OUTPUTS);
    for (int64_t turn = take(), following; turn < turns; turn = following) {
      following = take();
      int64_t p = turn * at_once, some = std::min(at_once, panels - p);
      const W* next = w + following * at_once * size;
      some == 2 ? multiply_panels<2>(w + p * size, rows, sums.data, next) : multiply_panels<1>(w + p * size, rows, sums.data, next);
      for (int64_t own = 0; own < some; own++) {
        int64_t o = (p + own) * OUTPUTS;
        finish(sums.data + own * rows.n * OUTPUTS, rows.n, scale ? scale + o : scale, bias ? bias + o : bias, y + o, outputs,
               outputs - o);
      }
    }
  });
}

#ifdef AXON_AMX
// Multiplies every block of rows with a panel before the next panel, which is fetched during the first.
template <typename W, typename X, typename T>
void multiply_in_tiles(const W* w, int64_t panels, int64_t steps, const X* x, const float* scales, int64_t n, int64_t d,
                       const float* scale, const float* bias, T* y, int64_t outputs) {
  constexpr int64_t most = TileKind<W>::BLOCK, inputs = TileKind<W>::INPUTS;
  int64_t size = steps * STEP<W>, padded = (d + inputs - 1) / inputs * inputs, blocks = (n + most - 1) / most;
  int64_t pieces = (d + Kind<W>::INPUTS - 1) / Kind<W>::INPUTS;
  Buffer<X> tiled(n * padded);
  auto rows_of = [&](int64_t block) { return std::min(n - block * most, most); };
  auto block_at = [&](int64_t block) { return tiled.data + block * most * padded; };
  in_turns(blocks, 1 + (1 << 15) / (most * d + 1), [&](auto take) {
    for (int64_t block; (block = take()) < blocks;) tile_rows(x + block * most * d, rows_of(block), d, block_at(block));
  });
  in_turns(panels, 1 + (1 << 16) / (n * size + 1), [&](auto take) {
    Tiles tiles;
    alignas(64) float sums[most * OUTPUTS];
    for (int64_t p = take(), following; p < panels; p = following) {
      following = take();
      const char* ahead = reinterpret_cast<const char*>(w + following * size);
      int64_t o = p * OUTPUTS;
      for (int64_t block = 0; block < blocks; block++, ahead = nullptr) {
        int64_t rows = rows_of(block), i = block * most;
        multiply_block(tiles, w + p * size, steps, block_at(block), scales ? scales + i * pieces : scales, rows, sums, ahead);
        finish(sums, rows, scale ? scale + o : scale, bias ? bias + o : bias, y + i * outputs + o, outputs, outputs - o);
      }
    }
  });
}
#endif

template <typename T>
void multiply_all(const Tensor& x, const Tensor& weight, const float* scale, const float* bias, T* y, int64_t outputs) {
  int64_t n = x.size(0), d = x.size(1), panels = weight.size(0), padded = weight.size(1) * weight.size(3);
  const void* w = weight.const_data_ptr();
#ifdef AXON_AMX
  if constexpr (std::is_same_v<T, bf16>)
    if (weight.scalar_type() == ScalarType::BFloat16 && has_tiles())
      return multiply_in_tiles(static_cast<const bf16*>(w), panels, weight.size(1),
                               static_cast<const bf16*>(x.const_data_ptr()), nullptr, n, d, scale, bias, y, outputs);
#endif
  std::optional<Buffer<float>> buffer;
  const float* wide = widened_rows(static_cast<const T*>(x.const_data_ptr()), n, d, padded, buffer);
  if (weight.scalar_type() == ScalarType::Float)
    return multiply_rows(static_cast<const float*>(w), panels, {wide, n, padded}, scale, bias, y, outputs);
  if (weight.scalar_type() == ScalarType::BFloat16)
    return multiply_rows(static_cast<const bf16*>(w), panels, {wide, n, padded}, scale, bias, y, outputs);
  Buffer<int16_t> whole(n * padded);
  Rows<int8_t> rows{whole.data, n, padded};
  Buffer<float> scales(n * rows.pieces());
  rows.scales = scales.data;
  in_turns(n, 1 + (1 << 14) / (d + 1), [&](auto take) {
    for (int64_t i; (i = take()) < n;)
      round_row(wide + i * padded, padded, whole.data + i * padded, scales.data + i * rows.pieces());
  });
#ifdef AXON_AMX
  if (n > 4 && has_tiles())  // registers read the weights for fewer as fast
    return multiply_in_tiles(static_cast<const int8_t*>(w), panels, weight.size(1), whole.data, scales.data, n, padded, scale,
                             bias, y, outputs);
#endif
  multiply_rows(static_cast<const int8_t*>(w), panels, rows, scale, bias, y, outputs);
}

Tensor packed_product(const Tensor& x, const Tensor& weight, const Maybe& scale, const Maybe& bias, int64_t outputs) {
  STD_TORCH_CHECK(x.is_contiguous() && weight.is_contiguous(), "packed products read contiguous tensors");
  Tensor y = torch::stable::new_empty(x, {x.size(0), outputs});
  if (!x.size(0)) return y;
  if (x.scalar_type() == ScalarType::Float)
    multiply_all(x, weight, floats(scale), floats(bias), static_cast<float*>(y.mutable_data_ptr()), outputs);
  else
    multiply_all(x, weight, floats(scale), floats(bias), static_cast<bf16*>(y.mutable_data_ptr()), outputs);
  return y;
}

template <typename S, typename T>
void multiply_codes(const Tensor& x, const Coded<S>& weight, int64_t block, int64_t first, const float* bias, Tensor& y) {
  int64_t n = x.size(0), d = weight.d, outputs = y.size(1), stride = (d + GROUP - 1) / GROUP * GROUP;
  const T* from = static_cast<const T*>(x.const_data_ptr());
  T* to = static_cast<T*>(y.mutable_data_ptr());
  Buffer<float> arranged(n * stride);
  in_turns(n, 1 + (1 << 14) / (d + 1), [&](auto take) {
    for (int64_t i; (i = take()) < n;) arrange_row(from + i * d, d, arranged.data + i * stride);
  });
  int64_t step = std::max<int64_t>(16, (1 << 16) / d / 4 * 4);  // outputs of a turn: 32 KB of codes
  int64_t turns = (outputs + step - 1) / step;
  in_turns(turns, 1 + (1 << 16) / (n * step * d + 1), [&](auto take) {
    auto run = [&]<int P>() {
      for (int64_t turn; (turn = take()) < turns;) {
        int64_t o = turn * step, last = std::min(o + step, outputs);
        multiply_coded_rows<P>(weight, first + o, first + last, arranged.data, n, stride, bias ? bias + o : bias, to + o, outputs);
      }
    };
    switch (blocks_of_groups(d, block)) {
      case 1: run.template operator()<1>(); break;
      case 2: run.template operator()<2>(); break;
      case 4: run.template operator()<4>(); break;
      default: run.template operator()<0>();
    }
  });
}

// Calls run(a pointer of the scales' type).
template <typename Run>
void with_scales(const Tensor& scales, const Run& run) {
  if (scales.scalar_type() == ScalarType::Float)
    run(static_cast<const float*>(scales.const_data_ptr()));
  else
    run(static_cast<const bf16*>(scales.const_data_ptr()));
}

Tensor coded_product(const Tensor& x, const Tensor& codes, const Tensor& scales, const Tensor& levels, const Maybe& bias,
                     int64_t block, int64_t first, int64_t outputs) {
  for (const Tensor& each : {x, codes, scales, levels})
    STD_TORCH_CHECK(each.is_contiguous(), "products with codes read contiguous tensors");
  int64_t d = x.size(1);
  STD_TORCH_CHECK(d % 8 == 0 && block % 8 == 0, "rows and blocks of codes must be multiples of 8");
  STD_TORCH_CHECK((first + outputs) * d <= 2 * codes.numel() && (first + outputs) * d <= block * scales.numel(),
                  "the rows must lie in the codes");
  Tensor y = torch::stable::new_empty(x, {x.size(0), outputs});
  if (!x.size(0)) return y;
  with_scales(scales, [&]<typename S>(const S* from) {
    Coded<S> weight{static_cast<const uint8_t*>(codes.const_data_ptr()), {from, block}, Levels(floats(levels)), d};
    x.scalar_type() == ScalarType::Float ? multiply_codes<S, float>(x, weight, block, first, floats(bias), y)
                                         : multiply_codes<S, bf16>(x, weight, block, first, floats(bias), y);
  });
  return y;
}

Tensor widen_levels(const Tensor& codes, const Tensor& scales, const Tensor& levels, int64_t block, int64_t first, int64_t count,
                    bool narrow) {
  for (const Tensor& each : {codes, scales, levels}) STD_TORCH_CHECK(each.is_contiguous(), "codes are read in order");
  STD_TORCH_CHECK(block % 16 == 0 && first >= 0 && first + count <= 2 * codes.numel() && first + count <= block * scales.numel(),
                  "the weights must lie in the codes, and a block be a multiple of 16");
  Tensor y = torch::stable::new_empty(levels, {count}, narrow ? ScalarType::BFloat16 : ScalarType::Float);
  constexpr int64_t STEP = 1 << 14;  // weights of a turn, a multiple of 16
  int64_t begin = first / STEP, turns = (first + count + STEP - 1) / STEP - begin;
  with_scales(scales, [&]<typename S>(const S* from) {
    auto run = [&]<typename T>(T* to) {
      in_turns(turns, 2, [&](auto take) {
        for (int64_t turn; (turn = take()) < turns;) {
          int64_t at = std::max(first, (begin + turn) * STEP), end = std::min(first + count, (begin + turn + 1) * STEP);
          widen_codes(static_cast<const uint8_t*>(codes.const_data_ptr()), Scales<S>{from, block}, floats(levels), at, end - at,
                      to + at - first);
        }
      });
    };
    narrow ? run(static_cast<bf16*>(y.mutable_data_ptr())) : run(static_cast<float*>(y.mutable_data_ptr()));
  });
  return y;
}

// The largest number of keys that a token sees; every block of a table that one sees must exist.
int64_t check_tables(const Tensor& tables, const int32_t* rows, const int32_t* seen, int64_t n, int64_t blocks, int64_t size) {
  const int32_t* table = static_cast<const int32_t*>(tables.const_data_ptr());
  int64_t sequences = tables.size(0), most = tables.size(1), largest = 0;
  std::vector<int64_t> longest(sequences);
  for (int64_t i = 0; i < n; i++) {
    STD_TORCH_CHECK(rows[i] >= 0 && rows[i] < sequences && seen[i] <= most * size,
                    "a token's row must be one of the tables, and its keys lie in the table's blocks");
    longest[rows[i]] = std::max<int64_t>(longest[rows[i]], seen[i]);
    largest = std::max<int64_t>(largest, seen[i]);
  }
  for (int64_t row = 0; row < sequences; row++)
    for (int64_t b = 0; b * size < longest[row]; b++) {
      int32_t block = table[row * most + b];
      STD_TORCH_CHECK(block >= 0 && block < blocks, "a table names a block that does not exist");
    }
  return largest;
}

template <typename T, typename Q>
void attend_all(const Tensor& q, const Tensor& keys, const Tensor& values, const Tensor& tables, const int32_t* rows,
                const int32_t* seen, int64_t window, float scale, const Maybe& bias, Tensor& out) {
  int64_t n = q.size(0), h = q.size(1), d = q.size(2), size = keys.size(1), groups = keys.size(2), e = values.size(3);
  int64_t heads = h / groups, longest = check_tables(tables, rows, seen, n, keys.size(0), size);
  STD_TORCH_CHECK(!bias || bias->size(2) >= longest, "a bias must reach as many keys as any token sees");
  Pool<T> k{static_cast<const T*>(keys.const_data_ptr()), size, groups, d};
  Pool<T> v{static_cast<const T*>(values.const_data_ptr()), size, groups, e};
  const Q* from = static_cast<const Q*>(q.const_data_ptr());
  Q* to = static_cast<Q*>(out.mutable_data_ptr());
  int64_t apart = bias && bias->size(1) > 1 ? bias->size(2) : 0, per_token = bias ? bias->size(1) * bias->size(2) : 0;
  int64_t each = heads * (d + e) * (longest + 1);
  in_turns(n * groups, 1 + (1 << 16) / each, [&](auto take) {
    Buffer<float> room(QUERIES * (padded(d) + padded(longest)));
    for (int64_t unit; (unit = take()) < n * groups;) {
      int64_t i = unit / groups, g = unit % groups, last = seen[i];
      Span span{static_cast<const int32_t*>(tables.const_data_ptr()) + rows[i] * tables.size(1),
                window ? std::max<int64_t>(0, last - window) : 0, last};
      for (int64_t head = g * heads; head < (g + 1) * heads;) {
        auto run = [&]<int R>() {
          const float* added = bias ? floats(bias) + i * per_token + head * apart : nullptr;
          attend_heads<R>(from + (i * h + head) * d, k, v, g, span, scale, added, apart, room.data, to + (i * h + head) * e);
          head += R;
        };
        int64_t left = (g + 1) * heads - head;
        if (last <= span.first)
          std::fill(to + (i * h + head) * e, to + (i * h + head + left) * e, Q{}), head += left;
        else if (left >= 3)
          run.template operator()<3>();
        else if (left == 2)
          run.template operator()<2>();
        else
          run.template operator()<1>();
      }
    }
  });
}

Tensor attend_blocks(const Tensor& q, const Tensor& keys, const Tensor& values, const Tensor& tables, const Tensor& rows,
                     const Tensor& seen, std::optional<int64_t> window, double scale, const Maybe& bias) {
  for (const Tensor& x : {q, keys, values, tables, rows, seen})
    STD_TORCH_CHECK(x.is_contiguous(), "attention over blocks reads contiguous tensors");
  STD_TORCH_CHECK(!bias || bias->is_contiguous(), "attention over blocks reads contiguous tensors");
  Tensor out = torch::stable::new_empty(q, {q.size(0), q.size(1), values.size(3)});
  auto run = [&]<typename T, typename Q>(T, Q) {
    attend_all<T, Q>(q, keys, values, tables, static_cast<const int32_t*>(rows.const_data_ptr()),
                     static_cast<const int32_t*>(seen.const_data_ptr()), window.value_or(0), float(scale), bias, out);
  };
  bool narrow = keys.scalar_type() == ScalarType::BFloat16;
  if (q.scalar_type() == ScalarType::Float)
    narrow ? run(bf16{}, float{}) : run(float{}, float{});
  else
    narrow ? run(bf16{}, bf16{}) : run(float{}, bf16{});
  return out;
}

template <typename T>
void gate_rows(const Tensor& gate, const Tensor& up, Tensor& y) {
  int64_t n = gate.size(0), d = gate.size(1), above = gate.stride(0), below = up.stride(0);
  const T *a = static_cast<const T*>(gate.const_data_ptr()), *b = static_cast<const T*>(up.const_data_ptr());
  T* to = static_cast<T*>(y.mutable_data_ptr());
  in_turns(n, 1 + (1 << 14) / (d + 1), [&](auto take) {
    for (int64_t i; (i = take()) < n;) gate_row(a + i * above, b + i * below, d, to + i * d);
  });
}

Tensor gated_silu(const Tensor& gate, const Tensor& up) {
  STD_TORCH_CHECK(gate.size(0) == up.size(0) && gate.size(1) == up.size(1), "a gate and what it opens are of one shape");
  STD_TORCH_CHECK(gate.stride(1) == 1 && up.stride(1) == 1, "gates are read in contiguous rows");
  Tensor y = torch::stable::new_empty(gate, {gate.size(0), gate.size(1)});
  gate.scalar_type() == ScalarType::Float ? gate_rows<float>(gate, up, y) : gate_rows<bf16>(gate, up, y);
  return y;
}

template <typename T>
void best_rows(const Tensor& logits, int64_t k, int64_t limit, int64_t except, float* logprobs, int64_t* ids) {
  int64_t n = logits.size(0), v = logits.size(1);
  const T* x = static_cast<const T*>(logits.const_data_ptr());
  in_turns(n, 1 + (1 << 14) / (v + 1), [&](auto take) {
    Best best(k);
    for (int64_t i; (i = take()) < n;) best_of_row(x + i * v, v, limit, except, k, best, logprobs + i * k, ids + i * k);
  });
}

std::tuple<Tensor, Tensor> best_tokens(const Tensor& logits, int64_t k, int64_t limit, int64_t except) {
  STD_TORCH_CHECK(logits.is_contiguous() && k > 0 && limit <= logits.size(1), "the best of contiguous rows are chosen");
  Tensor logprobs = torch::stable::new_empty(logits, {logits.size(0), k}, ScalarType::Float);
  Tensor ids = torch::stable::new_empty(logits, {logits.size(0), k}, ScalarType::Long);
  auto *scores = static_cast<float*>(logprobs.mutable_data_ptr());
  auto *chosen = static_cast<int64_t*>(ids.mutable_data_ptr());
  logits.scalar_type() == ScalarType::Float ? best_rows<float>(logits, k, limit, except, scores, chosen)
                                            : best_rows<bf16>(logits, k, limit, except, scores, chosen);
  return {logprobs, ids};
}

}  // namespace
}  // namespace axon

STABLE_TORCH_LIBRARY_IMPL(axon, CPU, m) {
  m.impl("packed_product", TORCH_BOX(&axon::packed_product));
  m.impl("coded_product", TORCH_BOX(&axon::coded_product));
  m.impl("widen_levels", TORCH_BOX(&axon::widen_levels));
  m.impl("gated_silu", TORCH_BOX(&axon::gated_silu));
  m.impl("best_tokens", TORCH_BOX(&axon::best_tokens));
  m.impl("attend_blocks", TORCH_BOX(&axon::attend_blocks));
}

extern "C" int axon_lanes() { return axon::LANES; }
