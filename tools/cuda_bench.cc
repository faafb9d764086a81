// SPDX-License-Identifier: MIT
// Times every pass of every layer of VGG10 on a device with every kernel that can run it, on random
// frames. One JSON object a line:
//   {"density": 1, "layer": "conv2", "pass": "forward", "kernel": "dense", "seconds": 1.2e-4}
// or, where a library refuses the pass, "failed" with its words instead of "seconds". The passes
// are those of tools/roofline.py. Needs nothing but the kernels.
// With --copy: the bytes that a copy in device memory reads and writes a second, instead,
//   {"copy_bytes_per_s": 3.0e+12}
//
// A pass is captured into a graph some times over and the device times the graph: launches cost the
// host more than the small layers the device.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/cuda/libraries.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/runtime.h"

namespace fmp {
namespace {

constexpr const char* kUsage =
    "usage: cuda_bench [--batch FRAMES] [--density D[,D...]] [--kernels K[,K...]] [--repetitions "
    "R]\n"
    "                  [--length L] [--channels C] [--other-walk 1]\n"
    "       cuda_bench --copy MIB [--repetitions R]\n"
    "Kernels: dense, sparse, cublas, cusparse. Defaults: batch 4096, density 1, all kernels, 20\n"
    "repetitions, length 1024, 64 channels.\n";
constexpr int kConvolutions = 7, kPool = 2, kTaps = 3, kBits = 8, kDenseWidth = 128, kClasses = 24;
constexpr unsigned kSeed = 20253;
// Operands repeat after this many elements, a prime: drawing hundreds of millions takes the host
// longer than the device takes for all of its work.
constexpr size_t kDrawn = 1048573;
// A graph is timed this often, and its best time counts.
constexpr int kTimedGraphs = 2;

struct BenchOptions {
  int batch = 4096, repetitions = 20, length = 1024, channels = 64;
  int copy_mib = 0;  // 0: layers are timed
  int other_walk =
      0;  // 1: frames first where the kernels walk along positions first, and vice versa
  std::vector<double> densities{1};
  std::vector<Kernel> kernels{Kernel::kDense, Kernel::kSparse, Kernel::kCublas, Kernel::kCusparse};
};

// Calls take(part) for the parts between commas, until it returns false.
bool for_each_part(std::string_view list, const std::function<bool(std::string_view)>& take) {
  for (;;) {
    const size_t comma = list.find(',');
    if (!take(list.substr(0, comma))) return false;
    if (comma == std::string_view::npos) return true;
    list.remove_prefix(comma + 1);
  }
}

// False: it is no number.
bool parse_number(std::string_view text, double& value) {
  const std::string copy(text);
  char* end = nullptr;
  value = std::strtod(copy.c_str(), &end);
  return !copy.empty() && *end == '\0';
}

bool add_density(std::string_view text, std::vector<double>& densities) {
  double value = 0;
  if (!parse_number(text, value) || !(value > 0 && value <= 1)) return false;
  densities.push_back(value);
  return true;
}

bool add_kernel(std::string_view text, std::vector<Kernel>& kernels) {
  for (const Kernel kernel : BenchOptions{}.kernels) {
    if (text != kernel_name(kernel)) continue;
    kernels.push_back(kernel);
    return true;
  }
  return false;
}

// False: the arguments are wrong.
bool parse(std::span<char*> arguments, BenchOptions& o) {
  std::map<std::string_view, int*> integers{
      {"--batch", &o.batch},   {"--repetitions", &o.repetitions}, {"--length", &o.length},
      {"--copy", &o.copy_mib}, {"--other-walk", &o.other_walk},   {"--channels", &o.channels}};
  for (size_t i = 1; i < arguments.size(); i += 2) {
    if (i + 1 == arguments.size()) return false;
    const std::string_view name = arguments[i], value = arguments[i + 1];
    double number = 0;
    if (name == "--density") {
      o.densities.clear();
      if (!for_each_part(value, [&](auto part) { return add_density(part, o.densities); }))
        return false;
    } else if (name == "--kernels") {
      o.kernels.clear();
      if (!for_each_part(value, [&](auto part) { return add_kernel(part, o.kernels); }))
        return false;
    } else if (const auto option = integers.find(name); option != integers.end() &&
                                                        parse_number(value, number) &&
                                                        number >= 1 && number < 1 << 20) {
      *option->second = static_cast<int>(number);
    } else {
      return false;
    }
  }
  return o.length % (1 << kConvolutions) == 0;
}

// Seconds of one run.
double seconds_of(cuda::Stream stream, int repetitions, const std::function<void()>& pass) {
  pass();  // allocates
  cuda::Graph graph;
  graph.capture(stream, [&] {
    for (int i = 0; i < repetitions; ++i) pass();
  });
  cuda::Event begin(cuda::Event::Timing::kYes), end(cuda::Event::Timing::kYes);
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < kTimedGraphs; ++i) {
    begin.record(stream);
    graph.launch(stream);
    end.record(stream);
    best = std::min(best, end.seconds_since(begin) / repetitions);
  }
  return best;
}

// Random operands of every size.
class Drawn {
 public:
  Drawn() : floats_(kDrawn), codes_(kDrawn) {
    std::mt19937 random(kSeed);
    std::uniform_real_distribution<float> uniform(-1, 1);
    for (float& v : floats_) v = uniform(random);
    for (uint8_t& v : codes_) v = static_cast<uint8_t>(random() & 0x7f);
  }
  cuda::DeviceBuffer<float> floats(size_t count, cuda::Stream stream) const {
    return repeated(floats_, count, stream);
  }
  cuda::DeviceBuffer<uint8_t> codes(size_t count, cuda::Stream stream) const {
    return repeated(codes_, count, stream);
  }

 private:
  template <typename T>
  static cuda::DeviceBuffer<T> repeated(const std::vector<T>& values, size_t count,
                                        cuda::Stream stream) {
    cuda::DeviceBuffer<T> buffer(count);
    for (size_t at = 0; at < count; at += values.size()) {
      cuda::copy_to_device(buffer.data() + at, values.data(),
                           std::min(values.size(), count - at) * sizeof(T), stream);
    }
    cuda::synchronize(stream);
    return buffer;
  }
  std::vector<float> floats_;
  std::vector<uint8_t> codes_;
};

// A layer with all that its passes read and write.
class LayerBench {
 public:
  LayerBench(std::string name, const LayerShape& shape, const cuda::Tile& in, int out_pad,
             const BenchOptions& options, cuda::Libraries& libraries, const Drawn& drawn)
      : name_(std::move(name)),
        options_(options),
        stream_(libraries.stream()),
        shape_(shape),
        in_(in),
        out_{in.frames, shape.length / shape.pool, shape.out_channels, out_pad},
        dy_tile_{in.frames, shape.length, shape.out_channels,
                 in.length == shape.length ? in.pad : 0},
        conv_(cuda::conv_shape(shape, in)),
        is_output_(name_ == "output"),
        x_(drawn.codes(in.code_bytes(), stream_)),
        out_codes_(out_.code_bytes()),
        weight_(drawn.floats(static_cast<size_t>(shape.weights()), stream_)),
        grad_(weight_.size()),
        y_(dy_tile_.floats()),
        dx_(in.floats()),
        dp_(drawn.floats(cuda::Tile{in.frames, out_.length, out_.channels, 0}.floats(), stream_)),
        of_channels_(ones(static_cast<size_t>(shape.out_channels))),
        running_(ones(static_cast<size_t>(shape.out_channels) * 2)),
        channel_grad_(static_cast<size_t>(shape.out_channels) * 2 + 1) {
    weights_.use_libraries(&libraries);
    if (options.other_walk != 0) weights_.add_up(cuda::Walk::kFramesFirst);
  }

  const cuda::Tile& out() const { return out_; }

  void run(double density) {
    density_ = density;
    std::mt19937 random(kSeed);
    std::bernoulli_distribution alive(density);
    std::vector<uint8_t> mask;
    for (size_t i = 0; density < 1 && i < weight_.size(); ++i) {
      mask.push_back(alive(random) ? 1 : 0);
    }
    weights_.set_mask(conv_, mask, stream_);
    cuda::set_bytes(y_.data(), 0, y_.size() * sizeof(float), stream_);
    for (const Kernel kernel : options_.kernels) {
      if (cuda::is_library(kernel) && !cuda::exact_in_floats(shape_)) continue;
      weights_.compile(shape_, conv_, weight_.data(), true, PassPlan::all(kernel), true, stream_);
      products(kernel);
    }
    weights_.compile(shape_, conv_, weight_.data(), true, {}, true, stream_);
    if (is_output_) return;
    activations("recomputed");
    weights_.compile(shape_, conv_, weight_.data(), true,
                     {Kernel::kSparse, Kernel::kDense, Kernel::kDense}, true, stream_);
    activations("kept");
  }

 private:
  cuda::DeviceBuffer<float> ones(size_t count) const {
    const std::vector<float> values(count, 1.0F);
    cuda::DeviceBuffer<float> buffer(std::span<const float>(values), stream_);
    cuda::synchronize(stream_);
    return buffer;
  }

  cuda::Input input() const {
    return {in_, in_.channels == 2 ? ElementType::kS8 : ElementType::kU8, x_.data(),
            of_channels_.data()};
  }

  double seconds_of(const std::function<void()>& pass) const {
    return fmp::seconds_of(stream_, options_.repetitions, pass);
  }

  void print(const char* pass, const char* kernel, const std::string& result) const {
    std::printf("{\"density\": %g, \"layer\": \"%s\", \"pass\": \"%s\", \"kernel\": \"%s\", %s}\n",
                density_, name_.c_str(), pass, kernel, result.c_str());
    std::fflush(stdout);  // for whoever reads what there is when this is killed
  }
  void print(const char* pass, const char* kernel, double seconds) const {
    char text[64];
    std::snprintf(text, sizeof(text), "\"seconds\": %.4g", seconds);
    print(pass, kernel, std::string(text));
  }
  // In JSON.
  static std::string quoted(const std::string& text) {
    std::string result = "\"";
    for (const char c : text) {
      if (c == '"' || c == '\\') result += '\\';
      result += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
    return result + '"';
  }

  // A library may refuse a pass, which the others do not suffer from.
  void time(const char* pass, Kernel kernel, const std::function<void()>& body) const {
    try {
      print(pass, kernel_name(kernel), seconds_of(body));
    } catch (const cuda::LibraryError& error) {
      print(pass, kernel_name(kernel), "\"failed\": " + quoted(error.what()));
    }
  }

  void gradient_of_weights(const cuda::Input& x) {
    weights_.backward_weight(x, dy_tile_, y_.data(), grad_.data(), stream_);
    weights_.add_up_gradients(stream_);
  }

  void products(Kernel kernel) {
    const cuda::Input x = input();
    time("forward", kernel, [&] { weights_.forward(x, y_.data(), stream_); });
    time("backward weight", kernel, [&] { gradient_of_weights(x); });
    if (in_.channels == 2) return;  // nobody wants the gradient of the frames
    time("backward data", kernel,
         [&] { weights_.backward_data(dy_tile_, y_.data(), dx_.data(), stream_); });
  }

  // What a hidden layer does beside its products, the whole less those; sums that are computed
  // again belong to it.
  void activations(const char* kernel) {
    const cuda::Input x = input();
    const size_t channels = of_channels_.size();
    const cuda::HiddenParameters parameters{of_channels_.data(), of_channels_.data(),
                                            of_channels_.data()};
    cuda::HiddenState state;
    if (options_.other_walk != 0) state.walk = cuda::Walk::kPositionsFirst;
    const double forward = seconds_of([&] {
      cuda::hidden_forward_train(x, weights_, parameters, false,
                                 {running_.data(), running_.data() + channels}, state, out_,
                                 out_codes_.data(), stream_);
    });
    const auto backward_with = [&](float* dx) {
      return seconds_of([&] {
        cuda::hidden_backward(x, weights_, parameters, state, dp_.data(), nullptr,
                              {grad_.data(), channel_grad_.data(), channel_grad_.data() + channels,
                               channel_grad_.data() + 2 * channels},
                              dx, stream_);
        weights_.add_up_gradients(stream_);
      });
    };
    const double backward = backward_with(nullptr);
    const bool once = in_.channels == 2 && cuda::sums_gradients_once(x, weights_);
    const bool on_chip = state.on_chip;
    const double product =
        state.keeps_y ? seconds_of([&] { weights_.forward(x, y_.data(), stream_); }) : 0.0;
    print("activation", kernel, forward - product);
    const double weight = once || on_chip ? 0.0 : seconds_of([&] { gradient_of_weights(x); });
    print("activation backward", kernel, backward - weight);
    if (once || on_chip) print("backward weight", kernel, 0.0);  // comes with it
    if (on_chip) print("backward data", kernel, backward_with(dx_.data()) - backward);
  }

  std::string name_;
  const BenchOptions& options_;
  cuda::Stream stream_;
  double density_ = 1;
  LayerShape shape_;
  cuda::Tile in_, out_, dy_tile_;
  cuda::ConvShape conv_;
  bool is_output_;
  cuda::DeviceBuffer<uint8_t> x_, out_codes_;
  cuda::DeviceBuffer<float> weight_, grad_, y_, dx_, dp_, of_channels_, running_, channel_grad_;
  cuda::Weights weights_;
};

void bench_copy(const BenchOptions& options) {
  const cuda::OwnedStream stream;
  const size_t bytes = static_cast<size_t>(options.copy_mib) << 20;
  cuda::DeviceBuffer<uint8_t> from(bytes), to(bytes);
  cuda::set_bytes(from.data(), 1, bytes, stream);
  const double seconds = seconds_of(stream, options.repetitions, [&] {
    cuda::copy_on_device(to.data(), from.data(), bytes, stream);
  });
  std::printf("{\"copy_bytes_per_s\": %.4g}\n", 2 * static_cast<double>(bytes) / seconds);
}

void bench(const BenchOptions& options) {
  const cuda::MemoryCache cache;  // layers take over each other's memory
  const cuda::OwnedStream stream;
  cuda::Libraries libraries(stream);
  const Drawn drawn;
  cuda::Tile tile{options.batch, options.length, 2, (kTaps - 1) / 2};
  const auto run = [&](const std::string& name, const LayerShape& shape, int out_pad) {
    LayerBench layer(name, shape, tile, out_pad, options, libraries, drawn);
    for (const double density : options.densities) layer.run(density);
    tile = layer.out();
  };
  for (int i = 0; i < kConvolutions; ++i) {
    run("conv" + std::to_string(i + 1),
        {tile.channels, options.channels, kTaps, tile.length, kPool, kBits, kBits, kBits},
        i + 1 < kConvolutions ? (kTaps - 1) / 2 : 0);
  }
  const std::pair<const char*, int> dense[] = {
      {"dense1", kDenseWidth}, {"dense2", kDenseWidth}, {"output", kClasses}};
  for (const auto& [name, width] : dense) {
    run(name, {tile.channels * tile.length, width, 1, 1, 1, kBits, kBits, kBits}, 0);
  }
}

int run_main(std::span<char*> arguments) {
  BenchOptions options;
  if (!parse(arguments, options)) {
    std::fputs(kUsage, stderr);
    return 2;
  }
  const char* why = "";
  if (!cuda::device_available(&why)) {
    std::fprintf(stderr, "cuda_bench: no CUDA device: %s\n", why);
    return 1;
  }
  try {
    options.copy_mib > 0 ? bench_copy(options) : bench(options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "cuda_bench: %s\n", error.what());
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace fmp

int main(int argc, char** argv) {
  return fmp::run_main(std::span(argv, static_cast<size_t>(argc)));
}
