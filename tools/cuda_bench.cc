// SPDX-License-Identifier: MIT
// Times every pass of every layer of VGG10 on a device with every kernel that can run it, on random
// frames. One JSON object a line:
//   {"layer": "conv2", "pass": "forward", "kernel": "dense", "seconds": 1.2e-4}
// The passes are those of tools/roofline.py. Needs nothing but the kernels.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <map>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/cuda/libraries.h"
#include "kernels/cuda/ops.h"

namespace fmp {
namespace {

constexpr const char* kUsage =
    "usage: cuda_bench [--batch FRAMES] [--density D] [--repetitions R] [--length L] [--channels "
    "C]\n"
    "Defaults: batch 4096, density 1, 20 repetitions, length 1024, 64 channels.\n";
constexpr int kConvolutions = 7, kPool = 2, kTaps = 3, kBits = 8, kDenseWidth = 128, kClasses = 24;
constexpr unsigned kSeed = 20253;
constexpr cuda::Stream kStream = nullptr;

struct BenchOptions {
  int batch = 4096, repetitions = 20, length = 1024, channels = 64;
  double density = 1;
};

// False: the arguments are wrong.
bool parse(std::span<char*> arguments, BenchOptions& o) {
  std::map<std::string_view, int*> integers{{"--batch", &o.batch},
                                            {"--repetitions", &o.repetitions},
                                            {"--length", &o.length},
                                            {"--channels", &o.channels}};
  for (size_t i = 1; i < arguments.size(); i += 2) {
    if (i + 1 == arguments.size()) return false;
    char* end = nullptr;
    const double value = std::strtod(arguments[i + 1], &end);
    if (*end != '\0') return false;
    if (std::string_view(arguments[i]) == "--density") {
      o.density = value;
    } else if (const auto option = integers.find(arguments[i]);
               option != integers.end() && value >= 1 && value < 1 << 20) {
      *option->second = static_cast<int>(value);
    } else {
      return false;
    }
  }
  return o.density > 0 && o.density <= 1 && o.length % (1 << kConvolutions) == 0;
}

template <typename T>
cuda::DeviceBuffer<T> upload(const std::vector<T>& values) {
  cuda::DeviceBuffer<T> buffer(std::span<const T>(values), kStream);
  cuda::synchronize(kStream);
  return buffer;
}

// A layer with all that its passes read and write.
class LayerBench {
 public:
  LayerBench(std::string name, const ops::LayerShape& shape, const cuda::Tile& in, int out_pad,
             const BenchOptions& options, cuda::Libraries& libraries, std::mt19937& random)
      : name_(std::move(name)),
        options_(options),
        shape_(shape),
        in_(in),
        out_{in.frames, shape.length / shape.pool, shape.out_channels, out_pad},
        dy_tile_{in.frames, shape.length, shape.out_channels,
                 in.length == shape.length ? in.pad : 0},
        conv_(cuda::conv_shape(shape, in)),
        is_output_(name_ == "output"),
        x_(random_bytes(in.code_bytes(), random)),
        out_codes_(out_.code_bytes()),
        weight_(random_floats(static_cast<size_t>(shape.weights()), random)),
        grad_(weight_.size()),
        y_(dy_tile_.floats()),
        dx_(in.floats()),
        dp_(random_floats(cuda::Tile{in.frames, out_.length, out_.channels, 0}.floats(), random)),
        of_channels_(upload(std::vector<float>(static_cast<size_t>(shape.out_channels), 1.0F))),
        running_(upload(std::vector<float>(static_cast<size_t>(shape.out_channels) * 2, 1.0F))),
        channel_grad_(static_cast<size_t>(shape.out_channels) * 2 + 1) {
    std::bernoulli_distribution alive(options.density);
    std::vector<uint8_t> mask;
    for (size_t i = 0; i < weight_.size(); ++i) mask.push_back(alive(random) ? 1 : 0);
    weights_.use_libraries(&libraries);
    weights_.set_mask(conv_, options.density < 1 ? mask : std::vector<uint8_t>(), kStream);
    cuda::set_bytes(y_.data(), 0, y_.size() * sizeof(float), kStream);
  }

  const cuda::Tile& out() const { return out_; }

  void run() {
    using cuda::Kernel;
    for (const Kernel kernel :
         {Kernel::kDense, Kernel::kSparse, Kernel::kCublas, Kernel::kCusparse}) {
      if (cuda::is_library(kernel) && !cuda::exact_in_floats(shape_)) continue;
      weights_.compile(shape_, conv_, weight_.data(), true, {kernel, kernel, kernel}, true,
                       kStream);
      products(cuda::kernel_name(kernel));
    }
    weights_.compile(shape_, conv_, weight_.data(), true, {}, true, kStream);
    if (!is_output_) activations();
  }

 private:
  static cuda::DeviceBuffer<uint8_t> random_bytes(size_t count, std::mt19937& random) {
    std::vector<uint8_t> values(count);
    for (uint8_t& v : values) v = static_cast<uint8_t>(random() & 0x7f);
    return upload(values);
  }
  static cuda::DeviceBuffer<float> random_floats(size_t count, std::mt19937& random) {
    std::uniform_real_distribution<float> uniform(-1, 1);
    std::vector<float> values(count);
    for (float& v : values) v = uniform(random);
    return upload(values);
  }

  cuda::Input input() const {
    return {in_, in_.channels == 2 ? ElementType::kS8 : ElementType::kU8, x_.data(),
            of_channels_.data()};
  }

  // Seconds of one run; many are put on the stream before the clock stops.
  template <typename Pass>
  double seconds_of(const Pass& pass) const {
    pass();  // allocates
    cuda::synchronize(kStream);
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < options_.repetitions; ++i) pass();
    cuda::synchronize(kStream);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() /
           options_.repetitions;
  }
  void print(const char* pass, const char* kernel, double seconds) const {
    std::printf("{\"layer\": \"%s\", \"pass\": \"%s\", \"kernel\": \"%s\", \"seconds\": %.4g}\n",
                name_.c_str(), pass, kernel, seconds);
  }

  void products(const char* kernel) {
    const cuda::Input x = input();
    print("forward", kernel, seconds_of([&] { weights_.forward(x, y_.data(), kStream); }));
    print("backward weight", kernel, seconds_of([&] {
            weights_.backward_weight(x, dy_tile_, y_.data(), grad_.data(), kStream);
          }));
    if (in_.channels == 2) return;  // nobody wants the gradient of the frames
    print("backward data", kernel,
          seconds_of([&] { weights_.backward_data(dy_tile_, y_.data(), dx_.data(), kStream); }));
  }

  // What a hidden layer does beside its products: the whole less those.
  void activations() {
    const cuda::Input x = input();
    const size_t channels = of_channels_.size();
    const cuda::HiddenParameters parameters{of_channels_.data(), of_channels_.data(),
                                            of_channels_.data()};
    cuda::HiddenState state;
    const double forward = seconds_of([&] {
      cuda::hidden_forward_train(shape_, conv_, x, weights_, parameters, false, running_.data(),
                                 running_.data() + channels, state, out_, out_codes_.data(),
                                 kStream);
    });
    const double backward = seconds_of([&] {
      cuda::hidden_backward(shape_, conv_, x, weights_, parameters, state, dp_.data(), nullptr,
                            {grad_.data(), channel_grad_.data(), channel_grad_.data() + channels,
                             channel_grad_.data() + 2 * channels},
                            nullptr, kStream);
    });
    print("activation", "", forward - seconds_of([&] { weights_.forward(x, y_.data(), kStream); }));
    print("activation backward", "", backward - seconds_of([&] {
                                       weights_.backward_weight(x, dy_tile_, y_.data(),
                                                                grad_.data(), kStream);
                                     }));
  }

  std::string name_;
  const BenchOptions& options_;
  ops::LayerShape shape_;
  cuda::Tile in_, out_, dy_tile_;
  cuda::ConvShape conv_;
  bool is_output_;
  cuda::DeviceBuffer<uint8_t> x_, out_codes_;
  cuda::DeviceBuffer<float> weight_, grad_, y_, dx_, dp_, of_channels_, running_, channel_grad_;
  cuda::Weights weights_;
};

void bench(const BenchOptions& options) {
  std::mt19937 random(kSeed);
  cuda::Libraries libraries(kStream);
  cuda::Tile tile{options.batch, options.length, 2, (kTaps - 1) / 2};
  const auto run = [&](const std::string& name, const ops::LayerShape& shape, int out_pad) {
    LayerBench layer(name, shape, tile, out_pad, options, libraries, random);
    layer.run();
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
    bench(options);
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
