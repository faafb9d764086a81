// SPDX-License-Identifier: MIT
// Weights: fake quantization (scale = max|w| / (2^(b-1) - 1), code = round_half_even(w / scale)),
// the layouts that the convolution kernels read, and the way back: straight through, plus the
// scale's gradient at the largest |w|, 0 where masked.
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

// Maxima and counts do not depend on order, so that atomics of integers may find them.
__global__ void __launch_bounds__(kBlockThreads)
    find_largest(const float* weight, const uint8_t* mask, size_t count, Weights::Status* status) {
  const size_t i = global_x();
  const float value = i < count && alive(mask, i) ? fabsf(weight[i]) : 0.0F;
  const unsigned bits = __float_as_uint(value);
  constexpr unsigned kInfinity = 0x7f800000U;
  unsigned largest = bits < kInfinity ? bits : 0U;
  for (int step = kWarpLanes / 2; step > 0; step /= 2) {
    largest = max(largest, __shfl_xor_sync(kWholeWarp, largest, step));
  }
  const unsigned bad = __ballot_sync(kWholeWarp, bits >= kInfinity);
  if (thread_x() % kWarpLanes == 0) {
    atomicMax(&status->largest_bits, largest);
    if (bad != 0) atomicOr(&status->not_finite, 1U);
  }
}

__global__ void __launch_bounds__(kBlockThreads)
    set_scale(float largest_code, Weights::Status* status) {
  status->scale =
      largest_code == 0.0F
          ? 1.0F
          : fmaxf(__uint_as_float(status->largest_bits), kMinQuantizerRange) / largest_code;
}

__global__ void __launch_bounds__(kBlockThreads)
    quantize(const float* weight, const uint8_t* mask, size_t count, bool quantized, float* codes,
             Weights::Status* status) {
  const size_t i = global_x();
  float code = i < count && alive(mask, i) ? weight[i] : 0.0F;
  if (quantized) code = rintf(code / status->scale);
  if (i < count) codes[i] = code;
  const unsigned votes = __ballot_sync(kWholeWarp, code != 0.0F);
  if (thread_x() % kWarpLanes != 0) return;
  unsigned nonzeros = 0;
  for (unsigned v = votes; v != 0; v &= v - 1) ++nonzeros;
  atomicAdd(&status->nonzeros, nonzeros);
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
__global__ void __launch_bounds__(kBlockThreads)
    scale_gradient(const float* weight, const uint8_t* mask, const float* codes, size_t count,
                   const Weights::Status* status, float* grad, double* partial, unsigned* ties) {
  const size_t i = global_x();
  double gradient = 0;
  unsigned tie = 0;
  if (i < count) {
    if (!alive(mask, i)) {
      grad[i] = 0;
    } else {
      gradient = static_cast<double>(grad[i]) *
                 (static_cast<double>(codes[i]) -
                  static_cast<double>(weight[i]) / static_cast<double>(status->scale));
      tie = fabsf(weight[i]) == __uint_as_float(status->largest_bits) ? 1 : 0;
    }
  }
  const double sum = block_sum(gradient);
  const unsigned tie_sum = block_sum(tie);
  if (thread_x() == 0) {
    partial[blockIdx.x] = sum;
    ties[blockIdx.x] = tie_sum;
  }
}

// partial[0] becomes each tie's share of the scale's gradient.
__global__ void __launch_bounds__(kBlockThreads)
    share_gradient(int blocks, float largest_code, const double* extra, double* partial,
                   const unsigned* ties) {
  double sum = extra != nullptr ? *extra : 0.0;
  unsigned count = 0;
  for (int b = 0; b < blocks; ++b) {
    sum += partial[b];
    count += ties[b];
  }
  partial[0] = count == 0 ? 0.0 : sum / static_cast<double>(largest_code) / count;
}

__global__ void __launch_bounds__(kBlockThreads)
    add_share(const float* weight, const uint8_t* mask, size_t count, const Weights::Status* status,
              const double* share, float* grad) {
  const size_t i = global_x();
  if (i >= count || !alive(mask, i)) return;
  const float w = weight[i];
  if (w == 0.0F || fabsf(w) != __uint_as_float(status->largest_bits)) return;
  grad[i] += static_cast<float>(w > 0.0F ? *share : -*share);
}

float largest_code(const LayerShape& layer) {
  return layer.weight_bits == kFloatBits ? 0.0F
                                         : static_cast<float>((1 << (layer.weight_bits - 1)) - 1);
}

Shape over(size_t count) { return {dim3(blocks_for(count, kBlockThreads)), dim3(kBlockThreads)}; }

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

void Weights::compile(const LayerShape& layer, const ConvShape& shape, const float* weight,
                      bool integer_input, const PassPlan& plan, bool backward, Stream stream) {
  layer_ = layer;
  shape_ = shape;
  plan_ = plan;
  quantized_ = layer.weight_bits != kFloatBits;
  integers_ = quantized_ && integer_input;
  check_plan(stream);
  const size_t count = static_cast<size_t>(layer.weights());
  Status* status = status_.reserve(1);
  float* codes = codes_.reserve(count);
  set_bytes(status, 0, sizeof(Status), stream);
  const cudaStream_t on = native(stream);
  const uint8_t* mask = mask_.data();
  launch(Where("find_largest", on), over(count), find_largest, weight, mask, count, status);
  launch(Where("set_scale", on), Shape{dim3(1), dim3(1)}, set_scale, largest_code(layer), status);
  launch(Where("quantize", on), over(count), quantize, weight, mask, count, quantized_, codes,
         status);

  compile_for_libraries(backward, stream);
  compile_for_tensor_cores(backward, stream);
  const auto pack = [&](const Packing& p, DeviceBuffer<float>& values) {
    const size_t n =
        static_cast<size_t>(p.taps * p.quads() * kQuad) * static_cast<size_t>(p.out_stride());
    launch(Where("pack_values", on), over(n), pack_values, p, codes, static_cast<int>(n),
           values.reserve(n));
  };
  if (plan.forward == Kernel::kSparse) {
    gather(forward_sparse_.place, forward_sparse_.value, false, stream);
  } else if (plan.forward == Kernel::kDense && !integers_) {
    pack(packing_of(shape, false), forward_values_);
  }
  if (!backward) return;
  if (plan.backward_data == Kernel::kSparse) {
    gather(backward_sparse_.place, backward_sparse_.value, true, stream);
  } else if (plan.backward_data == Kernel::kDense && !quantized_) {
    pack(packing_of(shape, true), backward_values_);
  }
}

Weights::Summary Weights::summary(Stream stream) const {
  const Status status = status_.to_host(stream)[0];
  if (status.not_finite != 0) throw std::domain_error("a weight is not finite");
  return {status.scale, status.nonzeros};
}

void Weights::backward(const float* weight, const double* scale_gradient_in, float* grad,
                       Stream stream) {
  const size_t count = static_cast<size_t>(layer_.weights());
  const Shape shape = over(count);
  const cudaStream_t on = native(stream);
  const Status* status = status_.data();
  double* partial = scale_partial_.reserve(shape.grid.x);
  unsigned* ties = ties_partial_.reserve(shape.grid.x);
  launch(Where("scale_gradient", on), shape, scale_gradient, weight, mask_.data(), codes_.data(),
         count, status, grad, partial, ties);
  if (layer_.weight_bits == kFloatBits) return;
  launch(Where("share_gradient", on), Shape{dim3(1), dim3(1)}, share_gradient,
         static_cast<int>(shape.grid.x), largest_code(layer_), scale_gradient_in, partial, ties);
  launch(Where("add_share", on), shape, add_share, weight, mask_.data(), count, status, partial,
         grad);
}

}  // namespace fmp::cuda
