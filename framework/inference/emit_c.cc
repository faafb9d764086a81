// SPDX-License-Identifier: MIT
// C code of an integer network. All layers with weights share one interpreter of a few dozen lines;
// what differs is data. Activations are [channels][positions], so that a weight is met once per
// frame and its inner loop runs over neighbouring bytes.
//
// Weights are a stream of steps "skip so many, then this weight": one byte each where weights have
// at most 4 bits, two bytes otherwise, and plain bytes for layers that are too dense for that. A
// distance too long for one step is made with a weight of zero.
#include "framework/inference/emit_c.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <iterator>
#include <vector>

#include "framework/data/dataset.h"
#include "framework/error.h"

namespace fmp {
namespace {

enum class Encoding : uint8_t { kNibbles, kBytes, kPlain };

struct Stream {
  Encoding encoding = Encoding::kPlain;
  std::vector<uint8_t> bytes;
  std::vector<int64_t> steps;  // of each output
};

// The weights of an output in the order [channels of its group][kernel].
std::vector<int8_t> ordered_weights(const IntegerLayerData& layer, int output) {
  const cpu::IntegerShape& s = layer.shape;
  const Convolution& form = layer.form;
  const int group_channels = layer.channels() / form.groups;
  const int first_channel = output / (s.out_channels / form.groups) * group_channels;
  const int first_position = (s.taps - 1) / 2 * form.stride - form.padding;
  const int8_t* weights =
      layer.codes.data() + static_cast<ptrdiff_t>(output) * s.taps * s.in_channels;
  std::vector<int8_t> ordered;
  for (int c = first_channel; c < first_channel + group_channels; ++c) {
    for (int k = 0; k < form.kernel; ++k) {
      ordered.push_back(weights[(first_position + k) * layer.channels() + c]);
    }
  }
  return ordered;
}

// Steps for the nonzeros of one output, the longest of which skips `longest` weights.
template <typename Emit>
int64_t encode_steps(const std::vector<int8_t>& weights, int longest, const Emit& emit) {
  int64_t steps = 0;
  int skip = 0;
  for (const int8_t w : weights) {
    if (w == 0 && skip < longest) {
      ++skip;
      continue;
    }
    emit(skip, w);
    ++steps;
    skip = 0;
  }
  return steps;
}

Stream encode(const IntegerLayerData& layer, Encoding encoding) {
  Stream stream;
  stream.encoding = encoding;
  for (int o = 0; o < layer.shape.out_channels; ++o) {
    const std::vector<int8_t> weights = ordered_weights(layer, o);
    switch (encoding) {
      case Encoding::kNibbles:
        stream.steps.push_back(encode_steps(weights, 15, [&](int skip, int8_t w) {
          stream.bytes.push_back(static_cast<uint8_t>(skip << 4 | (w + 8)));
        }));
        break;
      case Encoding::kBytes:
        stream.steps.push_back(encode_steps(weights, 255, [&](int skip, int8_t w) {
          stream.bytes.push_back(static_cast<uint8_t>(skip));
          stream.bytes.push_back(static_cast<uint8_t>(w));
        }));
        break;
      case Encoding::kPlain:
        for (const int8_t w : weights) stream.bytes.push_back(static_cast<uint8_t>(w));
        stream.steps.push_back(static_cast<int64_t>(weights.size()));
        break;
    }
  }
  return stream;
}

Stream shortest_stream(const IntegerLayerData& layer) {
  Stream best = encode(layer, Encoding::kPlain);
  const bool small = std::ranges::all_of(layer.codes, [](int8_t w) { return w >= -8 && w < 8; });
  for (const Encoding encoding : {Encoding::kBytes, Encoding::kNibbles}) {
    if (encoding == Encoding::kNibbles && !small) continue;
    Stream stream = encode(layer, encoding);
    if (stream.bytes.size() < best.bytes.size()) best = std::move(stream);
  }
  return best;
}

// "static const TYPE NAME[] = {...};", a few values a line.
template <typename Values>
std::string array(const char* type, const std::string& name, const Values& values) {
  constexpr size_t kColumns = 98;
  std::string text = fmt::format("static const {} {}[{}] = {{", type, name, values.size());
  std::string line = "\n   ";
  for (const auto& value : values) {
    const std::string item = fmt::format(" {},", value);
    if (line.size() + item.size() > kColumns) {
      text += line;
      line = "\n   ";
    }
    line += item;
  }
  return text + line + "\n};\n";
}

constexpr int kNoMultiplication = -1;

class Emitter {
 public:
  Emitter(const IntegerNetwork& network, std::string name, std::string origin)
      : network_(network),
        name_(std::move(name)),
        origin_(std::move(origin)),
        slot_bytes_(static_cast<size_t>(network.slots()), 1),
        reads_packed_frames_(std::ranges::any_of(network.layers(), [](const auto& layer) {
          return !layer.has_weights() && std::ranges::count(layer.reads, kReadsFrames) > 0;
        })) {}

  CCode run() {
    if (reads_packed_frames_) reserve(kReadsFrames);
    for (const IntegerLayerData& layer : network_.layers()) {
      const int index = static_cast<int>(&layer - network_.layers().data());
      if (index + 1 < std::ssize(network_.layers())) reserve(index);
      if (layer.has_weights()) {
        add_layer(layer, index);
      } else {
        add_join(layer, index);
      }
    }
    add_output();
    CCode code;
    code.constant_bytes = constant_bytes_;
    code.working_bytes = 4 * sums_;
    for (const int64_t bytes : slot_bytes_) code.working_bytes += bytes;
    code.header = header(code);
    code.source = source();
    return code;
  }

 private:
  // Memory for what a layer writes.
  void reserve(int layer) {
    const IntegerValue& value = network_.value_of(layer);
    int64_t& bytes = slot_bytes_[static_cast<size_t>(value.slot)];
    bytes = std::max(bytes, int64_t{value.channels} * value.positions);
  }
  std::string slot(int layer) const { return fmt::format("slot{}", network_.value_of(layer).slot); }

  void add_layer(const IntegerLayerData& layer, int number) {
    Stream stream = shortest_stream(layer);
    // A layer without weights still needs an element to be an array.
    stream.bytes.resize(std::max<size_t>(1, stream.bytes.size()));
    const size_t index = layers_.size();
    tables_ += fmt::format("\n/* {}: {} of {} weights are not zero. */\n", layer.name,
                           layer.nonzeros(), layer.codes.size());
    tables_ += array("uint8_t", fmt::format("weights{}", index), stream.bytes);
    tables_ += array("uint32_t", fmt::format("steps{}", index), stream.steps);
    constant_bytes_ += static_cast<int64_t>(stream.bytes.size() + 4 * stream.steps.size());
    std::string activations = "0";
    if (layer.hidden()) {
      activations = fmt::format("activations{}", index);
      add_activations(layer, activations);
      const bool frames = layer.reads[0] == kReadsFrames;
      calls_ += frames ? fmt::format("    hidden(layers + {}, iq, {}, 0, {});\n", index,
                                     network_.config().input_channels, slot(number))
                       : fmt::format("    hidden(layers + {}, 0, 0, {}, {});\n", index,
                                     slot(layer.reads[0]), slot(number));
    }
    sums_ = std::max<int64_t>(sums_, layer.length);
    const int encoding = static_cast<int>(stream.encoding);
    const bool packed = layer.reads[0] != kReadsFrames;
    const int offset = packed && layer.signed_input ? -layer.smallest_input() : 0;
    const Convolution& form = layer.form;
    layers_.push_back(fmt::format(
        "    {{weights{}, steps{}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}}}", index, index,
        activations, encoding, layer.shape.out_channels, layer.shape.out_channels / form.groups,
        layer.channels() / form.groups, form.kernel, form.stride, form.padding,
        network_.value_of(layer.reads[0]).positions, layer.length, layer.shape.pool, offset));
    constant_bytes_ += kLayerBytes;
  }

  // Values are [channels][positions]: a window lies side by side, and so do the inputs of a concat.
  void add_join(const IntegerLayerData& layer, int number) {
    tables_ += fmt::format("\n/* {}: codes of what it reads. */\n", layer.name);
    int64_t written = 0;
    for (size_t i = 0; i < layer.tables.size(); ++i) {
      const std::string table = fmt::format("codes{}_{}", number, i);
      tables_ += array("uint8_t", table, layer.tables[i]);
      constant_bytes_ += std::ssize(layer.tables[i]);
      const int read = layer.reads[i];
      const IntegerValue& x = network_.value_of(read);
      if (layer.kind == LayerKind::kAdd) {
        adds_ = true;
        calls_ += fmt::format("    join_two({}, {}, {}, {}, {}, {}, {}, {});\n", table,
                              layer.columns, slot(read), slot(layer.reads[1]), x.channels,
                              x.positions, layer.shape.pool, slot(number));
      } else if (layer.kind == LayerKind::kConcat) {
        concats_ = true;
        calls_ += fmt::format("    recode({}, {}, {}, {}, {}, {} + {});\n", table, slot(read),
                              x.channels, x.positions, layer.shape.pool, slot(number), written);
        written += int64_t{x.channels} * layer.positions_written();
      } else {
        averages_ = true;
        calls_ +=
            fmt::format("    average({}, {}, {}, {}, {}, {}, {});\n", table, slot(read), x.channels,
                        x.positions, layer.window, layer.shape.pool, slot(number));
      }
    }
  }

  void add_activations(const IntegerLayerData& layer, const std::string& name) {
    std::string rows;
    const size_t levels = static_cast<size_t>(layer.levels());
    for (size_t o = 0; o < layer.requantizers.size(); ++o) {
      const cpu::Requantizer& r = layer.requantizers[o];
      if (r.exact) {
        rows += fmt::format("    {{UINT64_C({}), {}, {}, UINT32_C({}), {}}},\n", r.offset,
                            integer(r.base), integer(r.top), r.multiplier, r.shift);
        continue;
      }
      rows += fmt::format("    {{UINT64_C({}), {}, 0, 0, {}}},\n", searched_.size(), levels,
                          kNoMultiplication);
      for (size_t k = o * levels; k < (o + 1) * levels; ++k) {
        searched_.push_back(integer(layer.thresholds[k]));
      }
      constant_bytes_ += static_cast<int64_t>(4 * levels);
    }
    tables_ += fmt::format("static const struct activation {}[{}] = {{\n{}}};\n", name,
                           layer.requantizers.size(), rows);
    constant_bytes_ += static_cast<int64_t>(layer.requantizers.size()) * kActivationBytes;
  }

  void add_output() {
    const IntegerLayerData& output = network_.layers().back();
    std::vector<std::string> bias, offsets;
    for (const int32_t b : output.bias) bias.push_back(integer(b));
    for (const int64_t offset : network_.rounding().offset()) {
      offsets.push_back(fmt::format("INT64_C({})", offset));
    }
    if (network_.has_plain_output()) {
      tables_ += "\n" + array("int32_t", "bias", bias);
      constant_bytes_ += static_cast<int64_t>(4 * bias.size());
    } else {
      std::vector<std::string> multipliers;
      for (const int64_t multiplier : network_.rounding().multiplier()) {
        multipliers.push_back(fmt::format("INT64_C({})", multiplier));
      }
      tables_ += "\n" + array("int64_t", "rounding_multiplier", multipliers);
      constant_bytes_ += static_cast<int64_t>(8 * multipliers.size());
    }
    tables_ += array("int64_t", "rounding_offset", offsets);
    constant_bytes_ += static_cast<int64_t>(8 * offsets.size());
    if (searched_.empty()) searched_.emplace_back("0");
    tables_ += "\n" + array("int32_t", "thresholds", searched_);
    constant_bytes_ += 4;
  }

  // A constant of type int32_t; C has no negative literals, so the smallest needs care.
  static std::string integer(int32_t value) {
    return value == INT32_MIN ? "INT32_MIN" : fmt::to_string(value);
  }

  std::string header(const CCode& code) const {
    std::string guard = name_ + "_H";
    std::ranges::transform(guard, guard.begin(),
                           [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
    std::string upper = guard.substr(0, guard.size() - 2);
    const NetworkConfig& c = network_.config();
    const int values = c.length * c.input_channels;
    const double scale = static_cast<double>(c.input_quantizer().scale);
    return fmt::format(
        R"(/* Generated from {origin}: a quantized 1-D CNN on integers alone, in C99.
 *
 * Memory: {constant} bytes of constants (weights, tables; plus about 1 KB of code), {working} bytes of
 * static working memory, less than 300 bytes of stack, no heap. Not reentrant: the working memory is
 * shared by all calls.
 */
#ifndef {guard}
#define {guard}

#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

#define {upper}_LENGTH {length}     /* samples of a frame */
#define {upper}_CHANNELS {channels}      /* values of a sample: I, Q */
#define {upper}_CLASSES {classes}
#define {upper}_INPUT_BITS {bits}
#define {upper}_CONSTANT_BYTES {constant}
#define {upper}_WORKING_BYTES {working}

/* iq: {length} samples, I and Q in turn, each the code of a value: round(value / {scale:.9g}), ties to
 * even, limited to {low} .. {high}. Returns the class, 0 .. {last}. */
int {name}_classify(const int8_t iq[{values}]);

/* The same, and the logits as integers: multiples of {logit_scale:.9g}. */
int {name}_logits(const int8_t iq[{values}], int32_t logits[{classes}]);

#ifdef __cplusplus
}}
#endif

#endif
)",
        fmt::arg("origin", origin_), fmt::arg("constant", code.constant_bytes),
        fmt::arg("working", code.working_bytes), fmt::arg("guard", guard), fmt::arg("upper", upper),
        fmt::arg("length", c.length), fmt::arg("channels", c.input_channels),
        fmt::arg("classes", c.classes), fmt::arg("bits", c.input_bits), fmt::arg("scale", scale),
        fmt::arg("low", -(1 << (c.input_bits - 1))),
        fmt::arg("high", (1 << (c.input_bits - 1)) - 1), fmt::arg("last", c.classes - 1),
        fmt::arg("name", name_), fmt::arg("values", values),
        fmt::arg("logit_scale", network_.logit_scale()));
  }

  std::string source() const {
    const NetworkConfig& c = network_.config();
    std::string text = fmt::format("/* Generated; see {}.h. */\n#include \"{}.h\"\n", name_, name_);
    text += kTypes;
    text += tables_;
    text += fmt::format("\nstatic const struct layer layers[{}] = {{\n{},\n}};\n", layers_.size(),
                        fmt::join(layers_, ",\n"));
    text += "\n/* What layers write, and the sums of a channel. */\nstatic uint8_t ";
    for (size_t i = 0; i < slot_bytes_.size(); ++i)
      text += fmt::format("{}slot{}[{}]", i > 0 ? ", " : "", i, slot_bytes_[i]);
    text += fmt::format(";\nstatic int32_t sums[{}];\n", sums_);
    text += kInterpreter;
    if (adds_) text += kJoinTwo;
    if (concats_) text += kRecode;
    if (averages_) text += kAverage;
    std::string calls = calls_;
    if (reads_packed_frames_) {
      const IntegerValue& frames = network_.value_of(kReadsFrames);
      calls = fmt::format(
                  "    for (i = 0; i < {}; ++i) {}[i % {} * {} + i / {}] = (uint8_t)(iq[i] + "
                  "{});\n",
                  c.length * c.input_channels, slot(kReadsFrames), c.input_channels, c.length,
                  c.input_channels, frames.zero) +
              calls;
    }
    const bool plain = network_.has_plain_output();
    const std::vector<int64_t>& multipliers = network_.rounding().multiplier();
    if (!plain) {
      text +=
          fmt::format(kIntegerLogit, fmt::arg("unit", int64_t{1} << network_.rounding().shift()));
    }
    text += fmt::format(
        kFunctions, fmt::arg("name", name_), fmt::arg("values", c.length * c.input_channels),
        fmt::arg("classes", c.classes), fmt::arg("last", layers_.size() - 1),
        fmt::arg("calls", calls), fmt::arg("x", slot(network_.layers().back().reads[0])),
        fmt::arg("multiplier",
                 plain ? fmt::to_string(multipliers.front()) : "rounding_multiplier[i]"),
        fmt::arg("integer_logit", plain ? "sums[0] + bias[i]" : "integer_logit(logit)"));
    return text;
  }

  static constexpr int64_t kActivationBytes = 24;  // sizeof(struct activation)
  static constexpr int64_t kLayerBytes = 72;       // at most, with 64-bit pointers

  static constexpr const char* kTypes = R"(
/* From the sum of a channel to its code: ((clamp(sum) - base) * multiplier + offset) >> shift. shift
 * < 0: no such constants give the exact codes, and the `base` thresholds from number `offset` on are
 * searched. */
struct activation {
    uint64_t offset;
    int32_t base, top;
    uint32_t multiplier;
    int32_t shift;
};

/* Weights are steps "skip s weights of zero, then weight w". encoding 0: a byte each, s * 16 + w + 8;
 * 1: two bytes, s and w; 2: a byte each, w alone. Their order is [outputs][channels][kernel], the
 * channels being those of the output's group. */
struct layer {
    const uint8_t *weights;
    const uint32_t *steps; /* of each output */
    const struct activation *activations;
    int32_t encoding, outputs, group_outputs, group_channels, kernel, stride, padding;
    int32_t samples, length, pool; /* positions read and written, and what joins them afterwards */
    int32_t offset; /* the byte that stands for the value 0 in what the layer reads */
};
)";

  static constexpr const char* kInterpreter = R"(
static int32_t as_signed(uint8_t byte) { return (int32_t)(byte ^ 0x80) - 0x80; }

/* sums[l] += weight * x[l * stride + shift] wherever that is inside. iq: null, or what the first
 * layer reads, signed and `channels` apart; else x, unsigned and contiguous. */
static void add(const struct layer *layer, int32_t weight, const int8_t *iq, int32_t channels,
                const uint8_t *x, int32_t shift)
{
    const int32_t stride = layer->stride, inside = layer->samples - shift;
    const int32_t first = shift < 0 ? (stride - 1 - shift) / stride : 0;
    int32_t last = (inside + stride - 1) / stride, l;
    if (last > layer->length) last = layer->length;
    if (iq) {
        for (l = first; l < last; ++l) sums[l] += weight * iq[(l * stride + shift) * channels];
    } else if (stride != 1 || layer->offset != 0) {
        for (l = first; l < last; ++l) sums[l] += weight * (x[l * stride + shift] - layer->offset);
    } else {
        for (l = first; l < last; ++l) sums[l] += weight * x[l + shift];
    }
}

/* Reads the weights of one output and leaves its sums; returns where the next output's begin. */
static const uint8_t *sum_output(const struct layer *layer, const uint8_t *weights, int32_t output,
                                 const int8_t *iq, int32_t channels, const uint8_t *x)
{
    const int32_t first = output / layer->group_outputs * layer->group_channels;
    uint32_t steps = layer->steps[output];
    int32_t index = 0, l;
    for (l = 0; l < layer->length; ++l) sums[l] = 0;
    for (; steps > 0; --steps, ++index) {
        int32_t weight, channel;
        if (layer->encoding == 0) {
            index += *weights >> 4;
            weight = (int32_t)(*weights++ & 15) - 8;
        } else {
            if (layer->encoding == 1) index += *weights++;
            weight = as_signed(*weights++);
        }
        if (weight == 0) continue;
        channel = first + index / layer->kernel;
        add(layer, weight, iq ? iq + channel : 0, channels,
            iq ? 0 : x + channel * layer->samples,
            index % layer->kernel - layer->padding);
    }
    return weights;
}

static uint8_t code_of(const struct activation *a, int32_t sum)
{
    if (a->shift >= 0) {
        const int32_t inside = sum < a->base ? a->base : sum > a->top ? a->top : sum;
        const uint32_t distance = (uint32_t)inside - (uint32_t)a->base;
        return (uint8_t)(((uint64_t)distance * a->multiplier + a->offset) >> a->shift);
    } else {
        const int32_t *threshold = thresholds + a->offset;
        int32_t code = 0, step = (a->base + 1) / 2;
        for (; step > 0; step /= 2) {
            if (sum >= threshold[code + step - 1]) code += step;
        }
        return (uint8_t)code;
    }
}

static void hidden(const struct layer *layer, const int8_t *iq, int32_t channels, const uint8_t *x,
                   uint8_t *out)
{
    const uint8_t *weights = layer->weights;
    int32_t o, l, k;
    for (o = 0; o < layer->outputs; ++o) {
        weights = sum_output(layer, weights, o, iq, channels, x);
        for (l = 0; l + layer->pool <= layer->length; l += layer->pool) {
            int32_t largest = sums[l];
            for (k = 1; k < layer->pool; ++k) {
                if (sums[l + k] > largest) largest = sums[l + k];
            }
            *out++ = code_of(layer->activations + o, largest);
        }
    }
}

/* To at most 24 significant bits, as a float is rounded. */
static int64_t round24(int64_t value)
{
    uint64_t magnitude = value < 0 ? (uint64_t)0 - (uint64_t)value : (uint64_t)value;
    uint64_t unit = 1, rest;
    while (magnitude / unit >= UINT64_C(16777216)) unit *= 2;
    rest = magnitude % unit;
    magnitude -= rest;
    if (rest > unit / 2 || (unit > 1 && rest == unit / 2 && (magnitude & unit))) magnitude += unit;
    return value < 0 ? -(int64_t)magnitude : (int64_t)magnitude;
}
)";

  // Layers without weights: tables of codes, which never decrease, then the largest of each window.
  static constexpr const char* kJoinTwo = R"(
static void join_two(const uint8_t *codes, int32_t columns, const uint8_t *a, const uint8_t *b,
                     int32_t channels, int32_t length, int32_t pool, uint8_t *out)
{
    int32_t i, k;
    for (; channels > 0; --channels, a += length, b += length) {
        for (i = 0; i + pool <= length; i += pool) {
            uint8_t largest = 0;
            for (k = i; k < i + pool; ++k) {
                const uint8_t code = codes[a[k] * columns + b[k]];
                if (code > largest) largest = code;
            }
            *out++ = largest;
        }
    }
}
)";
  static constexpr const char* kRecode = R"(
static void recode(const uint8_t *codes, const uint8_t *x, int32_t channels, int32_t length,
                   int32_t pool, uint8_t *out)
{
    int32_t i, k;
    for (; channels > 0; --channels, x += length) {
        for (i = 0; i + pool <= length; i += pool) {
            uint8_t largest = 0;
            for (k = i; k < i + pool; ++k) {
                if (codes[x[k]] > largest) largest = codes[x[k]];
            }
            *out++ = largest;
        }
    }
}
)";
  static constexpr const char* kAverage = R"(
static void average(const uint8_t *codes, const uint8_t *x, int32_t channels, int32_t length,
                    int32_t window, int32_t pool, uint8_t *out)
{
    int32_t i, k, j;
    for (; channels > 0; --channels, x += length) {
        for (i = 0; i + pool * window <= length; i += pool * window) {
            uint8_t largest = 0;
            for (k = 0; k < pool; ++k) {
                int32_t sum = 0;
                for (j = 0; j < window; ++j) sum += x[i + k * window + j];
                if (codes[sum] > largest) largest = codes[sum];
            }
            *out++ = largest;
        }
    }
}
)";

  static constexpr const char* kIntegerLogit = R"(
/* To the nearest multiple of a logit's unit. */
static int32_t integer_logit(int64_t logit)
{{
    const int64_t unit = INT64_C({unit}), rest = logit % unit;
    return (int32_t)(logit / unit + (2 * rest >= unit) - (2 * rest < -unit));
}}
)";

  static constexpr const char* kFunctions = R"(
int {name}_logits(const int8_t iq[{values}], int32_t logits[{classes}])
{{
    const struct layer *output = layers + {last};
    const uint8_t *weights = output->weights;
    int64_t largest = 0;
    int32_t i, best = 0;
{calls}    for (i = 0; i < {classes}; ++i) {{
        /* The network was trained in floats; where two classes have equal sums, their rounding decides.
         * This is what a float computes, in multiples of its smallest step. */
        int64_t logit;
        weights = sum_output(output, weights, i, 0, 0, {x});
        logit = round24(round24(round24(sums[0]) * {multiplier}) + rounding_offset[i]);
        logits[i] = {integer_logit};
        if (i == 0 || logit > largest) {{
            largest = logit;
            best = i;
        }}
    }}
    return (int)best;
}}

int {name}_classify(const int8_t iq[{values}])
{{
    int32_t logits[{classes}];
    return {name}_logits(iq, logits);
}}
)";

  const IntegerNetwork& network_;
  std::string name_, origin_;
  std::string tables_;
  std::vector<std::string> layers_, searched_;
  int64_t constant_bytes_ = 0;
  // A byte at least of each slot of values: C has no empty arrays.
  std::vector<int64_t> slot_bytes_;
  bool reads_packed_frames_;  // a layer without weights reads them
  bool adds_ = false, concats_ = false, averages_ = false;
  std::string calls_;
  int64_t sums_ = 1;
};

// What may stand in a C comment.
std::string printable(std::string text) {
  for (char& c : text) {
    if (!std::isprint(static_cast<unsigned char>(c)) || c == '*' || c == '/' || c == '\\') c = '_';
  }
  return text;
}

}  // namespace

CCode emit_c(const IntegerNetwork& network, const std::string& name, const std::string& origin) {
  const auto word = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_'; };
  if (name.empty() || std::isdigit(static_cast<unsigned char>(name[0])) ||
      !std::ranges::all_of(name, word)) {
    throw UsageError(fmt::format("the name '{}' is no C identifier", name));
  }
  return Emitter(network, name, printable(origin)).run();
}

}  // namespace fmp
