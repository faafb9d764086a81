// SPDX-License-Identifier: MIT
// A network on a device: parameters, optimizer state, masks and the memory of its passes. All work
// is put on one stream; nothing waits for it but the constructor and what copies to the host.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "framework/network/network.h"
#include "framework/training/engine.h"
#include "kernels/cuda/device_ranks.h"
#include "kernels/cuda/libraries.h"
#include "kernels/cuda/ops.h"

namespace fmp {

// All parameters of a network in one block of each kind, so that one copy moves them and one kernel
// updates them.
class ParameterBlock {
 public:
  // training: with gradients and moments. `network` is read here and later only named.
  ParameterBlock(const Network& network, bool training, cuda::Stream stream);

  float* value(const Parameter& parameter) const;
  float* grad(const Parameter& parameter) const;
  void adam(const cuda::AdamFactors* factors, unsigned* not_finite, cuda::Stream stream) const;
  // Puts values, gradients and moments into the network that this was made from.
  void store(Network& network, cuda::Stream stream) const;

 private:
  std::map<const Parameter*, size_t> begin_;
  cuda::DeviceBuffer<float> value_, grad_, moment1_, moment2_;
  cuda::DeviceBuffer<uint8_t> mask_;
};

class DeviceNetwork {
 public:
  enum class Use : uint8_t { kTraining, kEvaluation };

  // Throws std::domain_error when a weight is not finite. The libraries, on whose stream all work
  // is put, must outlive this, as must `ranks`: those that share batches; null = none.
  DeviceNetwork(const Network& network, std::span<const LayerPlan> plan, Use use,
                cuda::Libraries& libraries, cuda::DeviceRanks* ranks = nullptr);
  ~DeviceNetwork();

  // Takes a batch from device memory. frames: [count][length][channels] codes, or values where
  // inputs are float; which: null, or [count], those that are wanted of more frames; labels:
  // [count], null = all 0.
  void load(const void* frames, const uint32_t* which, const uint8_t* labels, int64_t count) {
    load(frames, which, labels, count, 0, count);
  }
  // The same of this rank's share: `count` frames from `first` on, labels of the whole batch.
  void load(const void* frames, const uint32_t* which, const uint8_t* labels, int64_t count,
            int64_t first, int64_t batch_frames);
  // What a teacher says of the batch's frames, in device memory, [count][classes]; null = nothing,
  // which holds after every load() of frames.
  void load_soft_targets(const float* soft);
  // What train_step() makes of labels and teacher; without this the labels alone count.
  void set_loss(const LossOptions& loss) { loss_options_ = loss; }
  // The factors of the next train_step().
  void load(const cuda::AdamFactors* factors);

  // Forward, backward and Adam with what was loaded. Depends on nothing else but its arguments and
  // the number of frames, and after a first time allocates nothing for as many frames: it can be
  // captured. collect, first: see follow_threshold().
  void train_step(bool collect, bool first, bool backward);
  // Logits, loss and predictions in evaluation mode, with the weights that this was made with. Can
  // be captured likewise.
  void evaluate();

  // Of the last step, in device memory.
  const cuda::LossResult* loss() const;
  const uint8_t* predicted() const;
  // Waits. [count][classes].
  std::vector<float> logits() const;

  // Copies parameters and running statistics into the network that this was made from. Waits.
  void store(Network& network) const;

 private:
  struct DeviceLayer;
  // The frames as layers read them that join as many samples.
  struct Frames {
    cuda::Tile tile;
    cuda::DeviceBuffer<uint8_t> data;
    cuda::DeviceBuffer<uint32_t> of_batch;
    cuda::Input value;  // in a step: these, or those of the whole batch
  };
  void put_frames();  // what they are at the begin of a step
  const cuda::Input& value(const DeviceLayer& reader, int read) const;
  // A value as a layer with weights reads it.
  cuda::Input read(DeviceLayer& layer);
  // The same for the whole batch, from the shares of all ranks.
  cuda::Input whole(const cuda::Input& share, cuda::DeviceBuffer<uint32_t>& memory);
  void gather();           // values that layers behind the convolutions read
  void share_gradients();  // the way back
  void compile();          // from the weights as they are now
  void forward(DeviceLayer& layer, bool collect, bool first);
  void forward_output(float* dlogits, uint8_t* predicted);
  // Memory for the gradient that a layer has for what it reads, with room for `elements`; add:
  // another reader's is there.
  float* gradient_for(int read, size_t elements, bool& add);
  void backward(DeviceLayer& layer, const double* of_scale);
  void backward_join(DeviceLayer& layer, const double* of_scale);
  void plan_gradients();

  NetworkConfig config_;
  cuda::Stream stream_;
  cuda::DeviceRanks* ranks_;
  ParameterBlock parameters_;
  int64_t frames_here_ = 0, frames_of_batch_ = 0;
  std::map<int, Frames> frames_;  // by samples that are joined
  cuda::DeviceBuffer<uint8_t> labels_, predicted_;
  cuda::DeviceBuffer<float> input_scale_, logits_, dlogits_, soft_;
  bool has_soft_ = false;
  LossOptions loss_options_;
  cuda::DeviceBuffer<cuda::AdamFactors> factors_;
  cuda::DeviceBuffer<cuda::LossResult> loss_;
  // Shared by the layers: gradients of values, from their last reader to the layer that wrote them
  // (of a chain, two), one that is added to another reader's, and of convolution sums.
  std::vector<cuda::DeviceBuffer<float>> gradients_;
  cuda::DeviceBuffer<float> added_, dy_;
  // Layers from here on compute the whole batch, from these values.
  size_t behind_shares_ = 0;
  std::vector<int> gathered_;
  std::vector<int> gathered_frames_;  // likewise
  cuda::DeviceBuffer<uint32_t> parts_;
  std::vector<std::unique_ptr<DeviceLayer>> layers_;
  std::vector<cuda::Weights*> weights_;                 // of the layers that have any
  std::vector<cuda::WeightGradient> weight_gradients_;  // of a step
};

}  // namespace fmp
