// SPDX-License-Identifier: MIT
#pragma once

#include "framework/synth/modulation.h"

// Each family of modulations is one file; its function makes the members in any order.
namespace fmp::synth {

Modulations amplitude_shift_keying();  // ask.cc
Modulations phase_shift_keying();      // psk.cc
Modulations amplitude_phase_keying();  // apsk.cc
Modulations quadrature_amplitude();    // qam.cc
Modulations amplitude_modulation();    // am.cc
Modulations frequency_modulation();    // fm.cc
Modulations minimum_shift_keying();    // gmsk.cc

}  // namespace fmp::synth
