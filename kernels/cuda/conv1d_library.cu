// SPDX-License-Identifier: MIT
// The convolution and its gradients by cuBLAS and cuSPARSE. The window of a position is one block
// of memory, rows l .. l + T - 1, so that nothing is copied:
//
//   cuBLAS:    y[l] (O x lanes) = W (O x TC) * x[l ..] (TC x lanes) for all l in one call whose
//              matrices overlap; dx[l] likewise with weights transposed and taps flipped;
//              dw[l] (O x TC) = dy[l] (O x lanes) * x[l ..]^T, summed over l in a fixed order
//   cuSPARSE:  refuses matrices that overlap ("batchStride >= ld * rows",
//              cusparseDnMatSetStridedBatch), so tap by tap: y[l] += W_t (O x C, sparse) * x[l + t]
//              for all l in one call; dw likewise, in the places of W_t only (SDDMM)
//
// Both multiply floats. Codes are unpacked first; sums of their products are exact below 2^24.
#include <stdexcept>
#include <string>
#include <utility>

#include "kernels/cuda/conv1d.h"
#include "kernels/cuda/libraries.h"

namespace fmp::cuda {
namespace {

template <typename Reader>
__global__ void __launch_bounds__(kBlockThreads)
    unpack(Reader x, int channels, int lanes, size_t count, float* values) {
  const size_t i = global_x();
  if (i >= count) return;
  const int lane = static_cast<int>(i % static_cast<size_t>(lanes));
  const size_t of = i / static_cast<size_t>(lanes);
  const int channel = static_cast<int>(of % static_cast<size_t>(channels));
  const int row = static_cast<int>(of / static_cast<size_t>(channels));
  values[i] = static_cast<float>(x.value(row, channel, lane));
}

__global__ void __launch_bounds__(kBlockThreads)
    repeat(const int* values, int count, int times, int* repeated) {
  const size_t i = global_x();
  if (i >= static_cast<size_t>(count) * static_cast<size_t>(times)) return;
  repeated[i] = values[i % static_cast<size_t>(count)];
}

Shape over(size_t count) { return {dim3(blocks_for(count, kBlockThreads)), dim3(kBlockThreads)}; }

}  // namespace

int64_t largest_sum(const LayerShape& layer) {
  const int64_t largest_code = (int64_t{1} << layer.input_bits) - 1;
  const int64_t largest_weight = (int64_t{1} << (layer.weight_bits - 1)) - 1;
  return layer.fan_in() * largest_code * largest_weight;
}

bool exact_in_floats(const LayerShape& layer) {
  if (layer.input_bits == kFloatBits || layer.weight_bits == kFloatBits) return false;
  return largest_sum(layer) < int64_t{1} << 24;
}

void Weights::check_plan(Stream stream) const {
  if (!is_library(plan_.forward) && !is_library(plan_.backward_data) &&
      !is_library(plan_.backward_weight)) {
    return;
  }
  if (libraries_ == nullptr || libraries_->stream() != stream) {
    throw std::invalid_argument("CUDA: the plan asks for a library, but there are no handles for " +
                                std::string(libraries_ == nullptr ? "it" : "this stream"));
  }
  if (ranks_ != nullptr && (is_library(plan_.backward_data) || is_library(plan_.backward_weight))) {
    throw std::invalid_argument(
        "CUDA: the plan asks for a library in the backward pass of a batch that devices share; the "
        "order of its sums may depend on how many there are");
  }
  if (ranks_ != nullptr && is_library(plan_.forward) && !integers_) {
    throw std::invalid_argument(
        "CUDA: the plan asks for a library for sums of floats of a batch that devices share");
  }
  if (is_library(plan_.forward) && integers_ && !exact_in_floats(layer_)) {
    throw std::invalid_argument(
        "CUDA: the plan asks for a library where sums of codes may reach 2^24, which floats do not "
        "hold exactly");
  }
}

Weights::TapMatrices Weights::tap_matrices(int out, int taps, int in, bool transposed,
                                           std::span<const uint8_t> mask, Stream stream) const {
  TapMatrices m;
  m.rows = out;
  m.columns = in;
  m.taps = taps;
  const Packing packing{out, in, taps, transposed};
  std::vector<int> row_begin, row, column, place;
  for (int t = 0; t < taps; ++t) {
    m.begin.push_back(static_cast<int>(column.size()));
    for (int o = 0; o < out; ++o) {
      row_begin.push_back(static_cast<int>(column.size()) - m.begin.back());
      for (int c = 0; c < in; ++c) {
        const size_t at = packing.place(o, t, c);
        if (!mask.empty() && mask[at] == 0) continue;
        row.push_back(o);
        column.push_back(c);
        place.push_back(static_cast<int>(at));
      }
    }
    row_begin.push_back(static_cast<int>(column.size()) - m.begin.back());
  }
  m.begin.push_back(static_cast<int>(column.size()));
  m.row_begin = DeviceBuffer<int>(row_begin, stream);
  m.row = DeviceBuffer<int>(row, stream);
  m.column = DeviceBuffer<int>(column, stream);
  m.place = DeviceBuffer<int>(place, stream);
  m.value = DeviceBuffer<float>(column.size());
  synchronize(stream);  // the lists on the host end here
  return m;
}

SparsePattern Weights::TapMatrices::pattern(int tap) const {
  const int first = begin[static_cast<size_t>(tap)];
  return {.rows = rows,
          .columns = columns,
          .nonzeros = begin[static_cast<size_t>(tap) + 1] - first,
          .row_begin = row_begin.data() + tap * (rows + 1),
          .row = row.data() + first,
          .column = column.data() + first};
}

void Weights::add_layouts_of_libraries(LayoutWriter& writer) {
  if (plan_.forward == Kernel::kCusparse)
    writer.gather(codes_.data(), forward_taps_.place, nullptr, forward_taps_.value);
  if (!backward_) return;
  if (plan_.backward_data == Kernel::kCusparse)
    writer.gather(codes_.data(), backward_taps_.place, scale(), backward_taps_.value);
  if (plan_.backward_data == Kernel::kCublas) {
    const auto count = static_cast<size_t>(layer_.weights());
    writer.add({Layout::kRows, packing_of(shape_, true), 0, 0, static_cast<int>(count),
                codes_.data(), scale(), nullptr, transposed_.reserve(count)});
  }
  TapMatrices& taps = forward_taps_;
  if (plan_.backward_weight == Kernel::kCusparse && taps.repeated.empty()) {
    const size_t times = static_cast<size_t>(shape_.out_length);
    taps.repeated = DeviceBuffer<int>(taps.column.size() * times);
    for (int t = 0; t < taps.taps; ++t) {
      const int begin = taps.begin[static_cast<size_t>(t)];
      const int count = taps.begin[static_cast<size_t>(t) + 1] - begin;
      if (count == 0) continue;
      launch(Where("repeat", native(writer.stream)), over(static_cast<size_t>(count) * times),
             repeat, taps.column.data() + begin, count, shape_.out_length,
             taps.repeated.data() + static_cast<size_t>(begin) * times);
    }
  }
}

// Floats of a tile; codes are unpacked into memory that the next pass reuses.
const float* Weights::values_of_input(const Input& x, Stream stream) const {
  if (x.type == ElementType::kF32) return static_cast<const float*>(x.data);
  const size_t count = x.tile.floats();
  float* values = libraries_->scratch(count);
  with_reader(x, [&](const auto& reader) {
    launch(Where("unpack", native(stream)), over(count), unpack<std::decay_t<decltype(reader)>>,
           reader, x.tile.channels, x.tile.lanes(), count, values);
  });
  return values;
}

void Weights::multiply_taps(const TapMatrices& taps, int lanes, const float* x, int positions,
                            bool deterministic, float* y, Stream stream) const {
  bool written = false;
  for (int t = 0; t < taps.taps; ++t) {
    const int begin = taps.begin[static_cast<size_t>(t)];
    const int count = taps.begin[static_cast<size_t>(t) + 1] - begin;
    if (count == 0) continue;
    const size_t row = static_cast<size_t>(taps.columns) * static_cast<size_t>(lanes);
    libraries_->run(BatchedSpmm{.a = taps.pattern(t),
                                .values = taps.value.data() + begin,
                                .n = lanes,
                                .batches = positions,
                                .b = x + static_cast<size_t>(t) * row,
                                .c = y,
                                .add = written,
                                .deterministic = deterministic});
    written = true;
  }
  if (written) return;
  const size_t elements =
      static_cast<size_t>(positions) * static_cast<size_t>(taps.rows) * static_cast<size_t>(lanes);
  set_bytes(y, 0, elements * sizeof(float), stream);
}

void Weights::forward_library(const Input& x, float* y, Stream stream) const {
  const float* values = values_of_input(x, stream);
  const int lanes = x.tile.lanes();
  if (plan_.forward == Kernel::kCusparse) {
    // Integers are the same in every order.
    multiply_taps(forward_taps_, lanes, values, shape_.out_length, !integers_, y, stream);
    return;
  }
  const int fan_in = shape_.taps * shape_.in_channels;
  libraries_->run(BatchedGemm{.m = shape_.out_channels,
                              .n = lanes,
                              .k = fan_in,
                              .batches = shape_.out_length,
                              .a = {codes_.data(), fan_in, 0},
                              .b = {values, lanes, int64_t{shape_.in_channels} * lanes},
                              .c = y,
                              .c_stride = int64_t{shape_.out_channels} * lanes});
}

void Weights::backward_data_library(const Tile& dy_tile, const float* dy, float* dx,
                                    Stream stream) const {
  const int lanes = dy_tile.lanes();
  if (plan_.backward_data == Kernel::kCusparse) {
    multiply_taps(backward_taps_, lanes, dy, shape_.in_length, true, dx, stream);
    return;
  }
  const int out = backward_taps_.rows, fan_out = backward_taps_.taps * shape_.out_channels;
  libraries_->run(BatchedGemm{.m = out,
                              .n = lanes,
                              .k = fan_out,
                              .batches = shape_.in_length,
                              .a = {transposed_.data(), fan_out, 0},
                              .b = {dy, lanes, int64_t{shape_.out_channels} * lanes},
                              .c = dx,
                              .c_stride = int64_t{out} * lanes});
}

void Weights::backward_weight_library(const Input& x, const Tile& dy_tile, const float* dy,
                                      float* grad, Stream stream) const {
  const int lanes = x.tile.lanes(), positions = shape_.out_length;
  const int fan_in = shape_.taps * shape_.in_channels;
  const int weights = shape_.out_channels * fan_in;
  const bool sparse = plan_.backward_weight == Kernel::kCusparse;
  const TapMatrices& taps = forward_taps_;
  // Scratch: the values if they must be unpacked, and each position's gradients.
  const size_t unpacked = x.type == ElementType::kF32 ? 0 : x.tile.floats();
  const size_t sums =
      static_cast<size_t>(positions) * (sparse ? taps.column.size() : static_cast<size_t>(weights));
  float* partial = libraries_->scratch(unpacked + sums) + unpacked;
  const float* values = values_of_input(x, stream);
  const float* gradient = dy + static_cast<size_t>(dy_tile.pad) *
                                   static_cast<size_t>(shape_.out_channels) *
                                   static_cast<size_t>(lanes);
  const auto add_up = [&](const float* sums_of_positions, int count, const int* places) {
    const SliceSums<float> of_positions{sums_of_positions,
                                        static_cast<size_t>(count),
                                        PartialSums::dealt_out(positions),
                                        count,
                                        places,
                                        x.scale,
                                        grad};
    add_slices(std::span(&of_positions, 1), stream);
  };
  if (!sparse) {
    libraries_->run(BatchedGemm{.m = shape_.out_channels,
                                .n = fan_in,
                                .k = lanes,
                                .batches = positions,
                                .a = {gradient, lanes, int64_t{shape_.out_channels} * lanes},
                                .b = {values, lanes, int64_t{shape_.in_channels} * lanes, true},
                                .c = partial,
                                .c_stride = weights});
    add_up(partial, weights, nullptr);
    return;
  }
  set_bytes(grad, 0, static_cast<size_t>(weights) * sizeof(float), stream);
  for (int t = 0; t < taps.taps; ++t) {
    const int begin = taps.begin[static_cast<size_t>(t)];
    const int count = taps.begin[static_cast<size_t>(t) + 1] - begin;
    if (count == 0) continue;
    const size_t offset = static_cast<size_t>(begin) * static_cast<size_t>(positions);
    const size_t row = static_cast<size_t>(taps.columns) * static_cast<size_t>(lanes);
    libraries_->run(BatchedSddmm{.c = taps.pattern(t),
                                 .columns = taps.repeated.data() + offset,
                                 .values = partial + offset,
                                 .k = lanes,
                                 .batches = positions,
                                 .a = gradient,
                                 .b = values + static_cast<size_t>(t) * row});
    add_up(partial + offset, count, taps.place.data() + begin);
  }
}

}  // namespace fmp::cuda
