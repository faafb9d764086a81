// SPDX-License-Identifier: MIT
// Weights: fake quantization (scale = max|w| / (2^(b-1) - 1), code = round_half_even(w / scale)),
// the layouts that the convolution kernels read, and the way back: straight through, plus the
// scale's gradient at the largest |w|, 0 where masked. A kernel does its part for all layers: there
// are few weights, and a launch takes longer than they do.
#include <algorithm>
#include <limits>
#include <stdexcept>
#include <vector>

#include "kernels/cuda/conv1d.h"
#include "kernels/cuda/device_code.h"

namespace fmp::cuda {
namespace {

__device__ __forceinline__ bool alive(const uint8_t* mask, size_t i) {
  return mask == nullptr || mask[i] != 0;
}

// What a layer's row of blocks does: compile(), backward().
struct Job {
  const float* weight;
  const uint8_t* mask;
  float* codes;
  Weights::Status* status;
  size_t count;
  float largest_code;  // 0: the weights are floats
  float* grad;
  const double* scale_gradient;
  double* partial;  // a sum of each block
  unsigned* ties;
};
struct Jobs {
  Job of[kLayersAtOnce];
};

__global__ void reset_status(Jobs jobs) { *jobs.of[thread_x()].status = Weights::Status{}; }

// Maxima and counts do not depend on order, so that atomics of integers may find them.
__global__ void __launch_bounds__(kBlockThreads) find_largest(Jobs jobs) {
  const Job& job = jobs.of[block_y()];
  const size_t i = global_x();
  const float value = i < job.count && alive(job.mask, i) ? fabsf(job.weight[i]) : 0.0F;
  const unsigned bits = __float_as_uint(value);
  constexpr unsigned kInfinity = 0x7f800000U;
  unsigned largest = bits < kInfinity ? bits : 0U;
  for (int step = kWarpLanes / 2; step > 0; step /= 2) {
    largest = max(largest, __shfl_xor_sync(kWholeWarp, largest, step));
  }
  const unsigned bad = __ballot_sync(kWholeWarp, bits >= kInfinity);
  if (thread_x() % kWarpLanes == 0) {
    if (largest != 0) atomicMax(&job.status->largest_bits, largest);
    if (bad != 0) atomicOr(&job.status->not_finite, 1U);
  }
}

__global__ void __launch_bounds__(kBlockThreads) quantize(Jobs jobs) {
  const Job& job = jobs.of[block_y()];
  const bool quantized = job.largest_code != 0.0F;
  const float largest = __uint_as_float(job.status->largest_bits);
  const float scale = quantized ? fmaxf(largest, kMinQuantizerRange) / job.largest_code : 1.0F;
  const size_t i = global_x();
  if (i == 0) job.status->scale = scale;
  float code = i < job.count && alive(job.mask, i) ? job.weight[i] : 0.0F;
  if (quantized) code = rintf(code / scale);
  if (i < job.count) job.codes[i] = code;
  const unsigned votes = __ballot_sync(kWholeWarp, code != 0.0F);
  if (thread_x() % kWarpLanes != 0) return;
  unsigned nonzeros = 0;
  for (unsigned v = votes; v != 0; v &= v - 1) ++nonzeros;
  if (nonzeros != 0) atomicAdd(&job.status->nonzeros, nonzeros);
}

// values[tap][quad of in][4][out]
__global__ void __launch_bounds__(kBlockThreads)
    pack_values(Packing p, const float* codes, int count, float* values) {
  const int i = static_cast<int>(global_x());
  if (i >= count) return;
  const int channels = p.quads() * kQuad, stride = p.out_stride();
  const int out = i % stride, c = i / stride % channels, tap = i / stride / channels;
  values[i] = out < p.out && c < p.in ? codes[p.place(out, tap, c)] : 0.0F;
}

__global__ void __launch_bounds__(kBlockThreads)
    gather_values(int count, const int* places, const float* codes, const float* scale,
                  float* values) {
  const int i = static_cast<int>(global_x());
  if (i >= count) return;
  const float value = codes[places[i]];
  values[i] = scale != nullptr ? value * *scale : value;
}

// Zeroes masked gradients and adds up, per block, what the scale receives and how many weights
// share the largest magnitude.
__global__ void __launch_bounds__(kBlockThreads) scale_gradient(Jobs jobs) {
  const Job& job = jobs.of[block_y()];
  const size_t i = global_x();
  if (i - static_cast<size_t>(thread_x()) >= job.count) return;  // the whole block
  double gradient = 0;
  unsigned tie = 0;
  if (i < job.count) {
    if (!alive(job.mask, i)) {
      job.grad[i] = 0;
    } else {
      gradient = static_cast<double>(job.grad[i]) *
                 (static_cast<double>(job.codes[i]) -
                  static_cast<double>(job.weight[i]) / static_cast<double>(job.status->scale));
      tie = fabsf(job.weight[i]) == __uint_as_float(job.status->largest_bits) ? 1 : 0;
    }
  }
  const double sum = block_sum(gradient);
  const unsigned tie_sum = block_sum(tie);
  if (thread_x() == 0) {
    job.partial[block_x()] = sum;
    job.ties[block_x()] = tie_sum;
  }
}

// partial[0] becomes each tie's share of the scale's gradient.
__global__ void share_gradient(Jobs jobs) {
  const Job& job = jobs.of[block_y()];
  if (job.largest_code == 0.0F) return;
  double sum = job.scale_gradient != nullptr ? *job.scale_gradient : 0.0;
  unsigned count = 0;
  for (size_t b = 0; b * kBlockThreads < job.count; ++b) {
    sum += job.partial[b];
    count += job.ties[b];
  }
  job.partial[0] = count == 0 ? 0.0 : sum / static_cast<double>(job.largest_code) / count;
}

__global__ void __launch_bounds__(kBlockThreads) add_share(Jobs jobs) {
  const Job& job = jobs.of[block_y()];
  const size_t i = global_x();
  if (job.largest_code == 0.0F || i >= job.count || !alive(job.mask, i)) return;
  const float w = job.weight[i];
  if (w == 0.0F || fabsf(w) != __uint_as_float(job.status->largest_bits)) return;
  const double share = job.partial[0];
  job.grad[i] += static_cast<float>(w > 0.0F ? share : -share);
}

float largest_code(const LayerShape& layer) {
  return layer.weight_bits == kFloatBits ? 0.0F
                                         : static_cast<float>((1 << (layer.weight_bits - 1)) - 1);
}

Shape over(size_t count) { return {dim3(blocks_for(count, kBlockThreads)), dim3(kBlockThreads)}; }

// Calls f with as many at a time as a launch takes.
template <typename T, typename F>
void for_all(std::span<T> layers, const F& f) {
  for (; !layers.empty(); layers = layers.subspan(std::min<size_t>(layers.size(), kLayersAtOnce))) {
    f(layers.first(std::min<size_t>(layers.size(), kLayersAtOnce)));
  }
}

// Rows of a sparse matrix [out][tap][in] on the host, as Weights::Sparse holds it.
struct SparseList {
  std::vector<int> row_begin{0}, entry, place;

  SparseList(int out, int taps, int in, bool transposed, std::span<const uint8_t> mask) {
    for (int o = 0; o < out; ++o) {
      for (int t = 0; t < taps; ++t) {
        for (int c = 0; c < in; ++c) {
          const int at = transposed ? (c * taps + taps - 1 - t) * out + o : (o * taps + t) * in + c;
          if (!mask.empty() && mask[static_cast<size_t>(at)] == 0) continue;
          entry.push_back(t << 16 | c);
          place.push_back(at);
        }
      }
      row_begin.push_back(static_cast<int>(entry.size()));
    }
  }
};

template <typename Sparse>
void upload(const SparseList& list, Sparse& sparse, Stream stream) {
  sparse.row_begin = DeviceBuffer<int>(list.row_begin, stream);
  sparse.entry = DeviceBuffer<int>(list.entry, stream);
  sparse.place = DeviceBuffer<int>(list.place, stream);
  sparse.value = DeviceBuffer<float>(list.entry.size());
}

}  // namespace

void Weights::set_mask(const ConvShape& shape, std::span<const uint8_t> mask, Stream stream) {
  mask_ = DeviceBuffer<uint8_t>(mask, stream);
  const SparseList forward(shape.out_channels, shape.taps, shape.in_channels, false, mask);
  upload(forward, forward_sparse_, stream);
  // As backward_data() sees it: a dense layer's inputs are all channels of one row.
  const int inputs = shape.same_padding ? shape.in_channels : shape.taps * shape.in_channels;
  const SparseList backward(inputs, shape.same_padding ? shape.taps : 1, shape.out_channels, true,
                            mask);
  upload(backward, backward_sparse_, stream);
  std::vector<int> begin{0}, row;
  for (int o = 0; o < shape.out_channels; ++o) {
    const int end = forward.row_begin[static_cast<size_t>(o) + 1];
    while (begin.back() < end) {
      begin.push_back(std::min(begin.back() + kGroup, end));
      row.push_back(o);
    }
  }
  group_begin_ = DeviceBuffer<int>(begin, stream);
  group_row_ = DeviceBuffer<int>(row, stream);
  if (libraries_ != nullptr) {
    const int in = shape.same_padding ? shape.in_channels : inputs;
    const int taps = shape.same_padding ? shape.taps : 1;
    forward_taps_ = tap_matrices(shape.out_channels, taps, in, false, mask, stream);
    backward_taps_ = tap_matrices(inputs, taps, shape.out_channels, true, mask, stream);
  }
  synchronize(stream);  // the lists on the host end here
}

void Weights::gather(const DeviceBuffer<int>& place, const DeviceBuffer<float>& value, bool scaled,
                     Stream stream) const {
  const size_t count = place.size();
  if (count == 0) return;
  launch(Where("gather_values", native(stream)), over(count), gather_values,
         static_cast<int>(count), place.data(), codes_.data(),
         scaled ? scale() : static_cast<const float*>(nullptr), value.data());
}

void Weights::prepare(const LayerShape& layer, const ConvShape& shape, const float* weight,
                      bool integer_input, const PassPlan& plan, bool backward, Stream stream) {
  layer_ = layer;
  shape_ = shape;
  plan_ = plan;
  weight_ = weight;
  backward_ = backward;
  quantized_ = layer.weight_bits != kFloatBits;
  integers_ = quantized_ && integer_input;
  check_plan(stream);
  const size_t count = static_cast<size_t>(layer.weights());
  const unsigned blocks = blocks_for(count, kBlockThreads);
  status_.reserve(1);
  codes_.reserve(count);
  if (!backward) return;
  scale_partial_.reserve(blocks);
  ties_partial_.reserve(blocks);
}

void Weights::compile(std::span<Weights* const> layers, Stream stream) {
  for_all(layers, [&](std::span<Weights* const> some) {
    Jobs jobs{};
    size_t largest = 0;
    for (size_t i = 0; i < some.size(); ++i) {
      const Weights& w = *some[i];
      const size_t count = static_cast<size_t>(w.layer_.weights());
      jobs.of[i] = {w.weight_,        w.mask_.data(), w.codes_.data(),
                    w.status_.data(), count,          largest_code(w.layer_),
                    nullptr,          nullptr,        nullptr,
                    nullptr};
      largest = std::max(largest, count);
    }
    const cudaStream_t on = native(stream);
    const auto rows = static_cast<unsigned>(some.size());
    const Shape shape{dim3(blocks_for(largest, kBlockThreads), rows), dim3(kBlockThreads)};
    launch(Where("reset_status", on), Shape{dim3(1), dim3(rows)}, reset_status, jobs);
    launch(Where("find_largest", on), shape, find_largest, jobs);
    launch(Where("quantize", on), shape, quantize, jobs);
    compile_for_tensor_cores(some, stream);
    for (Weights* w : some) w->compile_for_others(stream);
  });
}

// What no kernel does for all layers at once.
void Weights::compile_for_others(Stream stream) {
  compile_for_libraries(backward_, stream);
  const auto pack = [&](const Packing& p, DeviceBuffer<float>& values) {
    const size_t n =
        static_cast<size_t>(p.taps * p.quads() * kQuad) * static_cast<size_t>(p.out_stride());
    launch(Where("pack_values", native(stream)), over(n), pack_values, p, codes_.data(),
           static_cast<int>(n), values.reserve(n));
  };
  if (plan_.forward == Kernel::kSparse) {
    gather(forward_sparse_.place, forward_sparse_.value, false, stream);
  } else if (plan_.forward == Kernel::kDense && !integers_) {
    pack(packing_of(shape_, false), forward_values_);
  }
  if (!backward_) return;
  if (plan_.backward_data == Kernel::kSparse) {
    gather(backward_sparse_.place, backward_sparse_.value, true, stream);
  } else if (plan_.backward_data == Kernel::kDense && !quantized_) {
    pack(packing_of(shape_, true), backward_values_);
  }
}

Weights::Summary Weights::summary(Stream stream) const {
  const Status status = status_.to_host(stream)[0];
  if (status.not_finite != 0) throw std::domain_error("a weight is not finite");
  return {status.scale, status.nonzeros};
}

void Weights::backward(std::span<const WeightGradient> layers, Stream stream) {
  for_all(layers, [&](std::span<const WeightGradient> some) {
    Jobs jobs{};
    size_t largest = 0;
    for (size_t i = 0; i < some.size(); ++i) {
      const Weights& w = *some[i].weights;
      const size_t count = static_cast<size_t>(w.layer_.weights());
      jobs.of[i] = {w.weight_,
                    w.mask_.data(),
                    w.codes_.data(),
                    w.status_.data(),
                    count,
                    largest_code(w.layer_),
                    some[i].grad,
                    some[i].scale_gradient,
                    w.scale_partial_.data(),
                    w.ties_partial_.data()};
      largest = std::max(largest, count);
    }
    const cudaStream_t on = native(stream);
    const auto rows = static_cast<unsigned>(some.size());
    const Shape shape{dim3(blocks_for(largest, kBlockThreads), rows), dim3(kBlockThreads)};
    launch(Where("scale_gradient", on), shape, scale_gradient, jobs);
    launch(Where("share_gradient", on), Shape{dim3(1, rows), dim3(1)}, share_gradient, jobs);
    launch(Where("add_share", on), shape, add_share, jobs);
  });
}

}  // namespace fmp::cuda
