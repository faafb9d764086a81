// SPDX-License-Identifier: MIT
#pragma once

#include <filesystem>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

namespace fmp {

// A file on its way to where a user wants it.
//
// A regular file, new or there already, is replaced as a whole: it is made without a name in the
// same directory, flushed to the disk, and takes the place of the old one, whose permissions it
// keeps, when commit() is called. Whatever happens, a reader finds the old file or the whole new
// one, and a program that is killed leaves nothing behind. (On file systems that know no files
// without a name it has one beside the target meanwhile, ".NAME.PID.partial", and only SIGKILL
// leaves it behind.) What is no regular file is written to and never replaced: a FIFO, a device, a
// descriptor such as /dev/stdout or /dev/fd/3. A symbolic link leads to its target. "-" is standard
// output.
//
// Everything here throws Error that names the file and the system's reason.
class OutputFile {
 public:
  explicit OutputFile(const std::filesystem::path& path);
  ~OutputFile();  // without commit(): as if nothing had been written
  OutputFile(OutputFile&&) noexcept;
  OutputFile& operator=(OutputFile&&) = delete;

  void write(std::string_view bytes);
  // For libraries that open files themselves: where to write instead of calling write(). The name
  // holds as long as this object and is of no use to other processes.
  std::filesystem::path work_path();
  // All is written; puts it in its place.
  void commit();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Writes `bytes` to `path` as described above.
void write_file_atomically(const std::filesystem::path& path, std::string_view bytes);

// Several files, none of which is put in its place before all have been written.
void write_files_atomically(
    const std::vector<std::pair<std::filesystem::path, std::string_view>>& files);

}  // namespace fmp
