// SPDX-License-Identifier: MIT
// Weights: fake quantization (scale = max|w| / (2^(b-1) - 1), code = round_half_even(w / scale)),
// the layouts that the convolution kernels read, and the way back: straight through, plus the
// scale's gradient at the largest |w|, 0 where masked. A kernel does its part for all layers: there
// are few weights, and a launch takes longer than they do.
#include <algorithm>
#include <limits>
#include <stdexcept>
#include <vector>

#include "kernels/cuda/conv1d_tensor.h"

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

template <typename Order>
__device__ __forceinline__ uint32_t fragment(const LayoutJob& job, int i) {
  const Packing& p = job.packing;
  const int reg = i % 4, lane = i / 4 % kWarpLanes, product = i / 4 / kWarpLanes;
  const int out = output_of(product / job.steps, lane / kMembers, reg % 2);
  const int first = product % job.steps * Order::kDepth + lane % kMembers * Order::kPerRegister +
                    reg / 2 * (Order::kDepth / 2);
  uint32_t bits = 0;
  for (int k = 0; k < Order::kPerRegister; ++k) {
    const int tap = (first + k) / job.row_channels, c = (first + k) % job.row_channels;
    const bool exists = out < p.out && tap < p.taps && c < p.in;
    const float code = exists ? job.codes[p.place(out, tap, c)] : 0.0F;
    if constexpr (Order::kPerRegister == 4) {
      bits |= (static_cast<uint32_t>(static_cast<int>(code)) & 0xffU) << (8 * k);
    } else {
      bits |= __float_as_uint(code) >> 16 << (16 * k);
    }
  }
  return bits;
}

__global__ void __launch_bounds__(kBlockThreads) write_layouts(LayoutJobs jobs) {
  const LayoutJob& job = jobs.of[block_y()];
  const Packing& p = job.packing;
  const int i = static_cast<int>(global_x());
  if (i >= job.count) return;
  if (job.layout == Layout::kBytes || job.layout == Layout::kBf16) {
    static_cast<uint32_t*>(job.to)[i] = job.layout == Layout::kBytes
                                            ? fragment<FragmentOrder<true>>(job, i)
                                            : fragment<FragmentOrder<false>>(job, i);
    return;
  }
  float value = 0;
  if (job.layout == Layout::kGathered) {
    value = job.codes[job.places[i]];
  } else if (job.layout == Layout::kRows) {
    value = job.codes[p.place(i / p.in / p.taps, i / p.in % p.taps, i % p.in)];
  } else {
    const int channels = p.quads() * kQuad, stride = p.out_stride();
    const int out = i % stride, c = i / stride % channels, tap = i / stride / channels;
    if (out < p.out && c < p.in) value = job.codes[p.place(out, tap, c)];
  }
  static_cast<float*>(job.to)[i] = job.scale != nullptr ? value * *job.scale : value;
}

// Zeroes masked gradients and adds up what the scale receives, and how many weights share the
// largest magnitude. The last block of a layer leaves each tie's share in partial[0].
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
  if (job.largest_code == 0.0F) return;
  const int blocks = static_cast<int>((job.count + kBlockThreads - 1) / kBlockThreads);
  if (!is_last_block(&job.status->arrived, static_cast<unsigned>(blocks))) return;
  gradient = 0;
  unsigned ties = 0;
  for (int b = thread_x(); b < blocks; b += kBlockThreads) {
    gradient += job.partial[b];
    ties += job.ties[b];
  }
  gradient = block_sum(gradient);
  ties = block_sum(ties);
  if (thread_x() != 0) return;
  if (job.scale_gradient != nullptr) gradient += *job.scale_gradient;
  job.partial[0] = ties == 0 ? 0.0 : gradient / static_cast<double>(job.largest_code) / ties;
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

void LayoutWriter::add(const LayoutJob& job) {
  if (size_ == kLayoutsAtOnce) write();
  jobs_.of[size_++] = job;
  largest_ = std::max(largest_, job.count);
}

void LayoutWriter::gather(const float* codes, const DeviceBuffer<int>& places, const float* scale,
                          const DeviceBuffer<float>& to) {
  add({Layout::kGathered,
       {},
       0,
       0,
       static_cast<int>(places.size()),
       codes,
       scale,
       places.data(),
       to.data()});
}

void LayoutWriter::write() {
  if (largest_ > 0) {
    launch(Where("write_layouts", native(stream)),
           Shape{dim3(blocks_for(static_cast<size_t>(largest_), kBlockThreads), size_),
                 dim3(kBlockThreads)},
           write_layouts, jobs_);
  }
  size_ = 0;
  largest_ = 0;
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
    LayoutWriter writer(stream);
    for (Weights* w : some) w->add_layouts(writer);
    writer.write();
  });
}

void Weights::add_layouts(LayoutWriter& writer) {
  const auto values = [&](const Packing& p, DeviceBuffer<float>& to) {
    const size_t count =
        static_cast<size_t>(p.taps * p.quads() * kQuad) * static_cast<size_t>(p.out_stride());
    writer.add({Layout::kValues, p, 0, 0, static_cast<int>(count), codes_.data(), nullptr, nullptr,
                to.reserve(count)});
  };
  const auto fragments = [&](Layout layout, const Packing& p, int row_channels,
                             DeviceBuffer<uint32_t>& to) {
    const int depth =
        layout == Layout::kBytes ? FragmentOrder<true>::kDepth : FragmentOrder<false>::kDepth;
    const int steps = (p.taps * row_channels + depth - 1) / depth;
    const size_t count =
        static_cast<size_t>(tiles_for(p.out)) * static_cast<size_t>(steps) * kWarpLanes * 4;
    writer.add({layout, p, row_channels, steps, static_cast<int>(count), codes_.data(), nullptr,
                nullptr, to.reserve(count)});
  };
  add_layouts_of_libraries(writer);
  const Packing forward = packing_of(shape_, false), backward = packing_of(shape_, true);
  if (plan_.forward == Kernel::kSparse) {
    writer.gather(codes_.data(), forward_sparse_.place, nullptr, forward_sparse_.value);
  } else if (plan_.forward == Kernel::kDense && integers_) {
    fragments(Layout::kBytes, forward, FragmentOrder<true>::row_channels(forward),
              forward_fragments_);
  } else if (plan_.forward == Kernel::kDense) {
    values(forward, forward_values_);
  }
  if (!backward_) return;
  if (plan_.backward_data == Kernel::kSparse) {
    writer.gather(codes_.data(), backward_sparse_.place, scale(), backward_sparse_.value);
  } else if (plan_.backward_data == Kernel::kDense && quantized_) {
    fragments(Layout::kBf16, backward, FragmentOrder<false>::row_channels(backward),
              backward_fragments_);
    // The same with the channels of each tap filled up to whole tiles, where that differs.
    if (integers_ && backward.in % kPairOutputs != 0) {
      fragments(Layout::kBf16, backward, tiles_for(backward.in) * kFragmentRows, tap_fragments_);
    }
  } else if (plan_.backward_data == Kernel::kDense) {
    values(backward, backward_values_);
  }
}

Weights::Summary Weights::summary(Stream stream) const {
  const Status status = status_.to_host(stream)[0];
  if (status.not_finite != 0) throw std::domain_error("a weight is not finite");
  return {status.scale, status.nonzeros};
}

void Weights::backward(std::span<const WeightGradient> layers, Stream stream) {
  std::vector<Weights*> all;
  for (const WeightGradient& layer : layers) all.push_back(layer.weights);
  add_up_gradients(all, stream);
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
    launch(Where("add_share", on), shape, add_share, jobs);
  });
}

}  // namespace fmp::cuda
