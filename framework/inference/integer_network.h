// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "framework/data/dataset.h"
#include "framework/network/network.h"
#include "kernels/cpu/integer_ops.h"
#include "kernels/cpu/ops.h"
#include "kernels/tile.h"

namespace fmp {

// A layer of integers. Its sums are those of weight codes times input codes: signed ones for the
// first layer, unsigned ones for the others. A layer without weights has tables.
struct IntegerLayerData {
  std::string name;
  LayerKind kind = LayerKind::kConv;
  std::vector<int> reads;  // layers, or kReadsFrames
  cpu::IntegerShape shape;
  // How the layer reads the positions of the one before: a convolution's form, or for flattened
  // inputs a kernel that is as long as they are.
  Convolution form;
  int length = 1;  // positions written, before pooling
  int input_bits = 8;
  bool signed_input = false;
  int act_bits = 8;  // of the codes it writes; hidden layers. Written without a sign: 0 stands for
                     // the smallest, which the next layer's signed_input says.

  // [O][taps][C], C position-major for flattened inputs. Negated for the channels whose batch-norm
  // decreases, so that codes never decrease with the sum.
  std::vector<int8_t> codes;
  // Hidden layers: code = number of thresholds that are <= sum, [O][levels]; the same by a
  // multiplication.
  std::vector<int32_t> thresholds;
  std::vector<cpu::Requantizer> requantizers;  // [O]
  std::vector<int32_t> bias;                   // [O]; output layer
  // Without weights: the code of each byte read, of each input (concat); of each pair, the first
  // one's byte * columns + the second one's (add); of each sum of a window's bytes (average).
  // Bytes: codes as they are stored, see signed_input. They never decrease with the values.
  std::vector<std::vector<uint8_t>> tables;
  int columns = 0;  // of an add's table
  int window = 1;   // of an average

  bool has_weights() const { return fmp::has_weights(kind); }
  int positions_written() const { return length / shape.pool; }
  bool hidden() const { return !thresholds.empty(); }
  int levels() const { return hidden() ? (1 << act_bits) - 1 : 0; }
  int smallest_input() const { return signed_input ? -(1 << (input_bits - 1)) : 0; }
  int largest_input() const { return (1 << (signed_input ? input_bits - 1 : input_bits)) - 1; }
  int64_t nonzeros() const;
  int channels() const { return shape.in_channels / shape.in_positions; }  // of a position read
  // What inputs in their range can sum up to.
  cpu::SumRange range(int channel) const;
};

// The float network's logits in integers. It computes float(sum) * scale + bias, every step rounded
// to the 24 bits of a float; two classes whose integer logits are equal may differ there in the
// last bit, and that decides. The same rounding on integers, in units of 2^-k * scale, decides
// alike.
class LogitRounding {
 public:
  LogitRounding() = default;
  LogitRounding(float scale, std::span<const int32_t> bias);
  // With a scale and a float bias for each class: float(sum) * (scale * gain) + bias, as above.
  // largest_sum: of any class. Throws std::range_error when 64 bits are too few for the classes'
  // scales and biases together.
  LogitRounding(float scale, std::span<const float> gain, std::span<const float> bias,
                int64_t largest_sum);

  // The scales' 24 bits, in a common unit.
  const std::vector<int64_t>& multiplier() const { return multiplier_; }
  const std::vector<int64_t>& offset() const { return offset_; }  // of each class
  // With scales for each class, integer logits are multiples of 2^shift units, which is unit().
  int shift() const { return shift_; }
  float unit() const { return unit_; }
  int32_t integer_logit(int64_t value) const;

  // What the float network's logit of this class is a multiple of.
  int64_t operator()(size_t label, int32_t sum) const;

  // To the nearest multiple of a power of two with at most 24 significant bits; ties to even.
  static int64_t round(int64_t value);

 private:
  std::vector<int64_t> multiplier_, offset_;
  int shift_ = 0;
  float unit_ = 1;
};

// What a layer writes, or the frames: bytes of codes, `zero` added to signed ones. Values that are
// never needed at the same time share a slot of memory.
struct IntegerValue {
  int channels = 0, positions = 0;
  int zero = 0;     // the byte of the value 0
  int levels = 0;   // the largest byte
  int padding = 0;  // positions of zeros on each side in memory
  int slot = 0;
  size_t offset = 0;  // of the slot in memory

  size_t row_bytes() const {
    return static_cast<size_t>(cpu::quads(channels)) * cpu::kQuadRow;  // of a position
  }
  size_t bytes() const { return static_cast<size_t>(positions + 2 * padding) * row_bytes(); }
};

// A trained network compiled to integers: byte codes, integer weights, 32-bit sums, thresholds. Its
// predictions are those of the network that it was made from, on every frame.
class IntegerNetwork {
 public:
  // Throws Error when the network is not quantized throughout, its values are not finite, or a sum
  // could leave 32 bits; the message names the layer.
  explicit IntegerNetwork(const Network& network);

  const NetworkConfig& config() const { return config_; }
  // Whether logits are sums plus bias; else they are LogitRounding::integer_logit's.
  bool has_plain_output() const { return rounding_.shift() == 0; }
  const std::vector<IntegerLayerData>& layers() const { return data_; }
  const LogitRounding& rounding() const { return rounding_; }
  // Of what a hidden layer writes, or of the frames (kReadsFrames).
  const IntegerValue& value_of(int layer) const { return value(layer); }
  int slots() const { return slots_; }
  // Value of an integer logit of 1.
  float logit_scale() const { return logit_scale_; }

  // The compiled layers that have weights, to look at or to choose other kernels for.
  std::vector<cpu::IntegerLayer>& kernels() { return kernels_; }
  const std::vector<cpu::IntegerLayer>& kernels() const { return kernels_; }

  // frames: [n][length][channels] codes of the input quantizer (see quantize_input). logits:
  // [n][classes], multiples of logit_scale(). predicted: [n], or empty. threads: 0 = all cores.
  // Tiles of kLanes frames are shared out to the threads; each runs one through all layers.
  void run(std::span<const int8_t> frames, std::span<int32_t> logits, std::span<uint8_t> predicted,
           int threads) const;

  // The logits of the network that this was made from, to the bit: [1][classes] kF32, 0 in the
  // lanes past the last frame.
  void float_logits(std::span<const int8_t> frames, TileView logits, int threads) const;

 private:
  void set_output(const Layer& layer, float scale);
  void set_constant_output(const Layer& layer, float scale);
  void place_values();
  const IntegerValue& value(int layer) const { return values_[static_cast<size_t>(layer + 1)]; }
  size_t frame_size() const {
    return static_cast<size_t>(config_.length) * static_cast<size_t>(config_.input_channels);
  }
  // use(tile, frames in it, sums) for all tiles of the frames.
  template <typename Use>
  void run_tiles(std::span<const int8_t> frames, int threads, const Use& use) const;
  // `count` frames through all layers; sums: [classes padded][kLanes]. memory: of all slots.
  void run_tile(const int8_t* frames, int count, uint8_t* memory, int32_t* sums) const;
  // A layer without weights; out: its first row.
  void run_join(size_t layer, uint8_t* out, const uint8_t* memory) const;
  // Channels of one of its inputs to those from `channel` on, a byte at a time.
  void place_channels(size_t layer, size_t input, int channel, uint8_t* out,
                      const uint8_t* memory) const;

  NetworkConfig config_;
  std::vector<IntegerLayerData> data_;
  std::vector<cpu::IntegerLayer> kernels_;
  std::vector<int> kernel_of_;        // of each layer; -1: it has no weights
  std::vector<LayerShape> shapes_;    // of each layer
  std::vector<float> scales_;         // of values_
  std::vector<IntegerValue> values_;  // the frames, then what each hidden layer writes
  int slots_ = 0;
  size_t memory_bytes_ = 0;
  std::vector<int32_t> output_offset_;  // of sums of what makes signed inputs unsigned
  cpu::OutputAffine output_affine_;
  LogitRounding rounding_;
  float logit_scale_ = 1;
};

}  // namespace fmp
