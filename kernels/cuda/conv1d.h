// SPDX-License-Identifier: MIT
// What the files of the convolution share. For .cu files only.
#pragma once

#include <algorithm>

#include "kernels/cuda/device_code.h"
#include "kernels/cuda/group_sums.h"

namespace fmp::cuda {

// Outputs of a thread of the fp32 product; weights are padded to it.
inline constexpr int kOutBlock = 8;
// Surviving weights that a warp of the sparse gradient shares.
inline constexpr int kGroup = 8;

// Layers whose weights a launch takes at once: a kernel's parameters hold what it does for each.
inline constexpr int kLayersAtOnce = 16;

// How a matrix [out][tap][in] is taken from codes [O][T][C].
struct Packing {
  int out, in, taps;
  bool transposed;  // out = C, in = O, taps flipped
  __host__ __device__ __forceinline__ size_t place(int o, int t, int c) const {
    const size_t taps_ = static_cast<size_t>(taps);
    return transposed ? (static_cast<size_t>(c) * taps_ + static_cast<size_t>(taps - 1 - t)) *
                                static_cast<size_t>(out) +
                            static_cast<size_t>(o)
                      : (static_cast<size_t>(o) * taps_ + static_cast<size_t>(t)) *
                                static_cast<size_t>(in) +
                            static_cast<size_t>(c);
  }
  __host__ __device__ int quads() const { return (in + kQuad - 1) / kQuad; }
  __host__ __device__ int out_stride() const {
    return (out + kOutBlock - 1) / kOutBlock * kOutBlock;
  }
};
// The gradient of a dense layer's input (transposed) has the input's rows as channels of one row.
inline Packing packing_of(const ConvShape& s, bool transposed) {
  if (!transposed) return {s.out_channels, s.in_channels, s.taps, false};
  return s.same_padding ? Packing{s.in_channels, s.out_channels, s.taps, true}
                        : Packing{s.taps * s.in_channels, s.out_channels, 1, true};
}

// How kernels read the codes of a layer's weights. Bytes and bf16: as lanes of tensor cores hold
// them (FragmentOrder in conv1d_tensor.h); values: [tap][quad of in][4][out]; rows: [out][tap][in];
// gathered: those in `places`.
enum class Layout : uint8_t { kBytes, kBf16, kValues, kRows, kGathered };
struct LayoutJob {
  Layout layout;
  Packing packing;
  int row_channels, steps;  // of fragments: channels of a tap with what fills them up, and products
  int count;                // of elements, or of registers
  const float* codes;
  const float* scale;  // of rows and gathered ones; null = 1
  const int* places;
  void* to;
};
inline constexpr int kLayoutsAtOnce = 3 * kLayersAtOnce;
struct LayoutJobs {
  LayoutJob of[kLayoutsAtOnce];
};
static_assert(sizeof(LayoutJobs) <= 4000, "a kernel's parameters");

// Writes layouts of many layers in one launch.
class LayoutWriter {
 public:
  explicit LayoutWriter(Stream on_stream) : stream(on_stream) {}
  ~LayoutWriter() = default;
  LayoutWriter(const LayoutWriter&) = delete;
  LayoutWriter& operator=(const LayoutWriter&) = delete;

  void add(const LayoutJob& job);
  // The codes in `places`, each multiplied by its row's `scale`; null = 1.
  void gather(const float* codes, const DeviceBuffer<int>& places, const float* scale,
              const DeviceBuffer<float>& to);
  void write();  // what was added

  const Stream stream;

 private:
  LayoutJobs jobs_{};
  unsigned size_ = 0;
  int largest_ = 0;
};

// Of an element in [row][channel][lane], or of a weight in [out][tap][in].
__device__ __forceinline__ size_t place(int row, int channel, int lane, int channels, int lanes) {
  return (static_cast<size_t>(row) * static_cast<size_t>(channels) + static_cast<size_t>(channel)) *
             static_cast<size_t>(lanes) +
         static_cast<size_t>(lane);
}

// Gradients of weights are summed in slices of the groups of a batch, `each` of every group. A step
// is one position and one warp of frames.
struct Slices {
  int positions;
  FrameGroups groups;
  Walk walk;
  int each;

  // Steps of a slice.
  struct Steps {
    int begin, end;
    int positions, first_warp, warps;  // of the group
    Walk walk;
    __device__ __forceinline__ int row(int step) const {
      return walk == Walk::kPositionsFirst ? step % positions : step / warps;
    }
    __device__ __forceinline__ int first_frame(int step) const {
      const int warp = walk == Walk::kPositionsFirst ? step / positions : step % warps;
      return (first_warp + warp) * kWarpLanes;
    }
  };
  __device__ __forceinline__ Steps of(int slice) const {
    const int group = slice / each, i = slice % each;
    const int warps = groups.warps(group);
    const int64_t steps = int64_t{positions} * warps;
    return {static_cast<int>(i * steps / each),
            static_cast<int>((i + 1) * steps / each),
            positions,
            groups.begin(group),
            warps,
            walk};
  }
  int count() const { return each * groups.here; }
  PartialSums sums() const { return PartialSums::slices(groups, each); }
};
// As many slices as make about `blocks` blocks of a whole batch.
inline Slices slices_for(int out_length, const FrameGroups& groups, Walk walk,
                         int blocks_of_a_slice, int blocks) {
  const int steps = out_length * groups.batch_warps / groups.of_batch();  // of a group, about
  const int wanted = blocks / std::max(1, blocks_of_a_slice) / groups.of_batch();
  return {out_length, groups, walk, std::max(1, std::min(steps, wanted))};
}

struct GradientShape {
  int out_channels, in_channels, taps, lanes, dy_pad;
  Slices slices;
};
inline GradientShape gradient_shape(const ConvShape& s, const Tile& x, const Tile& dy) {
  return {s.out_channels, s.in_channels, s.taps, x.lanes(), dy.pad, {}};
}

}  // namespace fmp::cuda
