// SPDX-License-Identifier: MIT
// Writes a quantized network as self-contained C99 (see framework/inference/emit_c.h).
#include "framework/inference/emit_c.h"

#include <sys/wait.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <string>
#include <system_error>

#include "framework/atomic_file.h"
#include "framework/command_line.h"
#include "framework/error.h"
#include "framework/inference/model_file.h"

namespace fmp {
namespace {

struct EmitOptions {
  std::string model, out, name = "fmp_model", cc = "cc -Os";
};

std::optional<EmitOptions> parse(int argc, char** argv) {
  EmitOptions o;
  CLI::App app{"Writes a quantized network as self-contained C99: NAME.c and NAME.h.", "emit_c"};
  app.add_option("model", o.model, "network: .onnx, or .fmp of a run")
      ->type_name("FILE")
      ->required();
  app.add_option("--out", o.out, "directory for the files; made if missing")
      ->type_name("DIR")
      ->required();
  app.add_option("--name", o.name, "name of the files and prefix of the functions")
      ->capture_default_str();
  app.add_option("--cc", o.cc,
                 "compiler and options to report the size of the object with, such as "
                 "'arm-none-eabi-gcc -mcpu=cortex-m4 -mthumb -Os'; empty = do not compile")
      ->capture_default_str();
  if (!parse_command_line(app, argc, argv)) return std::nullopt;
  return o;
}

// As one word of a shell command.
std::string quoted(const std::string& text) {
  std::string result = "'";
  for (const char c : text) {
    if (c == '\'') {
      result += "'\\''";
    } else {
      result += c;
    }
  }
  return result + "'";
}

bool succeeds(const std::string& command) {
  flush_output();
  const int status = std::system(command.c_str());  // NOLINT(concurrency-mt-unsafe): one thread
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

// A directory for a while.
class ScratchDirectory {
 public:
  ScratchDirectory() {
    std::string name = (std::filesystem::temp_directory_path() / "emit_c_XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr)
      fail("{}: cannot be made: {}", name, errno_message(errno));
    path_ = name;
  }
  ~ScratchDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  ScratchDirectory(const ScratchDirectory&) = delete;
  ScratchDirectory& operator=(const ScratchDirectory&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

// Compiles the source and prints what `size` says of the object.
void report_size(const EmitOptions& o, const std::filesystem::path& source) {
  const ScratchDirectory scratch;
  const std::filesystem::path object = scratch.path() / "model.o";
  const std::string compile =
      o.cc + " -std=c99 -c " + quoted(source.string()) + " -o " + quoted(object.string());
  if (!succeeds(compile)) {
    fmt::print("the size of the object was not measured: this failed: {}\n", compile);
    return;
  }
  fmt::print("size of the object with {}:\n", o.cc);
  if (!succeeds("size " + quoted(object.string()))) fmt::print("  `size` failed\n");
}

void run(const EmitOptions& o) {
  const std::filesystem::path model = o.model;
  const CCode code = emit_c(IntegerNetwork(load_model(model)), o.name, model.filename().string());
  const std::filesystem::path directory = o.out;
  std::error_code error;
  const bool is_new = std::filesystem::create_directories(directory, error);
  if (error) fail("{}: cannot be made a directory: {}", o.out, error.message());
  const std::filesystem::path source = directory / (o.name + ".c");
  try {
    write_files_atomically({{directory / (o.name + ".h"), code.header}, {source, code.source}});
  } catch (...) {
    if (is_new) std::filesystem::remove(directory, error);
    throw;
  }
  fmt::print("{} and {}.h: {} bytes of constants, {} bytes of working memory\n", source.string(),
             o.name, code.constant_bytes, code.working_bytes);
  if (!o.cc.empty()) report_size(o, source);
}

}  // namespace
}  // namespace fmp

int main(int argc, char** argv) {
  return fmp::run_main([&] {
    if (const auto options = fmp::parse(argc, argv)) fmp::run(*options);
    return fmp::kExitSuccess;
  });
}
