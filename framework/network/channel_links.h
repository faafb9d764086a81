// SPDX-License-Identifier: MIT
// Which weights write and read a channel of a hidden layer.
#pragma once

#include <cstddef>

#include "framework/network/network.h"

namespace fmp {

// A hidden layer and the layer that reads its channels.
struct Link {
  const Layer& layer;
  const Layer& next;

  // How often a channel occurs in the input of `next`: once per position where `next` reads the
  // flattened activations (index = position * channels + channel), else once.
  int copies() const { return next.in_channels / layer.out_channels; }
};

// Calls visit(output of `next`, index of the weight) for every weight that reads `channel`.
template <typename Visitor>
void for_each_reader(const Link& link, int channel, Visitor visit) {
  const Layer& next = link.next;
  size_t row = 0;
  for (int output = 0; output < next.out_channels; ++output) {
    for (int tap = 0; tap < next.taps; ++tap) {
      for (int copy = 0; copy < link.copies(); ++copy) {
        visit(output, row + static_cast<size_t>(copy * link.layer.out_channels + channel));
      }
      row += static_cast<size_t>(next.in_channels);
    }
  }
}

// Calls visit(index of the weight) for every weight that writes `channel`.
template <typename Visitor>
void for_each_writer(const Layer& layer, int channel, Visitor visit) {
  const auto count = static_cast<size_t>(layer.taps) * static_cast<size_t>(layer.in_channels);
  for (size_t i = 0; i < count; ++i) visit(static_cast<size_t>(channel) * count + i);
}

// What a channel without weights emits in evaluation, everywhere: batch-norm of 0, in the kernels'
// arithmetic so that the code is the same even next to a rounding boundary.
float constant_output(const Layer& layer, int channel);

}  // namespace fmp
