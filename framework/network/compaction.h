// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <vector>

#include "framework/network/network.h"

namespace fmp {

struct CompactionReport {
  int64_t weights_removed = 0;  // mask entries that were still 1 (nobody read their channel)
  std::vector<int> channels_before, channels_after;  // of every hidden layer
};

// Removes what computes nothing, until nothing more can be removed:
//  - an output channel of a hidden layer whose weights are all masked emits a constant, which is
//    folded into the running mean of the next layer (or the output bias); the channel's batch-norm
//    is silenced (gamma = beta = 0), so that it emits exactly 0;
//  - a silent channel, and a channel that no weight of the next layer reads, is dropped from both
//    layers. One channel always stays, and so does one whose weights include the largest of a
//    quantized layer: it sets the scale of all others.
// Channels that add, concat or average_pool make one of go together, only if all of them can. A
// constant that such a layer reads is not folded: its channel stays.
// Dropping changes no output bit in evaluation, and none in training once the thresholds are
// learned (the percentiles before that are of all channels) while cpu::prefers_dense_backward says
// the same of a layer and it is not summed on AMX (kernels/cpu/gradient_tiles.h). The folded
// constant is exact, up to the rounding of the value that it is added to, but for the positions
// where the next convolution's window reaches into the zero padding.
CompactionReport compact(Network& network);

// Where the channels of layer `read` (or kReadsFrames) begin among those of layer `concat`, which
// puts channels side by side.
int first_channel_of(const std::vector<Layer>& layers, size_t concat, int read);

// Which channels of hidden layers go together or not at all: those with the same number, over all
// layers. 0: they can never go, as a layer without weights reads the frames beside them.
std::vector<std::vector<size_t>> tied_channels(const std::vector<Layer>& layers);

}  // namespace fmp
