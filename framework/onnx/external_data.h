// SPDX-License-Identifier: MIT
#pragma once

#include <filesystem>
#include <string>

namespace onnx {
class TensorProto;
}

namespace fmp::onnx {

// Tensors whose bytes are in files beside the model, as exporters write large ones.
class ExternalData {
 public:
  explicit ExternalData(const std::filesystem::path& model);

  static bool is_external(const ::onnx::TensorProto& tensor);

  // The bytes of a tensor. Only files in the model's folder or below it are read, links included.
  // Throws Error that begins with `what`: files elsewhere, missing or too short, entries that are
  // not known.
  std::string read(const std::string& what, const ::onnx::TensorProto& tensor) const;

 private:
  std::filesystem::path folder_;
};

}  // namespace fmp::onnx
