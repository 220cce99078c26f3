// The operators as torch calls them: sizes and dtypes from tensors, and threads from torch's own pool.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <optional>

#include "product.h"

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Maybe = std::optional<Tensor>;

namespace axon {
namespace {

// Calls work(first, last) for equal parts of 0 … n − 1 in torch's threads, at least `least` each.
template <typename Work>
void in_parts(int64_t n, int64_t least, const Work& work) {
  torch::stable::parallel_for(0, n, least, [&](int64_t first, int64_t last) { work(first, last); });
}

// Calls work(take) in torch's threads, where each call of take() returns another of 0 … n − 1, and n when none is left.
template <typename Work>
void in_turns(int64_t n, int64_t least, const Work& work) {
  int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), (n + least - 1) / least);
  std::atomic<int64_t> next{0};
  auto take = [&] { return std::min(next.fetch_add(1), n); };
  if (threads <= 1) return work(take);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) { work(take); });
}

const float* floats(const Maybe& x) { return x ? static_cast<const float*>(x->const_data_ptr()) : nullptr; }

template <typename T>
const float* widened_rows(const T* x, int64_t n, int64_t d, int64_t padded, std::optional<Buffer<float>>& buffer) {
  if constexpr (std::is_same_v<T, float>)
    if (d == padded) return x;
  buffer.emplace(n * padded);
  in_parts(n, 1 + (1 << 15) / (d + 1), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) {
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
  int64_t size = rows.d * OUTPUTS;
  in_turns(panels, 1 + (1 << 16) / (rows.n * size + 1), [&](auto take) {
    Buffer<float> sums(rows.n * OUTPUTS);
    for (int64_t p = take(), following; p < panels; p = following) {
      following = take();
      multiply_panel(w + p * size, rows, sums.data, w + following * size);
      int64_t o = p * OUTPUTS;
      finish(sums.data, rows.n, scale ? scale + o : scale, bias ? bias + o : bias, y + o, outputs, outputs - o);
    }
  });
}

template <typename T>
void multiply_all(const Tensor& x, const Tensor& weight, const float* scale, const float* bias, T* y, int64_t outputs) {
  int64_t n = x.size(0), d = x.size(1), panels = weight.size(0), padded = weight.size(1) * weight.size(3);
  const void* w = weight.const_data_ptr();
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
  in_parts(n, 1 + (1 << 14) / (d + 1), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++)
      round_row(wide + i * padded, padded, whole.data + i * padded, scales.data + i * rows.pieces());
  });
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

}  // namespace
}  // namespace axon

STABLE_TORCH_LIBRARY_IMPL(axon, CPU, m) { m.impl("packed_product", TORCH_BOX(&axon::packed_product)); }

extern "C" int axon_lanes() { return axon::LANES; }
