// SPDX-License-Identifier: MIT
// The part of a network that a pass must compute. Channels without weights are not always removed
// from a network (compaction.h); while they are there, they take memory and time like all others.
// Here they are left out of the passes, and the network keeps its shape.
#pragma once

#include <cstddef>
#include <optional>
#include <vector>

#include "framework/network/network.h"

namespace fmp {

// Left out are silent channels of hidden layers: no weight writes them (from a channel that is not
// silent itself), and what batch-norm makes of 0 is not positive, so that they emit code 0 and let
// no gradient pass. One channel always stays, and so does one whose weights include the largest of
// a quantized layer. Results are those of the whole network, to the bit where
// compact() would keep them so.
class WorkingPart {
 public:
  // For one pass: masks must not change while it lives.
  explicit WorkingPart(const Network& whole);

  // What to train for a step, `whole` or a smaller network with its values. Steps that collect
  // thresholds read all channels, silent ones too.
  Network& before_step(Network& whole, bool collects_thresholds);
  // After a step's backward pass: gradients and running statistics to `whole`.
  void after_step(Network& whole) const;

  // What to evaluate.
  const Network& for_evaluation(const Network& whole);

 private:
  using Flags = std::vector<std::vector<uint8_t>>;  // of the channels of every hidden layer

  Flags find_silent(const Network& whole, bool training) const;
  void build(const Network& whole, Flags silent);
  void read_values(const Network& whole);

  // Where the entries of a layer's weights and channels stand in the whole one.
  struct Places {
    std::vector<size_t> weights, channels;
  };

  // A weight that is not masked.
  struct Alive {
    int output, input;
    size_t index;
  };

  bool all_work_;                          // whatever the values are
  std::vector<std::vector<Alive>> alive_;  // of every layer, unless all work
  bool in_use_ = false;
  Flags silent_;
  std::vector<Places> places_;
  std::optional<Network> part_;
};

}  // namespace fmp
