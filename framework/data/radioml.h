// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "framework/data/dataset.h"
#include "framework/data/frame_loader.h"
#include "framework/data/frame_store.h"
#include "framework/data/split.h"
#include "kernels/communicator.h"

namespace fmp {

// The 24 classes of RadioML 2018.01A in the order of its label columns. (The classes.txt that comes
// with the set is in another order.)
const std::vector<std::string>& radioml_class_names();
// What so many classes are called where nothing else is known: RadioML's names for 24, else
// "class0", "class1", ...
std::vector<std::string> default_class_names(size_t classes);

// Which frames of a file a network can be asked about, and what their labels are for it.
struct ClassMatch {
  std::vector<std::string> classes;    // of the file, for RadioMlOptions; empty: all
  std::vector<uint8_t> network_class;  // of each class that is kept, in the file's order
};
// The classes of the file at `path` that the network's are called after (case does not matter): one
// that was trained on some classes of a file knows only those. Where not all of them are in the
// file, its classes are the network's if they are as many. Throws Error otherwise.
ClassMatch match_classes(const std::string& path, const std::vector<std::string>& network_names);

struct RadioMlOptions {
  std::string path;
  std::vector<std::string> classes;  // names of the classes to keep (case does not matter); empty =
                                     // all. Kept classes are renumbered in the file's order.
  std::optional<int> snr_min;        // keep frames of at least this SNR, dB
  int64_t frames_per_block = 0;      // frames kept of every (class, SNR) pair, see shortened(); 0 =
                                     // all
  int input_bits = 8;                // 2..8: frames become codes; 32: they stay float
  float input_scale = 0;             // of the codes; 0: the usual one, see InputQuantizer
  int64_t memory_limit = 0;  // bytes that frames may take in memory; larger sets are kept in
                             // a temporary file. 0 = half of the machine's memory.
  std::string cache_dir;     // where that file is made; empty = $TMPDIR or /var/tmp
  int threads = 0;           // for loading; 0 = all cores
  // Null, or the ranks that open the file together: each holds its part of the frames alone, see
  // first_held(), and knows the labels of all.
  Communicator* ranks = nullptr;
};

// The chosen frames of a RadioML file, in the file's order.
class RadioMlDataset final : public Dataset {
 public:
  int64_t size() const override { return static_cast<int64_t>(labels_.size()); }
  int length() const override { return length_; }
  const std::vector<std::string>& class_names() const override { return class_names_; }
  uint8_t label(int64_t frame) const override { return labels_.at(static_cast<size_t>(frame)); }
  int16_t snr_db(int64_t frame) const override { return snr_db_.at(static_cast<size_t>(frame)); }
  void read(std::span<const int64_t> frames, FrameBatch& batch) const override;

  // The frames of each (class, SNR) pair, pairs ascending by class, then SNR: what make_split()
  // takes. Shuffled as published: numpy.random.seed(2018), then one shuffle per pair of the whole
  // file (before classes, SNRs or frames are left out), so that a test frame here is a test frame
  // of the published split.
  const std::vector<Block>& blocks() const { return blocks_; }

  // Whether frames are read from a temporary file instead of memory, and the bytes they take there.
  bool streamed() const { return streamed_; }
  // Of the samples, and what is to be told of it, in lines that name the file.
  const InputLevel& level() const { return level_; }
  const std::vector<std::string>& warnings() const { return warnings_; }
  int64_t stored_bytes() const { return held_ * frame_bytes_; }

 private:
  friend class RadioMlLoader;
  RadioMlDataset() = default;

  int length_ = 0;
  int input_bits_ = 0;
  int64_t frame_bytes_ = 0;
  bool streamed_ = false;
  InputLevel level_;
  std::vector<std::string> warnings_;
  std::vector<std::string> class_names_;
  std::vector<uint8_t> labels_;
  std::vector<int16_t> snr_db_;
  std::vector<Block> blocks_;
  int64_t first_ = 0, held_ = 0;  // the frames that are here
  std::unique_ptr<FrameStore> store_;
};

// Opens an HDF5 file in RadioML layout and loads what is asked for:
//   X  [N][length][2]  samples, I and Q    Y  [N][classes]  one-hot labels, 2..256 classes
//      or [N][2][length], I before Q, also with further dimensions of 1
//   Z  [N] or [N][1]   SNR, whole dB
// of any integer or float type, contiguous, chunked or compressed, the frames in any order. Files
// of 24 classes have RadioML's class names, others "class0", "class1", ... Every chosen frame is
// read once, in blocks of bounded size, and converted in parallel. The file is closed again before
// this returns. Throws Error with one line (file, data set, row) when the file is missing,
// truncated or not in this layout, when a sample is not finite, a label not one-hot or an SNR not
// whole, or when ranks find that the file is not the same on all hosts; UsageError when the options
// choose no frames or something that the file does not have.
std::unique_ptr<RadioMlDataset> open_radioml(const RadioMlOptions& options,
                                             const LoadProgress& progress = {});

}  // namespace fmp
